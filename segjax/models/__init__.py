"""Architectures: one file each, arrays in, a dict of arrays out."""

from segjax.models.unet import UNet

__all__ = ["UNet"]
