"""Losses on arrays, and their sums.

They assert the shapes and dtypes of their arguments with chex when they are called or traced. A
wrong one raises an AssertionError that names the argument in brackets, such as "[labels]".
"""

from segjax.losses.cross_entropy import (
    cross_entropy,
    hard_pixel_cross_entropy,
    mean_valid_pixels,
    pixel_cross_entropy,
)
from segjax.losses.dice import dice_loss
from segjax.losses.semantic import SemanticLoss

__all__ = [
    "SemanticLoss",
    "cross_entropy",
    "dice_loss",
    "hard_pixel_cross_entropy",
    "mean_valid_pixels",
    "pixel_cross_entropy",
]
