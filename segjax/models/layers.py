"""The layers of the DeepLab line and its backbones.

Every 3×3 layer pads each side by its atrous rate, as PyTorch does. Position i of a map at stride s
is therefore centred on pixel i·s for any image size, and a map of a smaller output stride, when
subsampled, equals the map of a larger one. TensorFlow's "SAME" agrees for sides of 32k + 1.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax

from segjax.models.normalization import BatchNorm, Norm
from segjax.models.parameters import Initializer, parameter
from segjax.ops.convolution import Padding, convolution, up_convolution
from segjax.ops.devices import share_rows
from segjax.ops.dtypes import sum_dtype
from segjax.ops.initializers import (
    he_normal,
    he_normal_up_convolution,
    lecun_normal,
    truncated_normal,
    zeros,
)

Activation = Callable[[Any], Any]


class Unit(NamedTuple):
    """Stride and atrous rates of a backbone's unit at some output stride.

    Attributes:
      stride: the unit's stride.
      rate: atrous rate of its layers up to and including the strided one.
      rate_after: atrous rate of its later layers; twice `rate` where a stride of 2 is not taken.
    """

    stride: int
    rate: int
    rate_after: int


def atrous_units(strides: Sequence[int], *, output_stride: int) -> list[Unit]:
    """Turns the strides of units into strides and rates that end at `output_stride`.

    Once it is reached, a unit's stride becomes 1 and multiplies the rates of all later layers:
    DeepLab v1, section 3.1 (the "hole algorithm"). The weights see the same pixels as before, so
    the dense map, subsampled, equals the map that the strides would give.

    Raises:
      ValueError: `output_stride` is not 8, 16 or 32.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride is 8, 16 or 32; got {output_stride!r}")
    units, current, rate = [], 1, 1
    for stride in strides:
        if current < output_stride:
            units.append(Unit(stride, 1, 1))
            current *= stride
        else:
            units.append(Unit(1, rate, rate * stride))
            rate *= stride
    return units


def check_multi_grid(multi_grid: Sequence[int] | None, *, length: int) -> None:
    """Raises a ValueError unless `multi_grid` is None or has `length` rates of at least 1."""
    if multi_grid is not None and (len(multi_grid) != length or min(multi_grid) < 1):
        raise ValueError(
            f"multi_grid has {length} rates of at least 1 for this backbone, one for each unit of "
            f"its last stage; got {multi_grid!r}"
        )


