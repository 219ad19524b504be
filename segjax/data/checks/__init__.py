"""Checks of a data set before training: files, sizes, labels."""
