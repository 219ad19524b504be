"""The contract between data and training: what a source is, and what its examples hold."""

from typing import Any, Protocol

import numpy as np

from segjax.labels import IGNORE_LABEL

# The value of each known map outside the image: no label, no cell, no weight, not seen. Any other
# map is 0 there.
VALUE_OUTSIDE = {
    "labels": IGNORE_LABEL,
    "second_observer": IGNORE_LABEL,
    "instances": 0,
    "weights": 0,
    "field_of_view": 0,
}
OBJECTS = ("boxes", "classes", "masks", "crowd", "areas")  # entries with a row for each object
# Optional entries with a row for each object. Those as annotated are for scores only.
OPTIONAL_OBJECTS = ("has_mask", "annotated_boxes", "annotated_areas")
# The known entries that enter a batch, and their types there. "size" and "dropped" come from
# `PackObjects`.
BATCH_DTYPES = {
    "image": np.float32,
    "labels": np.int32,
    "weights": np.float32,
    "instances": np.int32,
    "size": np.int32,
    "boxes": np.float32,
    "classes": np.int32,
    "masks": np.uint8,
    "has_mask": np.bool_,
    "dropped": np.int32,
}
# The known entries that only transforms, evaluation and messages read.
NOT_IN_BATCH = (
    "id",
    "image_id",
    "second_observer",
    "field_of_view",
    "crowd",
    "areas",
    "annotated_boxes",
    "annotated_areas",
    "portrait",
)
ADDED_TO_BATCH = ("index", "normalizer")  # by the loader and by the semantic task


class Source(Protocol):
    """Examples by index: any object with `__len__` and `__getitem__`, such as a list of dicts.

    An example is a dict of NumPy arrays, numbers and strings. H and W are the height and width of
    its image; images may differ in size. Labels and objects belong to the image as it is there;
    `segjax.data.orientation` says how segjax reads files with an EXIF orientation.

    Semantic segmentation needs "image" and "labels":

    - "image": [H, W, C], with C as in `Splits.channels`; colours are RGB. The DeepLab and Mask
      R-CNN recipes take uint8; the U-Net recipes standardise uint8, uint16 or float32.
    - "labels": integers [H, W], class ids from 0 to 254; 255 = ignored.
    - "weights", optional: float [H, W], the weight of each pixel in the cross-entropy. A recipe
      that computes weights itself replaces them.
    - "instances", optional: integers [H, W], the id of the cell at each pixel, 0 = none. The weight
      map and the scores of separate cells need it.
    - "field_of_view", optional: bool [H, W]; some scores count only pixels inside it.

    Instance segmentation needs "image" with 1 or 3 channels, and of n objects:

    - "boxes": float32 [n, 4], [x_min, y_min, x_max, y_max] in pixels, within the image and with a
      positive width and height.
    - "classes": int32 [n], from 1 on; 0 is the background.
    - "masks": a tuple of n `segjax.data.instance_masks.CroppedMask`; `crop_mask` makes one.
    - "crowd": bool [n], groups that nobody told apart: not trained on, ignored in scores.
    - "areas": float32 [n], pixels of each object.
    - "has_mask", optional: bool [n], False for objects with a box only. They train class and box
      but not the mask, and scores of masks ignore them; the mask of such an object is its box.
    - "annotated_boxes" and "annotated_areas", optional: float64 [n, 4] and [n], [x, y, width,
      height] and pixels as annotated, which COCO's scores count.

    `segjax.data.sources.splits.as_objects` computes them from "labels" and "instances". It and
    batches of two orientations read two optional attributes of the source: `object_counts`, int
    [len], the objects of each example without crowds, and `sizes`, int [len, 2], the height and
    width of each image.

    Training asks a source that has the method `file_problems() -> dict[int, str]` what is wrong
    with the files of its examples, before the first step; it reads headers only.

    Optional in any example are "id", a string unique in its split (by default the index), and
    "image_id", an integer or a text for results in COCO's format.

    Every other entry is an extra one. It goes through transforms and loader into the batch, for a
    loss term to read, and in evaluation to the metrics. Its number of dimensions says what it is:

    - An array of two or more dimensions is a map over the image, [H, W, ...]. It moves with the
      image: floats are interpolated, integers and bools take the nearest pixel. Outside the image
      it is 0.
    - A number or a vector is passed on. A vector has the same length in all examples. Store a
      matrix as a vector.

    In a batch, an extra entry is bool, int32 or float32 [batch, ...]. Training refuses anything
    else, such as a string or a list, and names it.
    """

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Reads the example `index`, from 0 to len − 1.

        It runs in several threads, and in worker processes to which the source is pickled. The
        same index must always give the same example: a resumed run reads it again. Transforms do
        not write into the arrays.
        """
        ...


def extra_entries(example: dict[str, Any]) -> dict[str, Any]:
    """The entries of an example that segjax itself does not know."""
    known = {*BATCH_DTYPES, *NOT_IN_BATCH}
    return {key: value for key, value in example.items() if key not in known}


def batch_array(key: str, value: Any) -> np.ndarray:
    """Converts an extra entry to the array that a batch holds: bool, int32 or float32.

    Raises:
      ValueError: the entry is not a number or an array of numbers, its integers need more than 32
        bits, or its name belongs to segjax.
    """
    if key in ADDED_TO_BATCH:
        raise ValueError(f"segjax adds an entry {key!r} to each batch; rename yours")
    array = np.asarray(value) if isinstance(value, bool | int | float | np.generic) else value
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        kind = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else type(array)
        kind = getattr(kind, "__name__", kind)
        raise ValueError(
            f"{key!r} ({kind}) cannot enter a batch; expected a number or a NumPy array of "
            "numbers. Convert or remove it in the source or by a transform"
        )
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if array.dtype.kind == "b":
        return array
    limits = np.iinfo(np.int32)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise ValueError(
            f"{key!r} has integers from {array.min()} to {array.max()}; a batch holds 32 bits"
        )
    return array.astype(np.int32, copy=False)
