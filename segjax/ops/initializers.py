"""The distributions that weights are drawn from.

Within `drawn_by_numpy`, NumPy draws the weights, outside of any compiled program. JAX would compile
hundreds of draws that run once. For DeepLab v3 on ResNet-50, they took 11 of the 27 seconds from
the start of a process to the end of its first step (jax 0.12.0.1, two CPU cores).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

# The standard deviation of a normal distribution of deviation 1, cut off at −2 and 2.
_TRUNCATED_DEVIATION = 0.87962566
_generator: ContextVar[np.random.Generator | None] = ContextVar("generator", default=None)


@contextmanager
def drawn_by_numpy(seed: int) -> Iterator[None]:
    """Lets the initialisers of this module draw by NumPy, and return NumPy arrays.

    The draws depend on the seed and on the order of the draws, which is that of the layers. They
    are the same on every platform. Initialisers from elsewhere still draw by JAX.
    """
    token = _generator.set(np.random.default_rng(seed))
    try:
        yield
    finally:
        _generator.reset(token)


@dataclass(frozen=True)
class Draw:
    """Draws weights around zero, as an initialiser of Flax: `draw(key, shape, dtype)`.

    Attributes:
      kind: the distribution; a "truncated_normal" one is cut off at two deviations.
      deviation: the standard deviation, of a truncated one before it is cut off.
      variance_of: the fan by which the variance is divided, for kernels [..., in, out]; the
        deviation is then that of the weights for a fan of 1, after the cut. None divides by none.
      separate_positions: whether each output sees one position of the kernel only, as in an
        up-convolution, so that a fan does not count the positions.
    """

    kind: Literal["normal", "truncated_normal", "uniform"]
    deviation: float
    variance_of: Literal["fan_in", "fan_out"] | None = None
    separate_positions: bool = False

    def __call__(self, key, shape: Sequence[int], dtype: Any = jnp.float32):
        factor, generator = self._factor(shape), _generator.get()
        if generator is not None:
            return (factor * _drawn(generator, self.kind, tuple(shape))).astype(dtype)
        if self.kind == "normal":
            standard = jax.random.normal(key, shape, dtype)
        elif self.kind == "truncated_normal":
            standard = jax.random.truncated_normal(key, -2, 2, shape, dtype)
        else:
            standard = jax.random.uniform(key, shape, dtype, -1, 1)
        return standard * jnp.asarray(factor, dtype)

    def _factor(self, shape: Sequence[int]) -> float:
        """What a standard draw is multiplied by."""
        factor = self.deviation
        if self.variance_of is not None:
            fan = shape[-2] if self.variance_of == "fan_in" else shape[-1]
            factor /= math.sqrt(fan * (1 if self.separate_positions else math.prod(shape[:-2])))
            if self.kind == "truncated_normal":
                factor /= _TRUNCATED_DEVIATION
        return factor * math.sqrt(3) if self.kind == "uniform" else factor


def _drawn(generator: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws from a distribution of deviation 1 (uniform: of −1 to 1) in float32."""
    if kind == "uniform":
        return 2 * generator.random(shape, np.float32) - 1
    drawn = generator.standard_normal(shape, np.float32)
    if kind == "truncated_normal":
        while (beyond := np.abs(drawn) > 2).any():
            drawn[beyond] = generator.standard_normal(int(beyond.sum()), np.float32)
    return drawn


def normal(deviation: float) -> Draw:
    """Returns N(0, deviation²)."""
    return Draw("normal", deviation)


def truncated_normal(deviation: float) -> Draw:
    """Returns N(0, deviation²), cut off at two deviations."""
    return Draw("truncated_normal", deviation)


# He et al., 2015 (arXiv:1502.01852): the variance is 2 / fan. The fan-out keeps the size of the
# gradients from layer to layer, the fan-in that of the activations.
he_normal = Draw("normal", math.sqrt(2), "fan_out")
he_normal_fan_in = Draw("normal", math.sqrt(2), "fan_in")
# Each output of the 2×2 up-convolution sees one position of the kernel.
he_normal_up_convolution = Draw("normal", math.sqrt(2), "fan_in", separate_positions=True)
# LeCun et al., 1998, "Efficient BackProp": the variance is 1 / fan.
lecun_normal = Draw("truncated_normal", 1.0, "fan_in")
lecun_uniform = Draw("uniform", 1.0, "fan_in")


@dataclass(frozen=True)
class Constant:
    """Fills a parameter with one value, as an initialiser of Flax."""

    value: float

    def __call__(self, key, shape: Sequence[int], dtype: Any = jnp.float32):
        del key
        of = jnp if _generator.get() is None else np
        return of.full(shape, self.value, dtype)


zeros, ones = Constant(0.0), Constant(1.0)
