"""Random changes of training examples: one file per kind."""
