"""The forms of a convolution that are fastest on TPU: XLA's own, and products for 1×1 kernels.

A depthwise convolution is XLA's own too, with a spatial axis more; see `depthwise`.
"""

from jax import lax

from segjax.ops.convolution.taps import (
    plain,
    plain_input_gradient,
    plain_kernel_gradient,
    product,
    product_input_gradient,
    product_kernel_gradient,
)
from segjax.ops.linear import transposed


def forward(inputs, kernel, taps):
    """Computes the convolution."""
    if taps.groups > 1:
        return depthwise(inputs, kernel, taps)
    return (product if taps.is_point and not taps.shared else plain)(inputs, kernel, taps)


def input_gradient(inputs, kernel, gradient, taps):
    """Computes the gradient of the inputs; only the inputs' shape and dtype are read."""
    if taps.groups > 1:
        return transposed(lambda x: depthwise(x, kernel, taps), inputs, gradient)
    form = product_input_gradient if taps.is_point and not taps.shared else plain_input_gradient
    return form(inputs, kernel, gradient, taps)


def kernel_gradient(inputs, kernel, gradient, taps):
    """Computes the gradient of the kernel; only the kernel's shape and dtype are read."""
    if taps.groups > 1:
        return transposed(lambda k: depthwise(inputs, k, taps), kernel, gradient)
    form = product_kernel_gradient if taps.is_point and not taps.shared else plain_kernel_gradient
    return form(inputs, kernel, gradient, taps)


def depthwise(inputs, kernel, taps):
    """Computes a depthwise convolution of maps with a third spatial axis, of length one.

    XLA:TPU cuts the last spatial axis of small batches into eight strips and copies the maps into
    this layout and back, which takes six times as long as the convolution. It does not cut an axis
    along which the kernel is dilated ("IsConvSuitableForSpaceToBatch" in XLA). On an axis of length
    one, dilation changes nothing else.
    """
    output = lax.conv_general_dilated(
        inputs[:, :, :, None],
        kernel[:, :, None],
        window_strides=(taps.stride, taps.stride, 1),
        padding=[*taps.padding, (0, 0)],
        rhs_dilation=(taps.rate, taps.rate, 2),
        dimension_numbers=("NHWDC", "HWDIO", "NHWDC"),
        feature_group_count=taps.groups,
    )
    return output[:, :, :, 0]
