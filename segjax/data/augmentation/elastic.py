"""Smooth random displacements, as U-Net (2015, section 3.1) deforms its training images."""

from functools import lru_cache

import numpy as np


def elastic_displacement(
    size: tuple[int, int], rng: np.random.Generator, *, sigma: float, grid: int = 3
) -> np.ndarray:
    """Draws a displacement for each pixel: random vectors on a coarse grid, bicubic in between.

    The nodes of the grid span the picture, the outer ones on its corner pixels. The paper draws
    them from a Gaussian of 10 pixels on a 3 × 3 grid.

    Args:
      size: height and width.
      rng: the only source of randomness.
      sigma: standard deviation of each component at the nodes, in pixels.
      grid: number of nodes a side, at least 3.

    Returns:
      float32 [2, height, width]: how far to go down and to the right, in pixels.
    """
    nodes = rng.normal(0.0, sigma, (2, grid, grid)).astype(np.float32)
    down, across = cubic_weights(size[0], grid), cubic_weights(size[1], grid)
    rows = np.einsum("cij,xj->cix", nodes, across)
    displacement = np.zeros((2, *size), np.float32)
    # Not a matrix product: BLAS may round differently with another number of threads, and an
    # augmented example has to be the same bits in every process.
    for node in range(grid):
        displacement += down[:, node, None] * rows[:, None, node]
    return displacement


@lru_cache(maxsize=16)
def cubic_weights(size: int, nodes: int) -> np.ndarray:
    """How much each of `nodes` evenly spaced values counts at each of `size` pixels.

    Cubic convolution with Keys' condition at the border (IEEE Trans. ASSP 29(6), 1981, equations
    15 and 19 to 25): it passes through the nodes and reproduces quadratic functions.

    Returns:
      float32 [size, nodes], read-only; each row sums to 1.
    """
    if nodes < 3:
        raise ValueError(f"cubic interpolation needs at least 3 nodes, got {nodes}")
    # One more node beyond each end, which the border condition then expresses by the others.
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
