"""Buckets, the few shapes to which training images are padded: whether images fit, and groups."""

import numpy as np

from segjax.data.augmentation.instance import (
    LargeScaleJitter,
    RandomCrop,
    ResizeShortSide,
    resized_size,
)
from segjax.data.loading.aspect_ratio import orientation_groups
from segjax.data.loading.pack_objects import bucket_of


def check_buckets(
    resize: ResizeShortSide | LargeScaleJitter | RandomCrop,
    buckets: tuple[tuple[int, int], ...],
    sizes: np.ndarray,
) -> None:
    """Checks that every image fits its bucket at the largest size that training gives it.

    Args:
      resize: the transform that resizes or crops an image.
      buckets: the height and width of each bucket.
      sizes: the height and width of each image, int [n, 2].

    Raises:
      ValueError: an image does not fit.
    """
    for height, width in np.unique(sizes, axis=0).tolist():
        if isinstance(resize, ResizeShortSide):
            largest = resized_size((height, width), max(resize.short_sides), resize.max_size)
            portrait = height > width
        else:
            largest, portrait = resize.size, resize.size[0] > resize.size[1]
        try:
            bucket_of(largest, buckets, portrait=portrait)
        except ValueError as error:
            raise ValueError(
                "input.resize and input.buckets contradict each other: for an image of "
                f"{height} × {width}, {error}"
            ) from error


def bucket_groups(source) -> np.ndarray:
    """Separates landscape from portrait, so that a batch needs one bucket; int32 [n].

    Raises:
      ValueError: the source does not know the sizes of its images.
    """
    sizes = getattr(source, "sizes", None)
    if sizes is None:
        raise ValueError(
            "the training source has no `sizes`, the height and width of each image, which two "
            "buckets need. If an older segjax prepared the data set, prepare it again: "
            "segjax data prepare NAME --overwrite"
        )
    return orientation_groups(sizes)
