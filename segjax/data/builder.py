"""What our TFDS builders share: features, encoding without TensorFlow, one pass over the files."""

import abc
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from segjax.data.source_files import ExampleFiles, SourceListing


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, abc.ABC, skip_registration=True):
    """A TFDS builder that is told where an official layout keeps its files and how to read them.

    A new data set is a folder in `segjax/data/datasets` in TFDS's convention. Its class `Builder`
    has `VERSION`, `official_size`, `_info`, `find_examples` and `read_example`, and, where the
    user must bring files, `MANUAL_DOWNLOAD_INSTRUCTIONS`.

    The order of the examples is the order of `find_examples`, so that "train[:24]" means the
    first 24. Images are given to TFDS as PNG bytes: from arrays it would encode them with
    TensorFlow. TFDS also turns to TensorFlow for a split of more than 1 GB of PNG.
    """

    official_size: tuple[int, int]  # height and width of the images as published

    @abc.abstractmethod
    def find_examples(self, source: Path | None) -> SourceListing:
        """Lists the examples of a source folder, and what is missing from it."""

    @abc.abstractmethod
    def read_example(self, files: ExampleFiles) -> dict[str, np.ndarray | str]:
        """Reads one example; raises ValueError, naming the file, where that cannot be done."""

    def _split_generators(self, dl_manager):
        source = Path(dl_manager.manual_dir) if self.MANUAL_DOWNLOAD_INSTRUCTIONS else None
        listing = self.find_examples(source)
        if listing.problems:
            raise ValueError("\n".join(listing.problems))
        return {
            split: self._generate_examples(split, files) for split, files in listing.splits.items()
        }

    def _generate_examples(self, split: str, files: list[ExampleFiles]) -> Iterator:
        for index, example_files in enumerate(tqdm(files, desc=f"{self.name} {split}")):
            example = self.read_example(example_files)
            yield index, {key: encode(value) for key, value in example.items()}


def image_feature(*, channels: int, dtype: type = np.uint8) -> tfds.features.Image:
    """An image [H, W, channels] of 8 or 16 bits, stored without loss."""
    return tfds.features.Image(shape=(None, None, channels), dtype=dtype, encoding_format="png")


def label_feature(class_names: Sequence[str]) -> tfds.features.LabeledImage:
    """A map of class ids, uint8 [H, W, 1], 255 = ignored."""
    return tfds.features.LabeledImage(
        labels=list(class_names), shape=(None, None, 1), dtype=np.uint8, encoding_format="png"
    )


def instance_feature() -> tfds.features.Image:
    """A map of instance ids, uint16 [H, W, 1], 0 = background."""
    return image_feature(channels=1, dtype=np.uint16)


def encode(value: np.ndarray | str) -> io.BytesIO | str:
    """Encodes an array of an example as PNG bytes; strings pass.

    Bool becomes uint8, int32 becomes uint16.

    Raises:
      ValueError: an instance id does not fit 16 bits.
    """
    if isinstance(value, str):
        return value
    if value.dtype == np.int32:
        if value.min() < 0 or value.max() > np.iinfo(np.uint16).max:
            raise ValueError(f"instance ids must be 0..65535, got {value.min()}..{value.max()}")
        value = value.astype(np.uint16)
    if value.dtype == np.bool_:
        value = value.astype(np.uint8)
    if value.ndim == 3 and value.shape[2] == 3:
        value = cv2.cvtColor(value, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", value)
    return io.BytesIO(encoded.tobytes())
