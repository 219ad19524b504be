"""The convolution and its two gradients as linear operators, with forms by platform.

For inputs x, a kernel k and a gradient g of the output, the product g · convolve(x, k) is linear in
x, k and g. Each operator is therefore linear in both of its operands, and its transposes are the
other two operators.
"""

import jax

from segjax.ops.convolution import cpu, tpu
from segjax.ops.convolution.taps import (
    Taps,
    plain,
    plain_input_gradient,
    plain_kernel_gradient,
)
from segjax.ops.linear import apply, define_transposes, linear_operator


def convolve(inputs, kernel, taps: Taps):
    """Computes the convolution in the form that is fastest on the platform."""
    return apply(_output, inputs, kernel, options=(taps, inputs.shape[1:3]))


def _output_form(form):
    return lambda inputs, kernel, options: form(inputs, kernel, options[0])


def _input_gradient_form(form):
    def run(gradient, kernel, options):
        taps, size = options
        shape = gradient.shape[0], *size, kernel.shape[2] * taps.groups
        return form(jax.ShapeDtypeStruct(shape, gradient.dtype), kernel, gradient, taps)

    return run


def _kernel_gradient_form(form):
    def run(inputs, gradient, options):
        taps, _ = options
        channels, features = inputs.shape[3] // taps.groups, gradient.shape[3]
        shape = len(taps.rows), len(taps.columns), channels, features
        return form(inputs, jax.ShapeDtypeStruct(shape, inputs.dtype), gradient, taps)

    return run


# The operands are (inputs, kernel), (gradient, kernel) and (inputs, gradient).
_output = linear_operator(
    "convolution",
    default=_output_form(plain),
    cpu=_output_form(cpu.forward),
    tpu=_output_form(tpu.forward),
)
_input_gradient = linear_operator(
    "convolution_input_gradient",
    default=_input_gradient_form(plain_input_gradient),
    cpu=_input_gradient_form(cpu.input_gradient),
    tpu=_input_gradient_form(tpu.input_gradient),
)
_kernel_gradient = linear_operator(
    "convolution_kernel_gradient",
    default=_kernel_gradient_form(plain_kernel_gradient),
    cpu=_kernel_gradient_form(cpu.kernel_gradient),
    tpu=_kernel_gradient_form(tpu.kernel_gradient),
)
define_transposes(_output, {0: (_input_gradient, (0, 1)), 1: (_kernel_gradient, (0, 1))}, 2)
define_transposes(_input_gradient, {0: (_output, (0, 1)), 1: (_kernel_gradient, (1, 0))}, 2)
define_transposes(_kernel_gradient, {0: (_input_gradient, (1, 0)), 1: (_output, (0, 1))}, 2)
