"""Data sets, augmentation and the loader: NumPy and OpenCV only, for worker processes."""
