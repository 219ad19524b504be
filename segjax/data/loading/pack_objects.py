"""The last transform of an example with objects, which gives all arrays fixed shapes."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from segjax.data.augmentation.instance import check_objects, keep_objects
from segjax.data.augmentation.maps import maps_of, pad_map
from segjax.data.augmentation.semantic import Normalize
from segjax.data.images import match_channels
from segjax.data.instance_masks import CroppedMask, coverage
from segjax.data.sources.protocol import OBJECTS, OPTIONAL_OBJECTS


@dataclass(frozen=True)
class PackObjects:
    """Normalises and pads the image, and gives the objects a fixed capacity.

    The image goes to the top left of the bucket for its orientation; padding is 0 after
    normalisation. "portrait" holds the orientation before resizing, so that rounding cannot change
    an example's group (`segjax.data.loading.aspect_ratio`). Grey images become three equal
    channels. Crowds are left out. If there are more objects than the capacity, those with the
    largest boxes are kept, in their order.

    The result has "image" float32 [H, W, 3], "size" int32 [2] (height and width without padding),
    "boxes" float32 [M, 4], "classes" int32 [M] (0 = no object), "masks" uint8 [M, m, m] and
    "dropped" int32 (number of objects beyond the capacity). A mask is in the frame of its box,
    which is divided into m × m equal cells: a value is 255 times the part of its cell that the
    mask covers. 100 masks of 112 × 112 take 1.3 MB; masks of a whole image of 800 × 1333 would
    take 107 MB. If the example has "has_mask", so has the result, bool [M]: an object without a
    mask trains class and box only. Other maps are padded like the image, with 0, or with 255 for
    labels. All other entries that do not belong to objects are passed on.

    Attributes:
      buckets: the size (height, width) of all images, or two: one for images at least as wide as
        high, and one for taller images.
      max_objects: the capacity M.
      normalize: the normalisation of the image.
      mask_size: cells m on a side of a mask; 112 has 4 × 4 cells for each pixel of Mask R-CNN's 28.
    """

    buckets: tuple[tuple[int, int], ...]
    _: KW_ONLY
    max_objects: int
    normalize: Normalize
    mask_size: int = 112

    def __post_init__(self):
        if not self.buckets or min(min(bucket) for bucket in self.buckets) < 1:
            raise ValueError(f"buckets must be sizes (height, width), got {self.buckets}")
        if len({height > width for height, width in self.buckets}) < len(self.buckets):
            raise ValueError(
                "buckets must be one size, or one at least as wide as high and one higher than "
                f"wide, got {self.buckets}"
            )
        for name in ("max_objects", "mask_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        check_objects(example)
        size = example["image"].shape[:2]
        objects = keep_objects(example, ~example["crowd"])
        found = len(objects["masks"])
        extent = objects["boxes"][:, 2:] - objects["boxes"][:, :2]
        if not (extent > 0).all():
            flat = objects["boxes"][~(extent > 0).all(axis=1)][0]
            raise ValueError(f"the box {flat.tolist()} has no width or no height")
        if found > self.max_objects:
            largest = np.argsort(-extent.prod(axis=1), kind="stable")[: self.max_objects]
            objects = keep_objects(objects, np.sort(largest))
        count = len(objects["masks"])
        boxes = np.zeros((self.max_objects, 4), np.float32)
        classes = np.zeros(self.max_objects, np.int32)
        masks = np.zeros((self.max_objects, self.mask_size, self.mask_size), np.uint8)
        boxes[:count], classes[:count] = objects["boxes"], objects["classes"]
        for place, (mask, box) in enumerate(zip(objects["masks"], objects["boxes"], strict=True)):
            masks[place] = box_frame_mask(mask, box, self.mask_size)
        bucket = bucket_of(size, self.buckets, portrait=example.get("portrait", size[0] > size[1]))
        packed = {}
        if "has_mask" in objects:
            packed["has_mask"] = np.zeros(self.max_objects, bool)
            packed["has_mask"][:count] = objects["has_mask"]
        replaced = {*OBJECTS, *OPTIONAL_OBJECTS, "portrait"}
        return {
            **{key: value for key, value in example.items() if key not in replaced},
            **{key: pad_map(key, value, bucket) for key, value in maps_of(example).items()},
            "image": self._padded(example["image"], bucket),
            "size": np.array(size, np.int32),
            "boxes": boxes,
            "classes": classes,
            "masks": masks,
            "dropped": np.int32(found - count),
            **packed,
        }

    def _padded(self, image: np.ndarray, bucket: tuple[int, int]) -> np.ndarray:
        """Normalises the image and pads it with zeros to its bucket, [H, W, 3]."""
        height, width = image.shape[:2]
        image = match_channels(image, 3)
        padded = np.zeros((*bucket, 3), np.float32)
        # Whole rows: NumPy is slow if its innermost loop runs over 3 channels.
        rows = padded.reshape(bucket[0], -1)[:height, : 3 * width]
        mean, std = (
            np.tile(np.broadcast_to(np.asarray(value, np.float32), 3), width)
            for value in (self.normalize.mean, self.normalize.std)
        )
        np.subtract(image.reshape(height, -1), mean, out=rows)
        rows /= std
        return padded


def bucket_of(
    size: tuple[int, int], buckets: Sequence[tuple[int, int]], *, portrait: bool
) -> tuple[int, int]:
    """The bucket (height, width) for an orientation; a single bucket serves both.

    Raises:
      ValueError: an image of `size` does not fit.
    """
    bucket = next((b for b in buckets if (b[0] > b[1]) == portrait), buckets[0])
    if size[0] > bucket[0] or size[1] > bucket[1]:
        raise ValueError(
            f"the image is {size[0]} × {size[1]} and does not fit into its bucket of "
            f"{bucket[0]} × {bucket[1]}"
        )
    return bucket


def box_frame_mask(mask: CroppedMask, box: np.ndarray, mask_size: int) -> np.ndarray:
    """Resamples a mask to the frame of a box: the part of each cell that it covers, 0 to 255.

    Args:
      mask: the mask in the image.
      box: [x_min, y_min, x_max, y_max], of positive extent.
      mask_size: cells on a side.

    Returns:
      uint8 [mask_size, mask_size].
    """
    left, top, right, bottom = np.asarray(box, np.float64)
    rows = np.linspace(top, bottom, mask_size + 1) - mask.top
    columns = np.linspace(left, right, mask_size + 1) - mask.left
    return np.rint(255 * coverage(mask.pixels, rows, columns)).astype(np.uint8)
