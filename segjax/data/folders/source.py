"""Examples from folders of images and masks, read on demand."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from segjax.data.augmentation.normalization import band_statistics
from segjax.data.folders.mask_format import MaskFormat
from segjax.data.folders.objects import give_classes
from segjax.data.folders.pairing import Pair
from segjax.data.folders.stored_mask import read_stored_mask
from segjax.data.image_arrays import for_network, read_arrays
from segjax.data.loading.ordered_map import map_in_threads
from segjax.data.orientation import QUARTER_TURNS, Orientation, explain_size, read_tag

SETTING = "--orientation"
# What headers tell of the channels that an image is read with. Others need the pixels.
_CHANNELS = {"1": 1, "L": 1, "I;16": 1, "I;16B": 1, "RGB": 3}


@dataclass(frozen=True)
class FolderSource:
    """Pairs of images and masks; see `segjax.data.sources.protocol.Source`.

    An example has "id", "image" (uint8, uint16 or float32) and "labels" uint8 [H, W]; masks of
    objects add "instances" int32 [H, W].

    Attributes:
      name: what messages call the source.
      pairs: the files.
      mask_format: what the values of the masks mean.
      channels: the number of channels of the images. Grey is repeated for 3, and colours become
        grey for 1; other images must have as many.
      orientation: how images and masks with an EXIF orientation are read.
      class_format: what the values mean in the masks of classes, if the pairs have such.
      sizes: height and width of each mask, int32 [n, 2].
      object_counts: the objects of each mask, int64 [n]; None for masks of classes.
    """

    name: str
    pairs: Sequence[Pair]
    mask_format: MaskFormat
    channels: int
    orientation: Orientation = "upright"
    class_format: MaskFormat | None = None
    sizes: np.ndarray | None = field(default=None, repr=False, compare=False)
    object_counts: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)} in {self.name}")
        pair = self.pairs[index]
        image = self._image(pair)
        entries, _ = read_masks(pair, self.mask_format, self.class_format, self.orientation)
        if problem := self._size_problem(pair, image.shape[:2], entries["labels"].shape):
            raise ValueError(problem)
        return {"id": pair.id, "image": image, **entries}

    def file_problems(self) -> dict[int, str]:
        """Returns the problem of each example whose files differ in size, by their headers."""
        if self.sizes is None:
            return {}
        headers = map_in_threads(partial(header_of, orientation=self.orientation), self.pairs)
        expected = map(tuple, self.sizes.tolist())
        return {
            number: self._size_problem(self.pairs[number], header.size, size)
            for number, (header, size) in enumerate(zip(headers, expected, strict=True))
            if header is not None and header.size != size
        }

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns mean and deviation of each band over all images; see `band_statistics`.

        Raises:
          OSError, ValueError: an image cannot be read.
        """
        read = map_in_threads(self._image, self.pairs)
        return band_statistics(
            tqdm(read, "statistics", len(self), unit="image", leave=False, disable=None)
        )

    def _image(self, pair: Pair) -> np.ndarray:
        image = read_page(pair, orientation=self.orientation)
        return for_network(image, self.channels, path=pair.image)

    def _size_problem(self, pair: Pair, image: tuple, mask: tuple) -> str:
        if image == mask:
            return ""
        cause = explain_size(pair.image, image, mask, orientation=self.orientation, setting=SETTING)
        return (
            f"{pair.image} is {image[0]} × {image[1]} pixels (height × width), but its mask "
            f"{pair.mask} {mask[0]} × {mask[1]}{cause or '. Was one of them resized?'}"
        )


def read_masks(
    pair: Pair,
    mask_format: MaskFormat,
    class_format: MaskFormat | None,
    orientation: Orientation,
) -> tuple[dict[str, np.ndarray], int]:
    """Reads the mask of a pair, and its mask of classes if it has one.

    Returns:
      "labels" uint8 [H, W], and for objects "instances" int32 [H, W]; the number of objects whose
      pixels have several classes in the mask of classes.

    Raises:
      OSError, ValueError: a file is no mask, or the two do not fit each other.
    """
    stored = read_stored_mask(pair.mask, page=pair.page, orientation=orientation)
    entries = mask_format.decode(stored, origin=str(pair.mask))
    if class_format is None or pair.classes is None:
        return entries, 0
    stored = read_stored_mask(pair.classes, page=pair.page, orientation=orientation)
    labels = class_format.decode(stored, origin=str(pair.classes))["labels"]
    return give_classes(
        entries["instances"], labels, origin=f"{pair.mask} with the classes of {pair.classes}"
    )


@dataclass(frozen=True)
class Header:
    """What the header of an image says.

    Attributes:
      size: height and width, as the image is read.
      channels: 1 or 3; None if only the pixels tell.
    """

    size: tuple[int, int]
    channels: int | None


def header_of(pair: Pair, *, orientation: Orientation = "upright") -> Header | None:
    """Reads the header of an image; None if it cannot be read."""
    try:
        with Path(pair.image).open("rb") as file, Image.open(file) as image:
            image.seek(pair.page)
            height, width, channels = image.height, image.width, _CHANNELS.get(image.mode)
            if getattr(image, "n_frames", 1) > 1:
                channels = None  # the pages may be channels
    # Pillow raises OSError, SyntaxError, ValueError, struct.error and more.
    except Exception:
        return None
    if orientation == "upright" and read_tag(pair.image) in QUARTER_TURNS:
        height, width = width, height
    return Header((height, width), channels)


def count_channels(pairs: Sequence[Pair], *, orientation: Orientation = "upright") -> Counter:
    """Counts the images of each number of channels; those that cannot be read do not count."""
    counts = Counter()
    for pair, header in zip(pairs, map_in_threads(header_of, pairs), strict=True):
        channels = header.channels if header is not None else None
        if channels is None:
            try:
                channels = read_page(pair, orientation=orientation).shape[2]
            except (OSError, ValueError):  # whoever reads the examples says why
                continue
        counts[channels] += 1
    return counts


def read_page(pair: Pair, *, orientation: Orientation = "upright") -> np.ndarray:
    """Reads the image of a pair, [H, W, C].

    Raises:
      OSError, ValueError: the image cannot be read.
    """
    images = read_arrays(Path(pair.image), orientation=orientation, only=pair.page)
    image = next(images, None)
    if image is None:
        raise ValueError(f"{pair.image}: no page {pair.page + 1}")
    return image
