"""Warping error (Jain et al., "Boundary Learning by Optimization with Topological Constraints",
CVPR 2010): the disagreement that remains after the truth is deformed towards the prediction.

The truth maps cell interiors (1) and membranes (0). As in the ISBI 2012 challenge, cells are
4-connected and membranes 8-connected, so that even a diagonal membrane of one pixel separates two
cells. Where the paper leaves a choice, we follow the challenge's published program (WarpingError in
Fiji's trainableSegmentation.metrics; we took facts, no code).
"""

import cv2
import numpy as np

from segjax.evaluation.roc import check_probabilities

# Offsets (row, column) of the 8 neighbours, counter-clockwise from the right; bit k of a
# neighbourhood code is neighbour k.
_RING = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def warping_error(
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    threshold: float = 0.5,
    mask: np.ndarray | None = None,
) -> float:
    """Computes the warping error: the share of pixels where the warped truth still disagrees.

    A membrane that is wider, or displaced by no more than its width, costs nothing. Warping cannot
    follow a larger displacement, because only disagreeing pixels are flipped. The challenge's table
    counts only some of these pixels: see `split_merge_counts`. Arguments and errors are those of
    `warp_truth`.
    """
    warped = warp_truth(truth, prediction, threshold=threshold, mask=mask)
    return float(np.mean(warped != (np.asarray(prediction) > threshold)))


