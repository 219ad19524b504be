"""Pictures of images, labels and objects, as arrays. NumPy and OpenCV only."""
