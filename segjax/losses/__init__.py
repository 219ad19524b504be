"""Losses on arrays, and weighted sums of them.

Each checks the shapes and dtypes of its arguments with chex, when it is called or traced. A wrong
argument raises an AssertionError that names it in brackets, such as "[labels]".
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
