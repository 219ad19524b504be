"""The fully connected CRF of Krähenbühl and Koltun (NIPS 2011), which refines DeepLab v1 and v2.

Two Gaussian kernels connect each pixel to every other (DeepLab v1, equation 2; v2, equation 3):

  k_ij = w1 · exp(−|p_i − p_j|² / 2σ_α² − |I_i − I_j|² / 2σ_β²) + w2 · exp(−|p_i − p_j|² / 2σ_γ²)

for positions p and colours I. Two pixels pay k_ij if their labels differ (the Potts model). Mean
field approximates the marginals: Q_i(l) ∝ exp(logits_i(l) + Σ_j k_ij · Q_j(l)). The sum includes
j = i, as in the released programs; the paper leaves it out.

The appearance kernel is filtered on the permutohedral lattice, as in the released programs. The
smoothness kernel has two dimensions and a small σ, so it is convolved along each axis instead. That
is exact except for the tails beyond 4 σ_γ (6e-5 of the kernel), and costs about as much.
"""

import dataclasses
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from segjax.ops.permutohedral import connect, lattice_filter, scale_lattice, sort_corners

Normalization = Literal["symmetric", "per_pixel", "none"]
TILE = 64  # rows of a band matrix
BUCKET = 64  # `refine_probabilities` pads to multiples of this, so that few shapes are compiled


@dataclass(frozen=True)
class CrfConfig:
    """Parameters of the fully connected CRF; the defaults are those of DeepLab v1's script.

    DeepLab v2 uses 4, 65, 3, 2, 2 (VGG-16) and 4, 67, 3, 3, 1 (ResNet-101) for the fields from
    `appearance_weight` to `smoothness_sigma`.
    """

    num_iterations: int = 10
    """Mean field iterations."""
    appearance_weight: float = 4.0
    """w1, the weight of the appearance kernel (position and colour)."""
    position_sigma: float = 49.0
    """σ_α of the appearance kernel, in pixels."""
    color_sigma: float = 5.0
    """σ_β of the appearance kernel, in the image's units (0 to 255)."""
    smoothness_weight: float = 3.0
    """w2, the weight of the smoothness kernel (position only)."""
    smoothness_sigma: float = 3.0
    """σ_γ of the smoothness kernel, in pixels."""
    normalization: Normalization = "symmetric"
    """Normalisation of both kernels, with k_i = Σ_j k_ij. "symmetric" divides k_ij by √(k_i k_j)
    (Krähenbühl and Koltun's release of 2013, pydensecrf). "per_pixel" divides by k_i (their release
    of 2011, on which DeepLab's program is built). "none" does not normalise, as in the papers."""

    def __post_init__(self):
        for name in ("position_sigma", "color_sigma", "smoothness_sigma"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}; expected a number above 0")
        for name in ("num_iterations", "appearance_weight", "smoothness_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}; expected at least 0")
        _check_normalization(self.normalization)


