"""Normalisation layers with one calling convention: a model takes any of them as `norm`.

A model calls `norm(dtype=..., name=...)(x, train)`; bind other attributes beforehand::

    norm = functools.partial(BatchNorm, epsilon=1e-3)
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from segjax.models.parameters import parameter
from segjax.ops.batch_statistics import check_statistics
from segjax.ops.devices import mean_over_devices
from segjax.ops.dtypes import sum_dtype
from segjax.ops.initializers import ones, zeros

Norm = Callable[..., nn.Module]
NormName = Literal["batch", "frozen", "group"]


class BatchNorm(nn.Module):
    """Batch normalisation over all positions: Ioffe and Szegedy, 2015 (arXiv:1502.03167).

    In a training step that is mapped over devices, the statistics cover the whole batch on all
    devices ("synced"). Parameters and statistics are named as in `nn.BatchNorm`.

    Attributes:
      momentum: share of the running statistics that a step keeps; PyTorch's momentum is one minus
        this. DeepLab v3 and v3+ keep 0.9997, torchvision 0.9.
      epsilon: added to the variance: 1e-5 in PyTorch's models, 1e-3 in most of TensorFlow's.
      frozen: use the running statistics in training too, unchanged: DeepLab v3's second phase
        (section 4.1). Scale and bias remain parameters; the optimiser decides whether they train.
      dtype: output dtype; None takes the input's, and at least float32.
      param_dtype: dtype of scale and bias; the statistics are float32.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    frozen: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @property
    def over_batch(self) -> bool:
        """Whether training takes the statistics of the batch."""
        return not self.frozen

    @nn.compact
    def __call__(self, x, train: bool = False):
        if train and not self.frozen and not self.is_initializing():
            check_statistics(x.shape, name="/".join(self.path) or "layer")
        shape = x.shape[-1:]
        scale = parameter(self, "scale", ones, shape, self.param_dtype)
        bias = parameter(self, "bias", zeros, shape, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", zeros, None, shape)
        running_variance = self.variable("batch_stats", "var", ones, None, shape)
        parameters, dtype = (scale, bias), self.dtype or sum_dtype(x)
        running = running_mean.value, running_variance.value
        if self.frozen or not train:
            return _normalized(x, *parameters, *running, self.epsilon, dtype)
        moments = _moments(x)
        if self.is_initializing():
            return _normalized(x, *parameters, *_mean_and_variance(moments), self.epsilon, dtype)
        outputs, (running_mean.value, running_variance.value) = _normalized_by_batch(
            x, *parameters, mean_over_devices(moments), running, self.momentum, self.epsilon, dtype
        )
        return outputs


# These functions are jitted so that JAX traces and differentiates them once per shape, and not once
# per layer: a ResNet-50 has 53 norms, most of a shape that others have too.


@jax.jit
def _moments(x):
    """Returns the mean of x and of x² for each channel, [2, channels], in at least float32."""
    x, axes = x.astype(sum_dtype(x)), tuple(range(x.ndim - 1))
    return jnp.stack([jnp.mean(x, axes), jnp.mean(lax.square(x), axes)])


def _mean_and_variance(moments):
    mean = moments[0]
    return mean, jnp.maximum(moments[1] - lax.square(mean), 0)  # rounding may give less than 0


@partial(jax.jit, static_argnums=(5, 6, 7))
def _normalized_by_batch(x, scale, bias, moments, running, momentum: float, epsilon: float, dtype):
    """Returns the normalised map, and the running mean and variance after this batch."""
    found = _mean_and_variance(moments)
    averaged = tuple(
        momentum * old + (1 - momentum) * new.astype(old.dtype)
        for old, new in zip(running, found, strict=True)
    )
    return _normalized(x, scale, bias, *found, epsilon, dtype), averaged


@partial(jax.jit, static_argnums=(5, 6))
def _normalized(x, scale, bias, mean, variance, epsilon: float, dtype):
    """Returns scale · (x − mean) / sqrt(variance + epsilon) + bias in this dtype.

    One product and one sum, as in PyTorch: for its gradients, XLA keeps x and no other map. Written
    as above, it keeps x − mean as well.
    """
    wide = sum_dtype(x)
    shape = *[1] * (x.ndim - 1), -1
    scale, bias, mean, variance = (
        v.astype(wide).reshape(shape) for v in (scale, bias, mean, variance)
    )
    factor = scale * lax.rsqrt(variance + epsilon)
    return (x.astype(wide) * factor + (bias - mean * factor)).astype(dtype)


class GroupNorm(nn.Module):
    """Group normalisation, the same in training and prediction: Wu and He, 2018 (arXiv:1803.08494).

    Each example has its own statistics; in Mask R-CNN's heads, each region.

    Attributes:
      num_groups: number of groups of channels. If it does not divide the channels, their greatest
        common divisor is taken.
      epsilon: added to the variance: 1e-5 in PyTorch.
      dtype: output dtype; None takes the input's, and at least float32.
    """

    num_groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        groups = math.gcd(self.num_groups, x.shape[-1])
        norm = nn.GroupNorm(num_groups=groups, epsilon=self.epsilon, dtype=self.dtype)
        nn.share_scope(self, norm)
        with jax.numpy_dtype_promotion("standard"):
            return norm(x)


def norm_of(name: NormName) -> Norm:
    """Returns the norm with this name; "frozen" is batch norm with its running statistics."""
    norms = {"batch": BatchNorm, "frozen": partial(BatchNorm, frozen=True), "group": GroupNorm}
    if name not in norms:
        raise ValueError(f"norm={name!r}; expected one of {', '.join(map(repr, norms))}")
    return norms[name]


def is_over_batch(norm: Callable[..., nn.Module] | None) -> bool:
    """Whether a norm takes the statistics of the batch in training.

    An example's outputs then depend on the others, and the norm writes running statistics. A norm
    of your own says so by an attribute `over_batch`; without it, it counts as not doing so.
    """
    return norm is not None and getattr(norm(parent=None), "over_batch", False)
