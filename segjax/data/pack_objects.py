"""The last transform of an example with objects: arrays of the few shapes that a batch may have."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from segjax.data.augment import Normalize
from segjax.data.images import match_channels
from segjax.data.instance_augment import check_objects, keep_objects
from segjax.data.instance_masks import CroppedMask, coverage


@dataclass(frozen=True)
class PackObjects:
    """Normalises and pads the image, and gives the objects a fixed capacity.

    The image goes to the top left of the smallest bucket that it fits into; the padding is 0 after
    normalisation. Grey images become three equal channels. Crowds are left out. Of more objects
    than the capacity the largest boxes are kept, in their order.

    The result has "id", and "image_id" where the example has it, "image" float32 [H, W, 3], "size"
    int32 [2] (height and width without padding), "boxes" float32 [M, 4], "classes" int32 [M] (0 =
    no object), "masks" uint8 [M, m, m] and "dropped" int32 (objects beyond the capacity). A mask is
    in the frame of its box: the value at (i, j) is the part of the (i, j)-th of m × m equal cells
    of the box that the mask covers, times 255. 100 masks of 112 × 112 are 1.3 MB, where masks of a
    whole image of 800 × 1333 would be 107 MB.

    Attributes:
      buckets: the sizes (height, width) that images may have.
      max_objects: the capacity M.
      normalize: how image values become those that the network expects.
      mask_size: cells m a side of a mask; 112 are 4 × 4 for each pixel of Mask R-CNN's 28.
    """

    buckets: tuple[tuple[int, int], ...]
    _: KW_ONLY
    max_objects: int
    normalize: Normalize
    mask_size: int = 112

    def __post_init__(self):
        if not self.buckets or min(min(bucket) for bucket in self.buckets) < 1:
            raise ValueError(f"buckets must be sizes (height, width), got {self.buckets}")
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
        return {
            **{key: example[key] for key in ("id", "image_id") if key in example},
            "image": self._padded(example["image"]),
            "size": np.array(size, np.int32),
            "boxes": boxes,
            "classes": classes,
            "masks": masks,
            "dropped": np.int32(found - count),
        }

    def _padded(self, image: np.ndarray) -> np.ndarray:
        """The normalised image [h, w, 3] within zeros of the size of a bucket."""
        height, width = image.shape[:2]
        bucket = smallest_bucket((height, width), self.buckets)
        image = match_channels(image, 3)
        padded = np.zeros((*bucket, 3), np.float32)
        # Row by row, not pixel by pixel: NumPy is slow where the innermost loop has 3 channels.
        rows = padded.reshape(bucket[0], -1)[:height, : 3 * width]
        mean, std = (
            np.tile(np.broadcast_to(np.float32(value), 3), width)
            for value in (self.normalize.mean, self.normalize.std)
        )
        np.subtract(image.reshape(height, -1), mean, out=rows)
        rows /= std
        return padded


def smallest_bucket(size: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket (height, width) of the fewest pixels that an image of `size` fits into.

    Raises:
      ValueError: it fits into none.
    """
    fitting = [bucket for bucket in buckets if size[0] <= bucket[0] and size[1] <= bucket[1]]
    if not fitting:
        known = ", ".join(f"{height} × {width}" for height, width in buckets)
        raise ValueError(f"the image is {size[0]} × {size[1]} and fits into no bucket of {known}")
    return min(fitting, key=lambda bucket: bucket[0] * bucket[1])


def box_frame_mask(mask: CroppedMask, box: np.ndarray, mask_size: int) -> np.ndarray:
    """Resamples a mask to the frame of a box: what part of each cell it covers, 0 to 255.

    Args:
      mask: in the image.
      box: [x_min, y_min, x_max, y_max], of positive extent.
      mask_size: cells a side.

    Returns:
      uint8 [mask_size, mask_size].
    """
    left, top, right, bottom = np.asarray(box, np.float64)
    rows = np.linspace(top, bottom, mask_size + 1) - mask.top
    columns = np.linspace(left, right, mask_size + 1) - mask.left
    return np.rint(255 * coverage(mask.pixels, rows, columns)).astype(np.uint8)
