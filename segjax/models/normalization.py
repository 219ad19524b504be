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

from segjax.ops.batch_statistics import check_statistics
from segjax.ops.devices import bound_axis

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
      param_dtype: dtype of scale, bias and statistics.
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
        norm = nn.BatchNorm(
            use_running_average=self.frozen or not train,
            axis_name=bound_axis(),
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        nn.share_scope(self, norm)
        # Flax promotes bfloat16 maps to its float32 statistics, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return norm(x)


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
