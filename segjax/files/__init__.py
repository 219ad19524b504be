"""Atomic writing of files, for use by every room."""
