"""Pictures of objects: masks, boxes, and labels with names and scores.

Every picture is uint8 RGB [H, W, 3].
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from segjax.coco import run_lengths as rle
from segjax.coco.masks import paste_mask
from segjax.pictures.canvas import captioned_row, fit, resize_nearest, stack, title_rows
from segjax.pictures.colors import instance_colors
from segjax.pictures.overlays import to_rgb

_FONT = cv2.FONT_HERSHEY_SIMPLEX
CROWD_COLOR = np.array((150, 150, 150), np.uint8)
_UNIT = 800  # outlines are one pixel wide for each 800 pixels of the longer side
_READABLE_SIDE = 512  # pixels; a picture whose longer side is shorter is enlarged
_MANY = 30  # with more objects, a label may cover at most half of its box
_MATCHING_SIDE = 128  # pixels; masks are reduced to this to match predictions with the truth


def draw_detections(
    image: np.ndarray,
    *,
    boxes: np.ndarray,
    classes: np.ndarray,
    class_names: Sequence[str],
    scores: np.ndarray | None = None,
    masks: Sequence | None = None,
    colors: np.ndarray | None = None,
    alpha: float = 0.4,
) -> np.ndarray:
    """Returns the image with each object's mask, outline, box and a label such as "cat 0.97".

    Small objects are drawn over large ones. Labels never overlap; those of the highest scores are
    placed first. A label without room loses its name, then is left out. With more than 30 objects,
    a label may cover at most half of its box.

    Args:
        image: anything that `to_rgb` takes.
        boxes: [n, 4], [x_min, y_min, x_max, y_max] in pixels of the image.
        classes: integers [n], indices of `class_names`.
        class_names: names of the classes, the background first.
        scores: [n]; None for true objects, which have none.
        masks: n run lengths (`segjax.coco.run_lengths`) or arrays, bool [H, W]; None draws boxes
          only.
        colors: uint8 [n, 3]; by default each object has its own.
        alpha: opacity of the colour inside a mask.

    Returns:
        The picture in the image's size. An image below 512 pixels on its longer side is enlarged
        by a whole number, so that labels can be read.

    Raises:
        ValueError: numbers or sizes do not agree, or a class has no name.
    """
    rgb = to_rgb(image)
    factor = -(-_READABLE_SIDE // max(rgb.shape[:2]))
    picture = rgb.repeat(factor, axis=0).repeat(factor, axis=1)
    labels = _labels(classes, class_names, scores)
    colors = new_colors(len(labels)) if colors is None else colors
    boxes = _scaled(boxes, rgb, picture)
    if not len(boxes) == len(labels) == len(colors) == len(labels if masks is None else masks):
        count = "no" if masks is None else len(masks)
        raise ValueError(
            f"expected as many boxes as classes, masks and colors, found {len(boxes)} boxes, "
            f"{len(labels)} classes, {count} masks and {len(colors)} colors"
        )
    order = np.arange(len(labels)) if scores is None else np.argsort(-np.asarray(scores))

    # Decoded one at a time: hundreds of masks of a large image would not fit into memory.
    drawn = None if masks is None else lambda index: _fitted(masks[index], rgb, picture)
    return _draw(picture, boxes, drawn, labels, colors, order.tolist(), alpha)


def instance_panel(
    example: Mapping,
    prediction: Mapping,
    *,
    class_names: Sequence[str],
    title: str = "",
    scores: Mapping[str, float] | None = None,
    minimum_score: float = 0.5,
) -> np.ndarray:
    """Returns one row "image | truth | prediction" with a title and scores.

    Before drawing, large images are reduced to 512 pixels on the longer side and small ones are
    enlarged by a whole number. A prediction has the colour of the true object that it covers best;
    crowds are grey.

    Args:
        example: "image", "boxes", "classes", "masks" (n objects with `top`, `left` and `pixels`)
            and "crowd".
        prediction: "boxes", "scores", "classes" and "masks" (run lengths).
        class_names: names of the classes, the background first.
        title: text above the row, followed by `scores`.
        scores: numbers by name, written with three decimals and NaN as "-".
        minimum_score: lowest score of the detections that are drawn.
    """
    rgb = to_rgb(example["image"])
    picture = fit(rgb)
    crowd = np.asarray(example["crowd"], bool)
    true_masks = [
        _fitted(paste_mask(mask, rgb.shape[:2]), rgb, picture) for mask in example["masks"]
    ]
    true_colors = new_colors(len(crowd))
    true_colors[crowd] = CROWD_COLOR
    names = _labels(example["classes"], class_names, None)
    names = [f"{name} (crowd)" if c else name for name, c in zip(names, crowd, strict=True)]

    shown = np.flatnonzero(np.asarray(prediction["scores"]) >= minimum_score)
    found_scores = np.asarray(prediction["scores"])[shown]
    masks = [_fitted(prediction["masks"][index], rgb, picture) for index in shown]
    labels = _labels(np.asarray(prediction["classes"])[shown], class_names, found_scores)
    boxes = _scaled(np.asarray(prediction["boxes"]).reshape(-1, 4)[shown], rgb, picture)
    colors = _matched_colors(masks, true_masks, true_colors, crowd)

    true_boxes = _scaled(example["boxes"], rgb, picture)
    truth = (true_boxes, true_masks.__getitem__, names, true_colors)
    found = (boxes, masks.__getitem__, labels, colors)
    row = captioned_row(
        {
            "image": picture,
            f"truth: {np.count_nonzero(~crowd)} objects": _draw(
                picture.copy(), *truth, range(len(names)), 0.4
            ),
            f"prediction: {len(shown)} of score {minimum_score:g} or more": _draw(
                picture.copy(), *found, np.argsort(-found_scores).tolist(), 0.4
            ),
        }
    )
    return stack([*title_rows(title, scores, row.shape[1]), row])


def new_colors(count, *, after=0) -> np.ndarray:
    """Returns the colours of `count` objects, numbered from after + 1: uint8 [count, 3]."""
    return instance_colors(np.arange(after, after + count + 1))[1:]


def _labels(classes, class_names, scores) -> list[str]:
    classes = np.asarray(classes)
    if classes.size and (classes.min() < 0 or classes.max() >= len(class_names)):
        raise ValueError(
            f"expected classes in 0..{len(class_names) - 1}, found "
            f"{classes.min()} to {classes.max()}"
        )
    names = [class_names[index] for index in classes.tolist()]
    if scores is None:
        return names
    return [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]


def _fitted(mask, image, picture) -> np.ndarray:
    """Decodes a mask of the image and resizes it to the picture, bool."""
    mask = rle.decode(mask) if isinstance(mask, Mapping) else np.asarray(mask, bool)
    if mask.shape != image.shape[:2]:
        raise ValueError(f"expected masks of the image's size {image.shape[:2]}, got {mask.shape}")
    return mask if image.shape == picture.shape else resize_nearest(mask, picture)


def _scaled(boxes, image, picture) -> np.ndarray:
    scale = np.divide(picture.shape[1::-1], image.shape[1::-1])
    return np.asarray(boxes, np.float64).reshape(-1, 4) * np.tile(scale, 2)


def _draw(picture, boxes, mask_of, labels, colors, order, alpha) -> np.ndarray:
    """Draws objects into a picture, labels in the given `order`.

    `mask_of` returns an object's mask in the picture's size; None draws boxes only.
    """
    unit = max(1, round(max(picture.shape[:2]) / _UNIT))
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for index in np.argsort(-areas, kind="stable"):
        color = colors[index].tolist()
        if mask_of is not None:
            _paint(picture, mask_of(index), color, alpha, unit)
        x_min, y_min, x_max, y_max = np.round(boxes[index]).astype(int).tolist()
        # Corner pixels: the last row and column are still inside the box.
        corners = (x_min, y_min), (max(x_min, x_max - 1), max(y_min, y_max - 1))
        cv2.rectangle(picture, *corners, color, unit)
    taken = []
    for index in order:
        for text in dict.fromkeys([labels[index], labels[index].rpartition(" ")[2]]):
            place = _find_place(text, boxes[index], picture.shape, unit, taken)
            limit = areas[index] / 2 if len(boxes) > _MANY else np.inf
            if place is not None and (place[2] - place[0]) * (place[3] - place[1]) <= limit:
                taken.append(place)
                _write(picture, text, place, colors[index], unit)
                break
    return picture


def _paint(picture, mask, color, alpha, unit) -> None:
    """Blends the colour into a mask and draws an outline inside it, in place."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    window = np.s_[y : y + height, x : x + width]
    inside, part = mask[window].astype(np.uint8), picture[window]
    if not inside.size:
        return
    core = cv2.erode(
        np.pad(inside, unit), np.ones((3, 3), np.uint8), iterations=unit, borderValue=0
    )[unit:-unit, unit:-unit]
    blended = np.round((1 - alpha) * part + alpha * np.array(color)).astype(np.uint8)
    part[:] = np.where(inside[..., None] > 0, blended, part)
    # Lightened, so that the outline stands out from its own fill and from a dark image.
    part[(inside > 0) & (core == 0)] = np.array(color) // 4 * 3 + 63


