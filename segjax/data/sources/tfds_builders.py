"""Opens the data of any TFDS builder by the names of its image and label features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds

from segjax.data.builder import features_of
from segjax.data.label_maps import to_class_ids
from segjax.labels import IGNORE_LABEL


@dataclass(frozen=True)
class FeatureSource:
    """The images and label maps of a split of a TFDS builder, decoded on demand.

    An example has "image" uint8 or uint16 [H, W, C], "labels" uint8 [H, W] (255 = ignored) and
    "id" str, the index of the example.

    Attributes:
      name: the data set, "name" or "name/config".
      split: the split or slice, such as "train[:80%]".
      class_names: the name of each class id.
      class_ids: the class id of each stored value that may occur.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    class_ids: Mapping[int, int] = field(repr=False)
    _image: str
    _labels: str
    _records: Sequence = field(repr=False)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)} in {self.name} {self.split}")
        record = self._records[index]
        image, stored = record[self._image], record[self._labels]
        stored = stored[..., 0] if stored.ndim == 3 else stored
        origin = f"{self.name} {self.split}: {self._labels!r} of example {index}"
        if stored.shape != image.shape[:2]:
            raise ValueError(f"{origin}: size {stored.shape}, but the image has {image.shape[:2]}")
        labels = to_class_ids(stored, self.class_ids, origin=origin)
        return {"id": f"{index:06d}", "image": image, "labels": labels}


def from_tfds(
    builder: tfds.core.DatasetBuilder,
    split: str,
    *,
    image: str,
    labels: str,
    class_names: Sequence[str] | None = None,
    class_ids: Mapping[int, int] | None = None,
) -> FeatureSource:
    """Opens a split that any TFDS builder has prepared, without TensorFlow.

    Args:
      builder: a builder prepared with `download_and_prepare(file_format="array_record")`.
      split: one of its splits, or TFDS's arithmetic on them, such as "train[:80%]".
      image: the name of the feature with the images, 8 or 16 bits [H, W, C].
      labels: the name of the feature with the label maps, integers [H, W] or [H, W, 1].
      class_names: the name of each class id; None takes the names of a `LabeledImage` feature.
      class_ids: the class id of each stored value; None means that class ids are stored, with 255
        for ignored pixels.

    Raises:
      ValueError: a feature is missing or has another type, there are no class names, the split
        does not exist, or the data set is not prepared in the ArrayRecord format.
    """
    config = builder.builder_config
    name = f"{builder.name}/{config.name}" if config else builder.name
    features = features_of(builder)
    for feature in (image, labels):
        if feature not in features:
            raise ValueError(f"{name} has no feature {feature!r}; it has {', '.join(features)}")
    if len(features[image].shape) != 3 or features[image].np_dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{name}: {image!r} holds no images [H, W, C] of 8 or 16 bits")
    shape = features[labels].shape
    is_map = len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)
    if not is_map or np.dtype(features[labels].np_dtype).kind not in "iu":
        raise ValueError(f"{name}: {labels!r} holds no integers [H, W] or [H, W, 1]")
    names = class_names or getattr(features[labels], "names", None)
    if not names:
        raise ValueError(f"{name}: {labels!r} names no classes; give class_names")
    try:
        records = cast(Any, builder).as_data_source(split=split)  # typed without its arguments
    except (ValueError, KeyError, AssertionError, NotImplementedError) as error:
        known = ", ".join(builder.info.splits)
        if known and not isinstance(error, NotImplementedError):
            raise ValueError(f"{name} has no split {split!r}; it has {known}") from error
        raise ValueError(
            f"{name} is not prepared as ArrayRecord, which is read without TensorFlow: prepare it "
            'with download_and_prepare(file_format="array_record")'
        ) from error
    class_ids = class_ids or {value: value for value in (*range(len(names)), IGNORE_LABEL)}
    return FeatureSource(name, split, tuple(names), class_ids, image, labels, records)
