"""Operators: pure functions on arrays with fixed shapes."""

from segjax.ops.convolution import pointwise_convolution, up_convolution

__all__ = ["pointwise_convolution", "up_convolution"]
