"""Merges the detections in several views of an image: scales and mirror images.

detectron2's GeneralizedRCNNWithTTA merges the boxes of all views, then predicts their masks again
in every view. Here each view is predicted once and on its own, so that views are batched like
different images. The masks that the views found themselves are averaged.
"""

from collections.abc import Mapping, Sequence

import numpy as np

# Boxes of at least this IoU are the same object seen in different views. At 0.5, the usual
# threshold of suppression, they may be an object and a part of it.
_SAME_OBJECT = 0.7


def to_original_frame(
    view: Mapping[str, np.ndarray],
    *,
    view_size: Sequence[int],
    size: Sequence[int],
    mirrored: bool = False,
) -> dict[str, np.ndarray]:
    """Maps the detections in a view back to the frame of the image.

    Args:
      view: "boxes" [n, 4] and "masks" [n, h, w] in the frames of the boxes; other entries are
        kept as they are.
      view_size: height and width of the resized image, without padding.
      size: height and width of the image.
      mirrored: whether left and right were swapped after resizing.

    Returns:
      The same entries in the frame of the image; boxes are float32 and cut at its border.
    """
    (height, width), scale = size, np.divide(size, view_size)
    x_min, y_min, x_max, y_max = np.asarray(view["boxes"], np.float64).T
    masks = np.asarray(view["masks"])
    if mirrored:
        x_min, x_max = view_size[1] - x_max, view_size[1] - x_min
        masks = masks[:, :, ::-1]
    x = np.clip(np.stack([x_min, x_max]) * scale[1], 0, width)
    y = np.clip(np.stack([y_min, y_max]) * scale[0], 0, height)
    boxes = np.stack([x[0], y[0], x[1], y[1]], axis=1).astype(np.float32)
    return {**view, "boxes": boxes, "masks": masks}


def merge_views(
    views: Sequence[Mapping[str, np.ndarray]], *, iou_threshold: float, max_detections: int
) -> dict[str, np.ndarray]:
    """Merges detections of one image in several views, all in the frame of the image.

    A box is suppressed if its IoU with a kept box of its class and of higher score, in any view, is
    above `iou_threshold`. The mask of a kept detection is averaged with at most one mask from each
    other view: the mask of the suppressed detection with the largest IoU, if that is at least 0.7.
    It is resampled to the frame of the kept box.

    Args:
      views: each has "boxes" [n, 4], "scores" [n], "classes" [n] and "masks" [n, h, w],
        probabilities in the frames of the boxes; n may differ and may be 0.
      max_detections: the most detections to keep, those with the highest scores.

    Returns:
      "boxes" float32 [d, 4], "scores" float32 [d] descending, "classes" int32 [d], "masks" float32
      [d, h, w]. Ties go to the earlier view.

    Raises:
      ValueError: `views` is empty.
    """
    if not views:
        raise ValueError("expected the detections in at least one view, found none")
    boxes, scores, classes, masks = (
        np.concatenate([np.asarray(view[name], dtype) for view in views])
        for name, dtype in (
            *(("boxes", np.float32), ("scores", np.float32)),
            *(("classes", np.int32), ("masks", np.float32)),
        )
    )
    view_of = np.repeat(np.arange(len(views)), [len(view["scores"]) for view in views])
    kept, averaged = [], []
    for index, others, overlaps in _suppress(boxes, scores, classes, iou_threshold):
        kept.append(index)
        averaged.append(_average_mask(index, others, overlaps, boxes, masks, view_of))
        if len(kept) == max_detections:
            break
    return {
        "boxes": boxes[kept],
        "scores": scores[kept],
        "classes": classes[kept],
        "masks": np.stack(averaged) if kept else masks[:0],
    }


def _suppress(boxes, scores, classes, iou_threshold):
    """Yields each kept index by descending score, the indices it suppresses and their IoU."""
    left = np.argsort(-scores, kind="stable")
    while left.size:
        index, left = left[0], left[1:]
        overlaps = np.where(classes[left] == classes[index], _iou(boxes[index], boxes[left]), 0)
        gone = overlaps > iou_threshold
        yield index, left[gone], overlaps[gone]
        left = left[~gone]


def _iou(box, boxes) -> np.ndarray:
    """Computes the IoU of a box [4] with boxes [n, 4]; 0 if both are empty."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    intersection = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    return intersection / np.maximum(areas - intersection, np.finfo(np.float32).tiny)


def _average_mask(index, others, overlaps, boxes, masks, view_of) -> np.ndarray:
    total, views = masks[index].copy(), {view_of[index]}
    for place in np.argsort(-overlaps, kind="stable"):
        other = others[place]
        if overlaps[place] >= _SAME_OBJECT and view_of[other] not in views:
            views.add(view_of[other])
            total += _resample(masks[other], boxes[other], boxes[index])
    return total / len(views)


def _resample(mask, mask_box, box) -> np.ndarray:
    """Resamples a mask [h, w] from the frame of `mask_box` to `box`: bilinear, zero outside."""
    rows, columns = (
        _weights(box[side::2], mask_box[side::2], mask.shape[1 - side]) for side in (1, 0)
    )
    return rows @ mask @ columns.T


def _weights(target, source, count) -> np.ndarray:
    """Computes bilinear weights [target cells, source cells] between intervals of `count` cells."""
    centres = target[0] + (np.arange(count) + 0.5) / count * (target[1] - target[0])
    positions = (centres - source[0]) / (source[1] - source[0]) * count - 0.5
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(count))).astype(np.float32)