def warp_truth(
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    threshold: float = 0.5,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Warps the truth towards the thresholded prediction without changing its topology.

    Flips disagreeing pixels that are simple. A pixel is simple if its flip neither creates,
    deletes, splits nor merges a 4-connected cell or an 8-connected membrane (everything beyond the
    image is membrane). Pixels are tried by falling |prediction − threshold|, ties column by column
    as in the challenge's program, until none can be flipped. This descent (section 2 of the paper)
    ends in a local minimum of the disagreement; no efficient way to the global one is known.

    Args:
      truth: bool or 0/1, [height, width].
      prediction: bool, 0/1 or probabilities of cell interior, [height, width]; cells are where it
        exceeds `threshold`.
      mask: bool [height, width], the pixels that may be flipped (the paper's geometric constraint),
        for instance all within some distance of a true membrane. Disagreement elsewhere is an
        error. By default all may be flipped, as in the challenge.

    Returns:
      The warped truth, bool [height, width].

    Raises:
      ValueError: shapes differ or are not 2-D, truth is not binary, a prediction is outside
        [0, 1], or mask is not bool.
    """
    truth, prediction = checked_maps(truth, prediction)
    flippable = truth != (prediction > threshold)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != truth.shape:
            raise ValueError(f"mask must be bool {truth.shape}, not {mask.dtype} {mask.shape}")
        flippable &= mask
    columns, rows = np.nonzero(flippable.T)
    confidence = np.abs(prediction[rows, columns].astype(np.float64) - threshold)
    order = np.argsort(-confidence, kind="stable")
    stride = truth.shape[1] + 2
    queue = ((rows[order] + 1) * stride + columns[order] + 1).tolist()

    # A flip changes one bit in the code of each neighbour. With current codes, one look-up tells
    # whether a pixel is simple, and plain Python suffices (tens of milliseconds for 512×512).
    codes = bytearray(_neighbourhood_codes(truth).tobytes())
    updates = [(row * stride + column, 1 << (k + 4) % 8) for k, (row, column) in enumerate(_RING)]
    flipped = []
    while True:
        blocked = []
        for pixel in queue:
            if _IS_SIMPLE[codes[pixel]]:
                flipped.append(pixel)
                for offset, bit in updates:
                    codes[pixel + offset] ^= bit
            else:
                blocked.append(pixel)
        if len(blocked) == len(queue):
            break
        queue = blocked
    warped = np.pad(truth, 1)
    warped.ravel()[flipped] ^= True
    return warped[1:-1, 1:-1]


def split_merge_counts(
    warped: np.ndarray, predicted_cells: np.ndarray, *, radius: int = 20
) -> tuple[int, int]:
    """Counts the disagreeing pixels whose flip would split or merge cells of the warped truth.

    Their share of all pixels is the warping error of the challenge's table ("minimum splits and
    mergers"). It leaves out pixels that add or delete a hole or a whole cell. The rules are those
    of the challenge's program. A pixel whose 8 neighbours belong to two or more cells is a merge in
    a membrane and a split in a cell. A cell pixel whose neighbours belong to one cell is a split if
    without it they belong to two or more, as seen in the square of side 2·radius + 1 around it.

    Args:
      warped: bool [height, width], from `warp_truth`.
      predicted_cells: bool [height, width], the thresholded prediction.

    Returns:
      (pixels that split, pixels that merge).
    """
    rows, columns = np.nonzero(warped != predicted_cells)
    cells = np.pad(connected_cells(warped), 1)
    neighbours = np.stack([cells[rows + 1 + row, columns + 1 + column] for row, column in _RING])
    between = _distinct_cells(neighbours) >= 2
    is_cell = warped[rows, columns]
    merges = np.sum(~is_cell & between)
    splits = np.sum(is_cell & between)
    padded = np.pad(warped, radius).astype(np.uint8)
    side = 2 * radius + 1
    undecided = is_cell & ~between & (neighbours > 0).any(0) & (neighbours == 0).any(0)
    for row, column in zip(rows[undecided], columns[undecided], strict=True):
        window = padded[row : row + side, column : column + side].copy()
        window[radius, radius] = 0
        around = connected_cells(window)[radius - 1 : radius + 2, radius - 1 : radius + 2]
        splits += _distinct_cells(around.ravel()) >= 2
    return int(splits), int(merges)


def connected_cells(cells: np.ndarray) -> np.ndarray:
    """Labels the 4-connected components of a bool map from 1, int32; 0 is membrane."""
    return cv2.connectedComponents(cells.astype(np.uint8), connectivity=4)[1]


def checked_maps(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns truth as bool, and prediction, after checking that they can be compared.

    Raises:
      ValueError: shapes differ or are not 2-D, truth is not binary, or a prediction is outside
        [0, 1].
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.ndim != 2 or truth.shape != prediction.shape:
        raise ValueError(
            "truth and prediction must have one shape [height, width], not "
            f"{truth.shape} and {prediction.shape}"
        )
    strange = (truth != 0) & (truth != 1)
    if strange.any():
        raise ValueError(
            f"truth must be 1 (cell) or 0 (membrane), found {truth[strange][0]}; "
            "the challenge's files have 255 for cells: pass truth > 0"
        )
    check_probabilities(prediction, "prediction")
    return truth.astype(bool), prediction


def _distinct_cells(ids: np.ndarray) -> np.ndarray:
    """Counts the distinct ids above 0 along the first axis."""
    ids = np.sort(ids, axis=0)
    return (ids[0] > 0) + ((ids[1:] > 0) & (ids[1:] != ids[:-1])).sum(0)


def _neighbourhood_codes(cells: np.ndarray) -> np.ndarray:
    """Packs each pixel's 8 neighbours into a byte, uint8 [height + 2, width + 2]."""
    around = np.pad(cells, 2).astype(np.uint8)
    height, width = around.shape
    codes = np.zeros((height - 2, width - 2), np.uint8)
    for k, (row, column) in enumerate(_RING):
        codes |= around[1 + row : height - 1 + row, 1 + column : width - 1 + column] << k
    return codes


def _simple_neighbourhoods() -> bytes:
    """Tabulates for each neighbourhood code whether its centre is simple (1) or not (0).

    The centre is simple exactly if the 4-connectivity number, Σ x_k − x_k·x_(k+1)·x_(k+2) over the
    four nearest neighbours k, is 1 (Yokoi, Toriwaki and Fukumura, 1975): one cell touches it, once.
    """
    neighbours = np.arange(256)[:, None] >> np.arange(8) & 1
    after, second = np.roll(neighbours, -1, axis=1), np.roll(neighbours, -2, axis=1)
    number = (neighbours - neighbours * after * second)[:, ::2].sum(1)
    return bytes((number == 1).tolist())


_IS_SIMPLE = _simple_neighbourhoods()
