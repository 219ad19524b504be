"""Files of published weights by name: where they come from, where they lie, how they get here.

Nothing is downloaded unless the caller asks for it.
"""
