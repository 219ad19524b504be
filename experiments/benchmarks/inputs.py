"""The inputs that both sides of a comparison read, drawn by NumPy from fixed seeds."""

import numpy as np

IGNORE_LABEL = 255


def images(batch: int, size: tuple[int, int], channels: int) -> np.ndarray:
    """Draws normalised images, float32 [batch, height, width, channels]."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, *size, channels)).astype(np.float32)


def labels(batch: int, size: tuple[int, int], num_classes: int) -> np.ndarray:
    """Draws labels in 16 × 16 blocks, a tenth of them ignored: int32 [batch, height, width]."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, num_classes, (batch, *(-(-side // 16) for side in size)))
    coarse[rng.random(coarse.shape) < 0.1] = IGNORE_LABEL
    fine = coarse.repeat(16, axis=1).repeat(16, axis=2)
    return fine[:, : size[0], : size[1]].astype(np.int32)


def objects(batch: int, size: tuple[int, int], count: int, num_classes: int) -> dict:
    """Draws objects that are ellipses within their boxes.

    Returns:
      "boxes" float32 [batch, count, 4], "classes" int32 [batch, count] from 1, "masks" uint8
      [batch, count, height, width] of 0 and 1.
    """
    rng = np.random.default_rng(2)
    height, width = size
    extent = rng.uniform(0.1, 0.5, (batch, count, 2)) * (width, height)
    corner = rng.random((batch, count, 2)) * ((width, height) - extent)
    boxes = np.concatenate([corner, corner + extent], axis=2).astype(np.float32)
    y, x = np.mgrid[:height, :width] + 0.5
    centre, radius = (corner + extent / 2)[..., None, None, :], extent[..., None, None, :] / 2
    distance = ((x - centre[..., 0]) / radius[..., 0]) ** 2
    distance = distance + ((y - centre[..., 1]) / radius[..., 1]) ** 2
    return {
        "boxes": boxes,
        "classes": rng.integers(1, num_classes, (batch, count)).astype(np.int32),
        "masks": (distance <= 1).astype(np.uint8),
    }


def boxes_and_scores(count: int, size: tuple[int, int] = (800, 1333)) -> tuple:
    """Draws clustered boxes, like those of a region proposal network, float32 [count, 4], [count].

    Each cluster of 20 stands for an object. About one box in ten survives suppression at 0.5.
    """
    rng = np.random.default_rng(3)
    height, width = size
    clusters = -(-count // 20)
    centre = rng.random((clusters, 2)) * (width, height)
    extent = np.exp(rng.uniform(np.log(16), np.log(400), (clusters, 2)))
    centre, extent = (x.repeat(20, axis=0)[:count] for x in (centre, extent))
    centre = centre + rng.normal(0, 0.1, centre.shape) * extent
    extent = extent * np.exp(rng.normal(0, 0.15, extent.shape))
    boxes = np.concatenate([centre - extent / 2, centre + extent / 2], axis=1)
    boxes = boxes.clip(0, (width, height, width, height))
    return boxes.astype(np.float32), rng.random(count).astype(np.float32)


def pyramid(size: tuple[int, int], channels: int, levels: int = 4) -> list[np.ndarray]:
    """Draws maps of strides 4, 8, …: float32 [1, height / stride, width / stride, channels]."""
    rng = np.random.default_rng(4)
    strides = [4 * 2**level for level in range(levels)]
    shapes = [(1, *(-(-side // stride) for side in size), channels) for stride in strides]
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def proposals(count: int, size: tuple[int, int] = (800, 1333)) -> np.ndarray:
    """Draws boxes for every level of a pyramid, float32 [count, 4].

    They are those of `boxes_and_scores`, with every tenth one enlarged four times along each axis.
    """
    boxes, _ = boxes_and_scores(count, size)
    low, high = boxes[::10, :2], boxes[::10, 2:]
    grown = np.concatenate([low - 1.5 * (high - low), high + 1.5 * (high - low)], axis=1)
    height, width = size
    boxes[::10] = grown.clip(0, (width, height, width, height))
    return boxes


def predicted_masks(count: int, size: tuple[int, int], side: int = 28) -> tuple:
    """Draws a mask head's output: probabilities of round shapes, and boxes.

    Returns:
      float32 [count, side, side] and [count, 4]; one box per cluster of `boxes_and_scores`.
    """
    rng = np.random.default_rng(5)
    y, x = (np.mgrid[:side, :side] + 0.5) / side * 2 - 1
    phase, lobes = rng.uniform(0, 2 * np.pi, (count, 1, 1)), rng.integers(2, 7, (count, 1, 1))
    border = 0.8 + 0.15 * np.sin(lobes * np.arctan2(y, x) + phase)
    probabilities = 1 / (1 + np.exp(10 * (np.hypot(x, y) - border)))
    boxes = boxes_and_scores(20 * count, size)[0][::20]  # one per cluster
    return probabilities.astype(np.float32), boxes


def convolution(batch: int, side: int, channels: int, features: int, groups: int) -> tuple:
    """Draws inputs [batch, side, side, channels], a kernel [3, 3, channels / groups, features]."""
    rng = np.random.default_rng(6)
    inputs = rng.standard_normal((batch, side, side, channels), np.float32)
    kernel = rng.standard_normal((3, 3, channels // groups, features), np.float32)
    return inputs, kernel * np.float32(0.01)