def max_pool(x, *, size: int, stride: int, rate: int = 1):
    """Computes the maximum over windows of `size` × `size` positions that lie `rate` apart.

    Args:
      x: [batch, height, width, channels].

    Returns:
      [batch, ⌈height / stride⌉, ⌈width / stride⌉, channels]. An odd window is centred on position
      i · stride; an even one has that position just before its centre. Positions outside the map
      are left out.
    """
    # Maxima of shifted slices: XLA has no gradient for a dilated reduce_window, and its gradient of
    # a plain one is many times slower on CPU.
    height, width = x.shape[1:3]
    x = share_rows(x, least=-(-height // stride))
    around = (rate * ((size - 1) // 2), rate * (size // 2))
    padded = jnp.pad(x, ((0, 0), around, around, (0, 0)), constant_values=-jnp.inf)
    maxima = functools.reduce(
        jnp.maximum,
        [
            padded[:, top : top + height : stride, left : left + width : stride]
            for top, left in itertools.product(range(0, rate * size, rate), repeat=2)
        ],
    )
    return share_rows(maxima)


def add_bias(x, bias):
    """Adds one number per channel, and computes the sum in at least float32.

    The bias's gradient is a sum over all positions. XLA rounds every partial sum to bfloat16, and
    one of equal terms stops growing after a few hundred of them: measured on CPU (jax 0.12.0.1).
    Compiled for an H100, the additions are in bfloat16 too.

    Args:
      x: [..., channels].
      bias: [channels].

    Returns:
      [..., channels] of x's dtype.
    """
    dtype = sum_dtype(x)
    bias = bias.astype(dtype).reshape(*[1] * (x.ndim - 1), -1)
    return (x.astype(dtype) + bias).astype(x.dtype)


class Convolution(nn.Module):
    """A convolution that pads each side by rate · (kernel size − 1) / 2, unless `padding` is VALID.

    Its parameters are those of `nn.Conv`: "kernel" [height, width, in / groups, out], "bias" [out].

    Attributes:
      features: channels of the output.
      kernel_size: height and width of the kernel.
      stride: distance between the windows of neighbouring outputs.
      rate: atrous rate, the distance between the taps.
      groups: number of groups of channels that are convolved separately; with one channel each, the
        convolution is depthwise.
      padding: "SAME" as above, or "VALID" for none.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    rate: int = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = he_normal
    padding: Padding = "SAME"
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = parameter(self, "kernel", self.kernel_init, shape)
        bias = parameter(self, "bias", zeros, (self.features,)) if self.use_bias else None
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        x = convolution(
            x,
            kernel,
            stride=self.stride,
            rate=self.rate,
            groups=self.groups,
            padding=self.padding,
        )
        return x if bias is None else add_bias(x, bias)


class ConvolutionNorm(nn.Module):
    """Convolution → normalisation → activation; see `Convolution`.

    With `norm` None the convolution has a bias instead; with `activation` None there is none.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    rate: int = 1
    groups: int = 1
    activation: Activation | None = nn.relu
    norm: Norm | None = BatchNorm
    kernel_init: Initializer = he_normal
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = Convolution(
            self.features,
            kernel_size=self.kernel_size,
            stride=self.stride,
            rate=self.rate,
            groups=self.groups,
            use_bias=self.norm is None,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="convolution",
        )(x)
        if self.norm is not None:
            x = self.norm(dtype=self.dtype, name="norm")(x, train)
        return x if self.activation is None else self.activation(x)


class Dense(nn.Module):
    """A fully connected layer: "kernel" [in, features] and "bias" [features], as in `nn.Dense`.

    `nn.Dense` sums the bias's gradient in the computation dtype; see `add_bias`.
    """

    features: int
    kernel_init: Initializer = lecun_normal
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Maps [..., in] to [..., features]."""
        kernel = parameter(self, "kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = parameter(self, "bias", zeros, (self.features,))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return add_bias(lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))), bias)


class UpConvolution(nn.Module):
    """The learned 2×2 up-convolution with stride 2: "kernel" [2, 2, in, features] and "bias".

    No activation follows it here. U-Net's paper has none, its released network has a ReLU, and so
    does Mask R-CNN's mask head.
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs):
        shape = (2, 2, inputs.shape[-1], self.features)
        kernel = parameter(self, "kernel", he_normal_up_convolution, shape)
        bias = parameter(self, "bias", zeros, (self.features,))
        inputs, kernel = promote_dtype(inputs, kernel, dtype=self.dtype)
        return add_bias(up_convolution(inputs, kernel), bias)


class SeparableConvolution(nn.Module):
    """Atrous separable convolution (DeepLab v3+, section 3.1): depthwise, then pointwise.

    Attributes:
      features: channels of the output.
      stride, rate: stride and atrous rate of the 3×3 depthwise convolution.
      activation: activation after the pointwise convolution; None for none.
      activate_depthwise: whether the activation follows the depthwise convolution too.
      normalize_depthwise: whether a norm follows the depthwise convolution; not so in SMP.
    """

    features: int
    stride: int = 1
    rate: int = 1
    activation: Activation | None = nn.relu
    activate_depthwise: bool = True
    normalize_depthwise: bool = True
    norm: Norm = BatchNorm
    depthwise_init: Initializer = truncated_normal(0.33)
    pointwise_init: Initializer = truncated_normal(0.06)
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = Convolution(
            x.shape[-1],
            stride=self.stride,
            rate=self.rate,
            groups=x.shape[-1],
            kernel_init=self.depthwise_init,
            dtype=self.dtype,
            name="depthwise",
        )(x)
        if self.normalize_depthwise:
            x = self.norm(dtype=self.dtype, name="depthwise_norm")(x, train)
        if self.activate_depthwise and self.activation is not None:
            x = self.activation(x)
        return ConvolutionNorm(
            self.features,
            kernel_size=1,
            activation=self.activation,
            norm=self.norm,
            kernel_init=self.pointwise_init,
            dtype=self.dtype,
            name="pointwise",
        )(x, train)
