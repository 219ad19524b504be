"""The base class of our TFDS builders, their features, and encoding without TensorFlow."""

import abc
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import cv2
import numpy as np
import numpy.typing as npt
import tensorflow_datasets as tfds
from tqdm import tqdm

from segjax.data.loading.ordered_map import map_in_threads
from segjax.data.loading.part import own_part
from segjax.data.sources.files import ExampleFiles, SourceListing
from segjax.labels import BACKGROUND

SHARD_BYTES = 128 << 20  # TFDS holds the encoded examples of one shard in memory
WEB_FORMATS = {".png", ".jpg", ".jpeg"}  # the formats of TFDS's image features


class SegmentationBuilder(tfds.core.ShardBasedBuilder, abc.ABC, skip_registration=True):
    """A TFDS builder for an official layout; a subclass finds the files and reads them.

    A new data set is a folder in `segjax/data/datasets` in TFDS's convention. Its class `Builder`
    has `VERSION`, `RELEASE_NOTES`, `homepage`, `license`, `official_size`, `_info`,
    `find_examples` and `read_example`. If the user must bring files, it also has
    `MANUAL_DOWNLOAD_INSTRUCTIONS`.

    Subclasses stay out of TFDS's registry, which has a "coco" and a "cityscapes" of its own.

    The examples keep the order of `find_examples`, so that "train[:24]" means the first 24.
    Building needs no TensorFlow, for two reasons. TFDS gets encoded images; it would encode arrays
    with TensorFlow. And TFDS gets whole shards of known length; otherwise it shuffles a split of
    more than 1 GB with TensorFlow, even if shuffling is disabled.

    Attributes:
      homepage: the web page of the data set.
      license: the terms of use.
      official_size: height and width of the published images; None if they have many sizes.
      category_ids: COCO's ids of the classes 1, 2, ...; None if there are none.
      background: the name of the background, if any class has it; see `segjax.labels`.
      needs_tensorflow: whether building needs TensorFlow, as with TFDS's own builders.
      shards: the number of shards of each split; None makes shards of about 128 MB.
    """

    homepage: ClassVar[str]
    license: ClassVar[str]
    official_size: tuple[int, int] | None
    category_ids: ClassVar[tuple[int, ...] | None] = None
    background: ClassVar[str] = BACKGROUND
    needs_tensorflow: ClassVar[bool] = False
    shards: int | None = None

    def __init_subclass__(cls, *, skip_registration: bool = True, **options):
        super().__init_subclass__(skip_registration=skip_registration, **options)

    @abc.abstractmethod
    def find_examples(self, source: Path) -> SourceListing:
        """Lists the examples and the problems of a source folder; a generated set ignores it."""

    @abc.abstractmethod
    def read_example(self, files: ExampleFiles) -> dict[str, Any]:
        """Reads one example; raises ValueError, naming the file, if that fails."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class id."""
        return tuple(features_of(self)["labels"].names)

    def dataset_info_from_configs(
        self, *, features: tfds.features.FeaturesDict, **options
    ) -> tfds.core.DatasetInfo:
        """Returns TFDS's description of the data set, with room for notes about its images."""
        return super().dataset_info_from_configs(
            features=features,
            supervised_keys=("image", "labels") if "labels" in features else None,
            homepage=self.homepage,
            license=self.license,
            metadata=tfds.core.MetadataDict(),
            **options,
        )

    @staticmethod
    def to_record(example: dict) -> dict[str, object]:
        """Converts an example to the features that TFDS stores, without the image."""
        return {
            key: value if isinstance(value, str) else encode(value)
            for key, value in example.items()
            if key != "image"
        }

    @staticmethod
    def to_example(record: dict) -> dict[str, Any]:
        """Converts a record that TFDS has read to an example of a `Source`."""
        example = {"id": decode_text(record["id"]), "image": record["image"]}
        for key in ("labels", "second_observer"):
            if key in record:
                example[key] = record[key][..., 0]
        if "instances" in record:
            example["instances"] = record["instances"][..., 0].astype(np.int32)
        if "field_of_view" in record:
            example["field_of_view"] = record["field_of_view"][..., 0] > 0
        return example

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable[[], Iterator]]]:
        has_files = bool(self.MANUAL_DOWNLOAD_INSTRUCTIONS)
        listing = self.find_examples(Path(dl_manager.manual_dir if has_files else ""))
        if listing.problems:
            raise ValueError("\n".join(listing.problems))
        for note in ("sizes", "objects"):
            self._notes[note] = {
                split: [None] * len(files) for split, files in listing.splits.items()
            }
        return {
            split: [
                partial(self._generate_examples, split, files, start, stop)
                for start, stop in shard_bounds(files, self.shards)
            ]
            for split, files in listing.splits.items()
        }

    @property
    def _notes(self) -> dict[str, Any]:
        assert self.info.metadata is not None  # `dataset_info_from_configs` sets it
        return self.info.metadata

    def _generate_examples(
        self, split: str, files: list[ExampleFiles], start: int, stop: int
    ) -> Iterator[tuple[int, dict]]:
        encoded = map_in_threads(self._read_encoded, files[start:stop])
        title, last = f"{self.name} {split}", stop == len(files)
        bar = tqdm(encoded, title, initial=start, total=len(files), leave=last)
        for index, (notes, record) in enumerate(bar, start):
            for note, value in notes.items():
                self._notes[note][split][index] = value
            yield index, record

    def _read_encoded(self, files: ExampleFiles) -> tuple[dict, dict]:
        """Reads an example; returns notes about it, and the features that TFDS stores."""
        example = self.read_example(files)
        image = encode_image(example["image"], files.paths.get("image"))
        notes = {"sizes": example["image"].shape[:2], "objects": count_objects(example)}
        return notes, self.to_record(example) | {"image": image}