def dense_crf(
    logits,
    image,
    *,
    num_iterations: int = 10,
    appearance_weight: float = 4.0,
    position_sigma: float = 49.0,
    color_sigma: float = 5.0,
    smoothness_weight: float = 3.0,
    smoothness_sigma: float = 3.0,
    normalization: Normalization = "symmetric",
    valid=None,
    capacity: int | None = None,
) -> jax.Array:
    """Computes the marginals of the fully connected CRF with `logits` as unary potentials.

    Works with `jit`, with `vmap` over images of one size, and with reverse-mode differentiation in
    `logits` (the image gets no gradient). `CrfConfig` explains the keywords that it also has.

    Args:
      logits: [height, width, classes] of a float dtype; log-probabilities give the same result.
      image: [height, width, channels], one or three channels with values from 0 to 255.
      smoothness_sigma: a Python number, because it sets the size of the convolution.
      valid: bool [height, width]; pixels that are not valid neither send nor receive messages. Use
        it for padded images.
      capacity: number of lattice points that the tables have room for. None counts the image's
        points. A traced call cannot count; it takes the largest possible number, which is many
        times too large.

    Returns:
      float32 [height, width, classes], probabilities. A traced call returns only NaN if the image
      needs more than `capacity` lattice points, or if a σ is so small that its lattice points
      cannot be numbered.

    Raises:
      ValueError: shapes do not fit, or an untraced call would return NaN.
    """
    _check_shapes(logits, image, valid)
    chex.assert_type(logits, float, custom_message="logits")
    if valid is not None:
        chex.assert_type(valid, bool, custom_message="valid")
    _check_normalization(normalization)
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity={capacity}; expected at least 1")
    if valid is None:
        valid = jnp.ones(image.shape[:2], bool)
    image = jax.lax.stop_gradient(jnp.asarray(image, jnp.float32))
    # Arrays of one type, so that 4 and 4.0 share a compiled program.
    sigmas, weights = (
        jnp.stack([jnp.asarray(value, jnp.float32) for value in pair])
        for pair in ((position_sigma, color_sigma), (appearance_weight, smoothness_weight))
    )
    corners = _sort(image, valid, sigmas)
    most = corners.point.size
    if isinstance(corners.num_lattice_points, Tracer):
        capacity = most if capacity is None else capacity
    elif not corners.fits:
        raise ValueError(
            f"position_sigma={position_sigma} and color_sigma={color_sigma} are too small for an "
            f"image of {image.shape[0]}×{image.shape[1]}: its lattice cannot be numbered"
        )
    elif capacity is None:
        capacity = _round_capacity(int(corners.num_lattice_points), most)
    elif capacity < corners.num_lattice_points:
        raise ValueError(
            f"capacity={capacity}, but the image takes {corners.num_lattice_points} lattice points"
        )
    reach = math.ceil(4 * smoothness_sigma)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / smoothness_sigma) ** 2)
    return _infer(
        jnp.asarray(logits, jnp.float32),
        valid,
        corners,
        jnp.asarray(taps, jnp.float32),
        weights,
        capacity=capacity,
        num_iterations=num_iterations,
        normalization=normalization,
    )


def refine_probabilities(
    probabilities: np.ndarray, image: np.ndarray, config: CrfConfig
) -> np.ndarray:
    """Refines the class probabilities of one image of any size.

    Images are padded to multiples of 64, and the lattice tables to a few sizes. A data set with
    images of many sizes therefore compiles only a few programs.

    Args:
      probabilities: float [H, W, classes].
      image: [H, W, 1 or 3], values from 0 to 255; uint16 images are scaled to that range.

    Returns:
      float32 [H, W, classes].

    Raises:
      ValueError: as for `dense_crf`.
    """
    _check_shapes(probabilities, image, None)
    height, width = image.shape[:2]
    beyond = [(0, -height % BUCKET), (0, -width % BUCKET)]
    colors = image.astype(np.float32) / np.float32(257 if image.dtype == np.uint16 else 1)
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny), dtype=np.float32)
    refined = dense_crf(
        np.pad(logits, [*beyond, (0, 0)]),
        np.pad(colors, [*beyond, (0, 0)]),
        valid=np.pad(np.ones((height, width), bool), beyond),
        **dataclasses.asdict(config),
    )
    return np.asarray(refined)[:height, :width]


def mean_field(logits, message: Callable, *, num_iterations: int):
    """Iterates Q ← softmax(logits + message(Q)), starting at softmax(logits); classes are last."""

    def update(_, q):
        return jax.nn.softmax(logits + message(q), axis=-1)

    return jax.lax.fori_loop(0, num_iterations, update, jax.nn.softmax(logits, axis=-1))


