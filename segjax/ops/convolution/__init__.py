"""Convolutions in forms that XLA runs fast, exact to float rounding."""

from segjax.ops.convolution.forms import (
    Padding,
    convolution,
    convolution_setting,
    up_convolution,
)

__all__ = ["Padding", "convolution", "convolution_setting", "up_convolution"]
