"""Losses on arrays; sums of them are made in the experiments."""

from segjax.losses.cross_entropy import cross_entropy, mean_valid_pixels, pixel_cross_entropy
from segjax.losses.dice import dice_loss

__all__ = ["cross_entropy", "dice_loss", "mean_valid_pixels", "pixel_cross_entropy"]
