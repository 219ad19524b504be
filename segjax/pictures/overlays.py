"""Pictures of images, labels, instances and errors.

Every picture is uint8 RGB [H, W, 3]. Label 255 means "ignored" and is drawn as a grey hatch, so
that nobody takes an unlabelled region for background.
"""

import os
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from segjax.files.atomic import write_bytes
from segjax.labels import IGNORE_LABEL
from segjax.pictures.canvas import captioned_row, fit, legend, resize_nearest, stack, title_rows
from segjax.pictures.colors import ERROR_COLORS, color_map, instance_colors

LEGEND_WIDTH = 320  # pixels; narrower pictures are widened


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Converts an image of any bands to uint8 RGB [H, W, 3], for looking at.

    One band is grey. Two bands are red and green. Of more than three bands, the first three are
    red, green and blue.

    Args:
        image: [H, W] or [H, W, bands], integers or floats. uint8 stays as it is. Floats within
            [0, 1] are scaled by 255. Other types are stretched linearly from their 0.5th to their
            99.5th percentile, because 12-bit cameras leave most of the 16 bits unused: images of
            one or three bands over all bands, which keeps colours, and others band by band, because
            the bands of an instrument may differ in scale. Non-finite values become black.

    Raises:
        ValueError: the image has another shape or type.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.size == 0:
        raise ValueError(f"expected an image [H, W] or [H, W, bands], got {image.shape}")
    if image.dtype.kind not in "iuf":
        raise ValueError(f"expected an image of integers or floats, got {image.dtype}")
    bands = image.shape[2]
    image = image[..., :3]
    if image.dtype != np.uint8:
        image = _stretch(image, band_by_band=bands not in (1, 3))
    if bands == 2:
        return np.pad(image, ((0, 0), (0, 0), (0, 1)))
    return np.repeat(image, 3, axis=2) if bands == 1 else image


def _stretch(image: np.ndarray, *, band_by_band: bool) -> np.ndarray:
    finite = np.isfinite(image)
    if image.dtype.kind == "f" and not ((image < 0) | (image > 1))[finite].any():
        limits = [(0.0, 1.0)]
    else:
        groups = np.moveaxis(image, 2, 0) if band_by_band else [image]
        limits = [_limits(group[np.isfinite(group)]) for group in groups]
    low, high = np.array(limits).T
    scaled = (np.where(finite, image, low).astype(np.float64) - low) / np.maximum(high - low, 1e-12)
    return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """The values that become black and white."""
    low, high = np.percentile(values, [0.5, 99.5]) if values.size else (0.0, 1.0)
    return float(low), float(high)


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    *,
    colors: np.ndarray | None = None,
    background: int | None = 0,
    alpha: float = 0.4,
    outline: int = 1,
) -> np.ndarray:
    """Returns the image with each class blended in its colour and outlined.

    Args:
        image: anything that `to_rgb` takes, [H, W] or [H, W, bands].
        labels: integers [H, W], 255 = ignored (hatched).
        colors: uint8 [classes, 3]; by default `color_map`.
        background: the class whose pixels show the image only; None paints all classes.
        alpha: opacity of the colour inside a region.
        outline: width in pixels of the opaque outline inside a region; 0 draws none.

    Raises:
        ValueError: the shapes differ, or a label has no colour.
    """
    picture, labels = to_rgb(image), _checked(labels, image)
    classes = labels[labels != IGNORE_LABEL]
    count = int(classes.max(initial=0)) + 1
    colors = color_map(count) if colors is None else np.asarray(colors, np.uint8)
    if count > len(colors) or classes.min(initial=0) < 0:
        raise ValueError(f"labels must lie in 0..{len(colors) - 1} or be 255, got {count - 1}")
    ignored = labels == IGNORE_LABEL
    painted = ~ignored if background is None else ~ignored & (labels != background)
    color = colors[np.where(painted, labels, 0)]
    picture = _paint(picture, color, painted, labels, alpha=alpha, outline=outline)
    return _hatch(picture, ignored)


