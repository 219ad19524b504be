"""Folders of images and masks: pairs, the masks' format, division into splits, examples."""
