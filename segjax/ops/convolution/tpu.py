"""The forms of a convolution that are fastest on TPU: XLA's own, and products for 1×1 kernels."""

from segjax.ops.convolution.taps import (
    plain,
    plain_input_gradient,
    plain_kernel_gradient,
    product,
    product_input_gradient,
    product_kernel_gradient,
)


def forward(inputs, kernel, taps):
    """Computes the convolution."""
    return (product if taps.is_point else plain)(inputs, kernel, taps)


def input_gradient(inputs, kernel, gradient, taps):
    """Computes the gradient of the inputs; only the inputs' shape and dtype are read."""
    form = product_input_gradient if taps.is_point else plain_input_gradient
    return form(inputs, kernel, gradient, taps)


def kernel_gradient(inputs, kernel, gradient, taps):
    """Computes the gradient of the kernel; only the kernel's shape and dtype are read."""
    form = product_kernel_gradient if taps.is_point else plain_kernel_gradient
    return form(inputs, kernel, gradient, taps)