def with_legend(
    picture: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    *,
    colors: np.ndarray | None = None,
    background: int | None = 0,
) -> np.ndarray:
    """Adds a legend below an overlay: the names and colours of the classes in it.

    Args:
        picture: uint8 [H, W, 3].
        labels: integers [H, W] that `overlay` has drawn.
        classes: names of the classes.
        colors, background: as in `overlay`.

    Returns:
        uint8 [H + legend, W', 3]. A narrow picture is widened on the right to `LEGEND_WIDTH`.
    """
    colors = color_map(len(classes)) if colors is None else colors
    seen: list[int] = sorted(set(np.unique(labels).tolist()) - {IGNORE_LABEL, background})
    width = max(picture.shape[1], LEGEND_WIDTH)
    # On large pictures, text is as large in proportion as on one of twice LEGEND_WIDTH.
    scale = max(1, round(width / (2 * LEGEND_WIDTH)))
    strip = legend("classes", {classes[i]: colors[i] for i in seen}, -(-width // scale))
    strip = np.kron(strip, np.ones((scale, scale, 1), np.uint8))[:, :width]
    margin = ((0, 0), (0, width - picture.shape[1]), (0, 0))
    return np.concatenate([np.pad(picture, margin, constant_values=255), strip])


def overlay_instances(
    image: np.ndarray, instances: np.ndarray, *, alpha: float = 0.35, outline: int = 1
) -> np.ndarray:
    """Returns the image with each instance in its own colour, outlined inside its border.

    Args:
        image: anything that `to_rgb` takes, [H, W] or [H, W, bands].
        instances: integers [H, W], 0 = background. Both outlines separate touching instances.
        alpha: opacity of the colour inside an instance.
        outline: width in pixels; 0 draws none.

    Raises:
        ValueError: the shapes differ.
    """
    picture, instances = to_rgb(image), _checked(instances, image)
    # Ids may exceed what float32 holds; indices do not.
    ids, index = np.unique(instances, return_inverse=True)
    index = index.reshape(instances.shape)
    return _paint(
        picture, instance_colors(ids)[index], instances != 0, index, alpha=alpha, outline=outline
    )


def _paint(picture, color, painted, regions, *, alpha, outline):
    blended = np.round((1 - alpha) * picture + alpha * color).astype(np.uint8)
    picture = np.where(painted[..., None], blended, picture)
    if outline:
        edge = painted & _edges(regions, outline)
        # Lightened, so that the outline stands out from its own fill and from a dark image.
        picture = np.where(edge[..., None], color // 4 * 3 + 63, picture)
    return picture.astype(np.uint8)


def _edges(regions: np.ndarray, width: int) -> np.ndarray:
    """Marks the pixels less than `width` steps (4-neighbours) from a pixel of another region."""
    values = regions.astype(np.float32)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    dilated = cv2.dilate(values, cross, iterations=width)
    return (dilated != values) | (cv2.erode(values, cross, iterations=width) != values)


def _hatch(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(where.shape)
    stripe = np.where((rows + columns) // 3 % 2, 150, 90)[..., None]
    hatched = ((picture.astype(np.int32) + 2 * stripe) // 3).astype(np.uint8)
    return np.where(where[..., None], hatched, picture)


def _checked(labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    labels, shape = np.asarray(labels), np.asarray(image).shape[:2]
    if labels.shape != shape or labels.dtype.kind not in "iu":
        got = f"{labels.dtype} {labels.shape}"
        raise ValueError(f"expected integer labels of the image's shape {shape}, got {got}")
    return labels


def errors(labels: np.ndarray, prediction: np.ndarray, *, background: int | None = 0) -> np.ndarray:
    """Draws where a prediction is right and how it is wrong, uint8 [H, W, 3].

    The colours are those of `ERROR_COLORS`. A false positive is foreground where the truth is
    background, and a false negative the reverse. "Wrong class" confuses two foreground classes.

    Args:
        labels: integers [H, W], 255 = ignored (grey).
        prediction: integers [H, W].
        background: the class that counts as empty. With None, a pixel is either "correct" or
            "wrong class".

    Raises:
        ValueError: the shapes differ.
    """
    labels, prediction = np.asarray(labels), _checked(prediction, labels)
    right = labels == prediction
    truth_empty, found_empty = (
        np.zeros(right.shape, bool) if background is None else array == background
        for array in (labels, prediction)
    )
    kinds = {
        "ignored": labels == IGNORE_LABEL,
        "background": right & truth_empty,
        "correct": right,
        "false positive": truth_empty,
        "false negative": found_empty,
    }
    names = [*kinds, "wrong class"]
    which = np.select(list(kinds.values()), range(len(kinds)), default=len(kinds))
    return np.array([ERROR_COLORS[name] for name in names], np.uint8)[which]


def panel(
    image: np.ndarray,
    labels: np.ndarray,
    prediction: np.ndarray,
    *,
    title: str = "",
    scores: Mapping[str, float] | None = None,
    classes: Sequence[str] | None = None,
    instances: np.ndarray | None = None,
    predicted_instances: np.ndarray | None = None,
    colors: np.ndarray | None = None,
    background: int | None = 0,
) -> np.ndarray:
    """Returns one row "image | truth | prediction | errors" with a title, scores and a legend.

    Before drawing, large images are reduced to 512 pixels on the longer side and small ones are
    enlarged by a whole number, so that outlines are one pixel wide at any size.

    Args:
        image: anything that `to_rgb` takes.
        labels: integers [H, W], 255 = ignored.
        prediction: integers [H, W].
        title: text above the row, followed by `scores`.
        scores: numbers by name, written with three decimals and NaN as "-".
        classes: names of the classes; the legend lists those in either map.
        instances, predicted_instances: integers [H, W], 0 = background; drawn instead of classes. A
            predicted instance has the colour of the true one that it covers.
        colors, background: see `overlay`.

    Raises:
        ValueError: shapes differ, or a label has no colour.
    """
    for array in (labels, prediction, instances, predicted_instances):
        if array is not None:
            _checked(array, image)
    if instances is not None and predicted_instances is not None:
        predicted_instances = _matched(predicted_instances, instances)
    image = fit(to_rgb(image))
    labels, prediction = (resize_nearest(array, image) for array in (labels, prediction))
    tiles = {"image": image}
    for name, drawn, ids in (
        ("truth", labels, instances),
        ("prediction", prediction, predicted_instances),
    ):
        if ids is None:
            tiles[name] = overlay(image, drawn, colors=colors, background=background)
        else:
            picture = overlay_instances(image, resize_nearest(ids, image))
            count = np.unique(ids[ids != 0]).size
            tiles[f"{name}: {count} instances"] = _hatch(picture, drawn == IGNORE_LABEL)
    tiles["errors"] = wrong = errors(labels, prediction, background=background)

    row = captioned_row(tiles)
    rows = [*title_rows(title, scores, row.shape[1]), row]
    if classes is not None and instances is None:
        colors = color_map(len(classes)) if colors is None else colors
        seen: set[int] = set(np.unique([labels, prediction]).tolist())
        seen -= {IGNORE_LABEL, background}
        entries = {classes[index]: colors[index] for index in sorted(seen)}
        rows.append(legend("classes", entries, row.shape[1]))
    kinds = {name: rgb for name, rgb in ERROR_COLORS.items() if (wrong == rgb).all(axis=2).any()}
    rows.append(legend("errors", kinds, row.shape[1]))
    return stack(rows)


def _matched(predicted: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Gives a prediction the id of the true instance it overlaps most, if free, else a new id.

    So a found cell has one colour in both pictures. If a cell is split, its largest piece has it.
    """
    both = (predicted != 0) & (instances != 0)
    pairs, overlaps = np.unique(
        np.stack([predicted[both], instances[both]]), axis=1, return_counts=True
    )
    ids, next_id = {0: 0}, int(instances.max(initial=0)) + 1
    for found, true in pairs[:, np.argsort(-overlaps, kind="stable")].T.tolist():
        if found not in ids and true not in ids.values():
            ids[found] = true
    found = np.unique(predicted)
    for index in found.tolist():
        if index not in ids:
            ids[index], next_id = next_id, next_id + 1
    return np.array([ids[index] for index in found.tolist()])[np.searchsorted(found, predicted)]


def write_png(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Writes a PNG: RGB [H, W, 3] uint8, or one channel [H, W] uint8 or uint16 (a label image).

    The file appears whole or not at all, so that a killed run leaves no broken pictures. Folders
    are made as needed.
    """
    picture = np.asarray(picture)
    encoded = cv2.imencode(".png", picture[..., ::-1] if picture.ndim == 3 else picture)[1]
    write_bytes(path, encoded.tobytes())
