"""The COCO format: index, classes and masks. NumPy and OpenCV only."""
