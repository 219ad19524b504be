"""Random changes of training examples, one file for each kind."""
