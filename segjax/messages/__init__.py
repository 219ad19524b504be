"""Phrases that error messages share, for use by every room."""
