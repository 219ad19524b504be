"""The COCO format: index, classes, masks as run lengths. NumPy only."""