def gaussian_filter(values, taps):
    """Convolves [height, width, channels] along both axes with `taps` [2r + 1], zero-padded.

    Multiplies tiles with band matrices. XLA would fuse a sum of shifted arrays into each of its
    readers, and so compute it many times.
    """
    reach = len(taps) // 2
    place = np.arange(TILE + 2 * reach)[None] - np.arange(TILE)[:, None]
    inside = (place >= 0) & (place <= 2 * reach)
    band = jnp.where(inside, taps[np.clip(place, 0, 2 * reach)], 0.0)
    for axis in (0, 1):
        front = jnp.moveaxis(values, axis, 0)
        length = front.shape[0]
        rows = jnp.pad(front.reshape(length, -1), ((reach, reach + -length % TILE), (0, 0)))
        tiles = [
            jnp.matmul(band, rows[start : start + TILE + 2 * reach], precision="highest")
            for start in range(0, length, TILE)
        ]
        values = jnp.moveaxis(jnp.concatenate(tiles)[:length].reshape(front.shape), 0, axis)
    return values


def normalizers(total, normalization: Normalization):
    """Returns the factors (inner, outer) that normalise a kernel K to outer · inner · K · inner.

    `total` has the row sums of K; see `CrfConfig.normalization`. Rows that sum to 0, those of
    invalid pixels, get the factor 0. NaN, which marks an overflow, stays NaN.
    """
    one = jnp.ones_like(total)
    if normalization == "none":
        return one, one
    total = jnp.where(total == 0, jnp.inf, total)
    return (jax.lax.rsqrt(total), one) if normalization == "symmetric" else (one, 1 / total)


def _round_capacity(count: int, most: int) -> int:
    """Rounds up to 2ⁿ or 1.5 · 2ⁿ, from about most / 32, so that few capacities are compiled."""
    power = 1 << max(count - 1, most // 32).bit_length()
    return min(power * 3 // 4 if count <= power * 3 // 4 else power, most)


@jax.jit
def _sort(image, valid, sigmas):
    """Sorts the corners of the appearance kernel's lattice; its features are (x, y, colours)."""
    height, width, channels = image.shape
    y, x = (jax.lax.broadcasted_iota(jnp.float32, (height, width, 1), axis) for axis in (0, 1))
    features = jnp.concatenate([x / sigmas[0], y / sigmas[0], image / sigmas[1]], axis=-1)
    return sort_corners(features.reshape(-1, 2 + channels), valid.reshape(-1))


@partial(jax.jit, static_argnames=("capacity", "num_iterations", "normalization"))
def _infer(logits, valid, corners, taps, weights, *, capacity, num_iterations, normalization):
    mask = valid[..., None].astype(jnp.float32)
    lattice = connect(corners, capacity)
    total = lattice_filter(lattice, mask.reshape(-1, 1))
    inner, appearance_outer = normalizers(total, normalization)
    # Scale the tables: XLA would recompute a product with q for each corner that reads it.
    lattice = scale_lattice(lattice, inner[:, 0])
    total = mask * gaussian_filter(mask, taps)
    inner, smoothness_outer = normalizers(total, normalization)
    inner = mask * inner

    def message(q):
        appearance = appearance_outer * lattice_filter(lattice, q.reshape(-1, q.shape[-1]))
        smoothness = smoothness_outer * inner * gaussian_filter(inner * q, taps)
        return weights[0] * appearance.reshape(q.shape) + weights[1] * smoothness

    return mean_field(logits, message, num_iterations=num_iterations)


def _check_normalization(name):
    if name not in (known := typing.get_args(Normalization)):
        raise ValueError(f"normalization={name!r}; expected one of {known}")


def _check_shapes(logits, image, valid):
    if logits.ndim != 3 or image.ndim != 3 or logits.shape[:2] != image.shape[:2]:
        raise ValueError(
            "expected logits [height, width, classes] and an image [height, width, channels] of "
            f"the same size; got {logits.shape} and {image.shape}"
        )
    if image.shape[2] not in (1, 3):
        raise ValueError(f"an image has 1 or 3 channels; got {image.shape}")
    if valid is not None and valid.shape != image.shape[:2]:
        raise ValueError(f"valid has shape {valid.shape}; expected {image.shape[:2]}")
