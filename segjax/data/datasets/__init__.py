"""TFDS builders, one folder each in TFDS's convention."""
