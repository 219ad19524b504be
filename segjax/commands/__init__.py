"""What the sub-commands of `segjax` do: a function each, whose arguments are the flags.

The command line should answer at once, so that these files import JAX within the functions only.
"""
