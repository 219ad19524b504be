"""The sub-commands of `segjax`: one function each, whose arguments are the flags.

These files import JAX inside the functions only, so that the command line answers at once.
"""
