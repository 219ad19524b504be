"""Operators: pure functions on arrays with fixed shapes."""

from segjax.ops.convolution import convolution, pointwise_convolution, up_convolution
from segjax.ops.dense_crf import dense_crf
from segjax.ops.resize import resize_bilinear

__all__ = [
    "convolution",
    "dense_crf",
    "pointwise_convolution",
    "resize_bilinear",
    "up_convolution",
]
