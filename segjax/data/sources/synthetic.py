"""Draws microscope pictures of touching, textured, noisy cells, with their instances."""

import cv2
import numpy as np

MIN_AREA = 40  # pixels; smaller remains of covered or cut-off cells are dropped


def synthetic_cells(
    rng: np.random.Generator,
    *,
    size: tuple[int, int] = (256, 256),
    radius: tuple[float, float] = (11.0, 22.0),
    coverage: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one picture of single and clustered cells that looks like phase contrast.

    Cells differ in shape, size, brightness and texture. Some are as bright as the background and
    differ from it only in texture and outline. A seam two pixels wide separates touching cells and
    shows as a thin line. The light is uneven, the lens adds blur, and the camera adds noise.

    Args:
      rng: the only source of randomness.
      size: height and width in pixels.
      radius: smallest and largest mean radius of a cell in pixels.
      coverage: the part of the picture to fill with cells, if there is room.

    Returns:
      The picture, uint8 [H, W, 1], and the instances, int32 [H, W]: 0 = background, 1..n = cells.
      Each cell is one 8-connected component of the foreground, so the foreground alone tells the
      cells apart.
    """
    instances = _part_touching(_place_cells(rng, size, radius, coverage))
    return _render(rng, instances)[..., None], instances


def _place_cells(rng, size, radius, coverage) -> np.ndarray:
    """Places cells until `coverage` is reached, most of them beside an earlier cell."""
    area = size[0] * size[1]
    centres, radii = np.empty((0, 2)), np.empty(0)
    owner = np.zeros(size, np.int32)
    nearest = np.ones(size, np.float32)  # distance from the centre, 1 at the outline
    for _ in range(int(6 * coverage * area / np.mean(radius) ** 2)):
        if np.count_nonzero(owner) >= coverage * area:
            break
        r = rng.uniform(*radius)
        if len(radii) and rng.random() < 0.75:
            beside = rng.integers(len(radii))
            angle = rng.uniform(0, 2 * np.pi)
            direction = np.array([np.sin(angle), np.cos(angle)])
            centre = centres[beside] + 0.92 * (r + radii[beside]) * direction
        else:
            centre = rng.uniform(0, size)
        distances = np.linalg.norm(centres - centre, axis=1) / (radii + r)
        # Neighbours either overlap a little, and so touch along a seam, or stay well apart.
        clashes = (distances < 0.85) | ((distances > 1.0) & (distances < 1.2))
        if clashes.any() or (centre < 0).any() or (centre >= size).any():
            continue
        centres, radii = np.vstack([centres, centre]), np.append(radii, r)
        _add_cell(rng, owner, nearest, centre, r, len(radii))
    return owner


def _add_cell(rng, owner, nearest, centre, r, number) -> None:
    """Draws a cell with a random outline, in place; contested pixels go to the nearer cell."""
    reach = 1.7 * r
    top, left = np.maximum(centre - reach, 0).astype(int)
    bottom, right = np.minimum(centre + reach, owner.shape).astype(int)
    window = np.s_[top:bottom, left:right]
    rows, columns = np.mgrid[window]
    dy, dx = rows - centre[0], columns - centre[1]
    angle = np.arctan2(dy, dx)
    outline = np.ones_like(angle)
    for wave, strength in ((2, 0.13), (3, 0.07), (4, 0.04), (5, 0.03)):
        outline += rng.normal(0, strength) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    distance = np.hypot(dy, dx) / (r * outline.clip(0.6, 1.6))
    mine = distance < nearest[window]
    owner[window][mine] = number
    nearest[window][mine] = distance[mine]


def _part_touching(owner: np.ndarray) -> np.ndarray:
    """Clears a seam between neighbours, keeps each cell's largest piece and renumbers the cells."""
    ids, kernel = owner.astype(np.float32), np.ones((3, 3), np.uint8)
    highest = cv2.dilate(ids, kernel)
    lowest = cv2.erode(np.where(ids > 0, ids, np.float32(np.inf)), kernel)
    parted = np.where((highest > ids) | (lowest < ids), 0, owner)
    _, pieces, statistics, _ = cv2.connectedComponentsWithStats(
        (parted > 0).astype(np.uint8), connectivity=8
    )
    _, first_pixels = np.unique(pieces, return_index=True)
    areas = np.asarray(statistics)[:, cv2.CC_STAT_AREA]
    largest = {}
    for piece in np.argsort(areas, kind="stable"):
        if piece and areas[piece] >= MIN_AREA:
            largest[parted.flat[int(first_pixels[piece])]] = piece
    numbers = np.zeros(len(areas), np.int32)
    numbers[sorted(largest.values())] = np.arange(1, len(largest) + 1)
    return numbers[np.asarray(pieces, np.int32)]


def _render(rng, instances: np.ndarray) -> np.ndarray:
    """Draws the image of the cells, uint8 [H, W]."""
    size = instances.shape
    count = instances.max() + 1
    cell = (instances > 0).astype(np.uint8)
    inside = cv2.distanceTransform(cell, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(1 - cell, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)

    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    light = rng.uniform(8, 25) * (np.sin(angle) * rows + np.cos(angle) * columns)
    image = rng.uniform(95, 125) + light + 7 * _texture(rng, size, 25) + 4 * _texture(rng, size, 3)

    def per_cell(values):
        return values.astype(np.float32)[instances] * cell

    brightness = rng.uniform(-10, 40, count)
    grain = rng.uniform(4, 13, count)
    nucleus = rng.normal(0, 12, count)
    deepest = np.ones(count, np.float32)
    np.maximum.at(deepest, instances.ravel(), inside.ravel())
    depth = inside / deepest[instances]
    image += per_cell(brightness) * (0.5 + 0.5 * depth)
    image += per_cell(grain) * _texture(rng, size, 1.3)
    image += per_cell(nucleus) / (1 + np.exp((0.55 - depth) / 0.05))
    image -= rng.uniform(22, 40) * np.exp(-(((inside - 1.5) / 1.2) ** 2)) * cell
    image += rng.uniform(20, 36) * np.exp(-outside / 2.5) * (1 - cell)

    image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), rng.uniform(0.6, 1.0))
    shot = rng.uniform(0.3, 0.6) * np.sqrt(image.clip(1))
    image += shot * rng.standard_normal(size) + rng.uniform(2, 6) * rng.standard_normal(size)
    return image.round().clip(0, 255).astype(np.uint8)


def _texture(rng, size: tuple[int, int], sigma: float) -> np.ndarray:
    """Smooth noise of unit standard deviation with grains of about `sigma` pixels."""
    noise = cv2.GaussianBlur(rng.standard_normal(size, np.float32), (0, 0), sigma)
    return noise / noise.std()
