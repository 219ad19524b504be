"""Smooth random displacements, as U-Net (2015, section 3.1) deforms its training images."""

from functools import lru_cache

import numpy as np

_GRID = 3  # nodes a side


def elastic_displacement(
    size: tuple[int, int], rng: np.random.Generator, *, sigma: float
) -> np.ndarray:
    """Draws a displacement for each pixel: random vectors on a coarse grid, bicubic in between.

    The grid of 3 × 3 nodes spans the picture; the outer nodes lie on its corner pixels. The paper
    draws from a Gaussian with a standard deviation of 10 pixels.

    Args:
      size: height and width.
      rng: the only source of randomness.
      sigma: standard deviation of each component at the nodes, in pixels.

    Returns:
      float32 [2, height, width]: displacements down and to the right, in pixels.
    """
    nodes = rng.normal(0.0, sigma, (2, _GRID, _GRID)).astype(np.float32)
    down, across = cubic_weights(size[0], _GRID), cubic_weights(size[1], _GRID)
    rows = np.einsum("cij,xj->cix", nodes, across)
    displacement = np.zeros((2, *size), np.float32)
    # Not a matrix product: BLAS may round differently with another number of threads, and augmented
    # examples must have the same bits in every process.
    for node in range(_GRID):
        displacement += down[:, node, None] * rows[:, None, node]
    return displacement


@lru_cache(maxsize=16)
def cubic_weights(size: int, nodes: int) -> np.ndarray:
    """The weights of `nodes` evenly spaced values at each of `size` pixels.

    This is cubic convolution with Keys' border condition (IEEE Trans. ASSP 29(6), 1981, equations
    15 and 19 to 25). It passes through the nodes and reproduces quadratic functions.

    Returns:
      float32 [size, nodes], read-only; each row sums to 1.
    """
    if nodes < 3:
        raise ValueError(f"cubic interpolation needs at least 3 nodes, got {nodes}")
    # One extra node beyond each end; the border condition expresses it by the others.
    position = np.linspace(0, nodes - 1, size)[:, None]
    distance = np.abs(position - np.arange(-1, nodes + 1))
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    weights[:, 1:4] += weights[:, :1] * [3, -3, 1]
    weights[:, -4:-1] += weights[:, -1:] * [1, -3, 3]
    weights = weights[:, 1:-1].astype(np.float32)
    weights.flags.writeable = False
    return weights