def _text_size(text, unit) -> tuple[int, int, int]:
    (width, height), below = cv2.getTextSize(text, _FONT, 0.4 * unit, unit)
    return width, height, below


def _find_place(text, box, shape, unit, taken) -> tuple[int, int, int, int] | None:
    """Finds a place for a label's plate (left, top, right, bottom) at the box, off other plates."""
    width, height, below = _text_size(text, unit)
    width, height = width + 4 * unit, height + below + 2 * unit
    x_min, y_min, x_max, y_max = np.round(box).astype(int).tolist()
    right = x_max - width
    for left, top in (
        *((x_min, y_min - height), (x_min, y_min), (right, y_min - height)),
        *((x_min, y_max), (x_min, y_max - height), (right, y_max), (right, y_min)),
    ):
        left = max(0, min(left, shape[1] - width))
        top = max(0, min(top, shape[0] - height))
        plate = (left, top, left + width, top + height)
        if plate[2] > shape[1] or plate[3] > shape[0]:
            return None
        if not any(
            plate[0] < r and left < plate[2] and plate[1] < b and t < plate[3] and left < r
            for left, t, r, b in taken
        ):
            return plate
    return None


def _write(picture, text, place, color, unit) -> None:
    left, top, right, bottom = place
    picture[top:bottom, left:right] = color
    bright = np.dot(color, (0.299, 0.587, 0.114)) > 140
    below = _text_size(text, unit)[2]
    origin = (left + 2 * unit, bottom - below - unit + unit // 2)
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(picture, text, origin, _FONT, 0.4 * unit, ink, unit, cv2.LINE_AA)


def _matched_colors(masks, true_masks, true_colors, crowd) -> np.ndarray:
    """Gives each mask the colour of the true object it covers best, if free, else a new one."""
    colors = new_colors(len(masks), after=len(true_masks))
    true_places = np.flatnonzero(~crowd)
    if not masks or not true_places.size:
        return colors
    found, true = (
        np.stack([_reduced(mask).ravel() for mask in group]).astype(np.float32)
        for group in (masks, [true_masks[place] for place in true_places])
    )
    both = found @ true.T
    union = found.sum(1)[:, None] + true.sum(1) - both
    overlap = both / np.maximum(union, 1)
    while overlap.max() > 0.25:
        row, column = np.unravel_index(overlap.argmax(), overlap.shape)
        colors[row] = true_colors[true_places[column]]
        overlap[row], overlap[:, column] = 0, 0
    return colors


def _reduced(mask) -> np.ndarray:
    step = -(-max(mask.shape) // _MATCHING_SIDE)
    return mask[::step, ::step]
