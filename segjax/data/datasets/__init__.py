"""Data sets as TFDS builders, one folder each in TFDS's convention."""