def features_of(builder: tfds.core.DatasetBuilder) -> Mapping[str, Any]:
    """The features of a builder by name.

    Raises:
      ValueError: its features have no names.
    """
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        raise ValueError(f"{builder.name} has no named features")
    return cast(Mapping, features)  # TFDS derives it from a dict without saying so


def count_objects(example: dict) -> int | None:
    """Counts the objects of an example without crowds; None if it tells no objects apart."""
    if "masks" in example:
        return int(np.count_nonzero(~example["crowd"]))
    if "instances" in example:
        count = np.unique(example["instances"][example["instances"] > 0]).size
        return count - int(np.count_nonzero(example.get("crowd", ())))
    return None


def shard_bounds(files: Sequence[ExampleFiles], shards: int | None = None) -> list[tuple[int, int]]:
    """Cuts a split into shards, by default of about `SHARD_BYTES` by the sizes of its files.

    Returns:
      (start, stop) of each shard, which holds the examples files[start:stop].

    Raises:
      ValueError: there are fewer examples than shards.
    """
    if shards is None:
        paths = {path for example in files for path in example.paths.values()}
        size = sum(path.stat().st_size for path in paths)
        shards = min(len(files), 1 + size // SHARD_BYTES)
    if len(files) < shards:
        raise ValueError(f"{shards} shards need as many examples, and a split has {len(files)}")
    parts = (own_part(len(files), shard, shards) for shard in range(shards))
    return [(part.start, part.stop) for part in parts]


def image_feature(*, channels: int, dtype: npt.DTypeLike = np.uint8) -> tfds.features.Image:
    """The feature of an image [H, W, channels] of 8 or 16 bits, stored without loss."""
    dtype = np.dtype(dtype).type
    return tfds.features.Image(shape=(None, None, channels), dtype=dtype, encoding_format="png")


def label_feature(class_names: Sequence[str]) -> tfds.features.LabeledImage:
    """The feature of a map of class ids, uint8 [H, W, 1], 255 = ignored."""
    return tfds.features.LabeledImage(
        labels=list(class_names), shape=(None, None, 1), dtype=np.uint8, encoding_format="png"
    )


def instance_feature() -> tfds.features.Image:
    """The feature of a map of instance ids, uint16 [H, W, 1], 0 = background."""
    return image_feature(channels=1, dtype=np.uint16)


def decode_text(stored: bytes | str) -> str:
    """Decodes a text feature: bytes from TFDS, a string from `tfds.testing.mock_data`."""
    return stored.decode() if isinstance(stored, bytes) else stored


def encode(value: np.ndarray) -> io.BytesIO:
    """Encodes an array of an example as a PNG; bool becomes uint8, int32 becomes uint16.

    Raises:
      ValueError: an instance id does not fit 16 bits.
    """
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


def encode_image(image: np.ndarray, path: Path | None) -> io.BytesIO:
    """Encodes an image as the bytes of its file if they decode to exactly this image, else as PNG.

    So a photograph is stored as the published JPEG, five times smaller than a PNG of its pixels.
    Other formats become PNG, and so do files that TFDS decodes differently from `read_image`: those
    with an orientation tag or with alpha.

    Args:
      image: uint8 or uint16 [H, W, C].
      path: the file that the image was read from; None if there is none.
    """
    if path is None or path.suffix.lower() not in WEB_FORMATS:
        return encode(image)
    content = path.read_bytes()
    feature = image_feature(channels=image.shape[2], dtype=image.dtype.type)
    if np.array_equal(feature.decode_example_np(content), image):
        return io.BytesIO(content)
    return encode(image)
