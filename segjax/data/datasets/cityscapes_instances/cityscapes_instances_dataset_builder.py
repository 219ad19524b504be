"""Cityscapes with instances: each person and vehicle of the street scenes is outlined."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from segjax.data.builder import SegmentationBuilder, image_feature, instance_feature, label_feature
from segjax.data.datasets.cityscapes import cityscapes_dataset_builder as cityscapes
from segjax.data.images import read_image
from segjax.data.sources.files import ExampleFiles, SourceListing, describe_values, read_instances
from segjax.labels import IGNORE_LABEL

THINGS = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
FIRST_INSTANCE = 1000  # an id is 1000 × class id + number; a smaller id is the class of a group


class Builder(SegmentationBuilder):
    """The finely annotated frames, city by city, with the 8 classes that have instances."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    homepage = cityscapes.Builder.homepage
    license = cityscapes.Builder.license
    MANUAL_DOWNLOAD_INSTRUCTIONS = cityscapes.Builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    official_size = cityscapes.Builder.official_size

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": image_feature(channels=3),
            "labels": label_feature(("background", *THINGS)),
            "instances": instance_feature(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def find_examples(self, source: Path) -> SourceListing:
        return cityscapes.find_frames(source, truth_ending="_gtFine_instanceIds.png")

    def read_example(self, files: ExampleFiles) -> dict[str, Any]:
        image = read_image(files.paths["image"])
        if "labels" in files.paths:
            path = files.paths["labels"]
            try:
                labels, instances = things_of(read_instances(path))
            except ValueError as error:
                raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
        else:
            labels = np.full(image.shape[:2], IGNORE_LABEL, np.uint8)
            instances = np.zeros(image.shape[:2], np.int32)
        example = {"id": files.id, "image": image, "labels": labels, "instances": instances}
        return {**example, "crowd": groups_of(instances)}

    @staticmethod
    def to_record(example: dict) -> dict[str, object]:
        """Converts an example to the features that TFDS stores, without the image."""
        stored = {key: value for key, value in example.items() if key != "crowd"}
        return SegmentationBuilder.to_record(stored)

    @staticmethod
    def to_example(record: dict) -> dict[str, Any]:
        """Converts a record that TFDS has read to an example of a `Source`."""
        example = SegmentationBuilder.to_example(record)
        return {**example, "crowd": groups_of(example["instances"])}


def things_of(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits the official instance ids, int32 [H, W], into classes of things and their instances.

    Returns:
      Classes, uint8 [H, W], 1 to 8 or 0 = no thing; and the official ids of things, int32 [H, W],
      0 elsewhere.
    """
    official = np.where(ids >= FIRST_INSTANCE, ids // FIRST_INSTANCE, ids)
    if official.max(initial=0) > 33:
        wrong = np.unique(ids[official > 33])
        raise ValueError(f"{describe_values(wrong)}; official class ids are 0 to 33")
    table = np.zeros(34, np.uint8)
    for number, name in enumerate(THINGS, 1):
        table[cityscapes.OFFICIAL_IDS[name]] = number
    labels = table[official]
    return labels, np.where(labels > 0, ids, 0)


def groups_of(instances: np.ndarray) -> np.ndarray:
    """Whether each instance, by ascending id, is a group of several things: bool [n]."""
    ids = np.flatnonzero(np.bincount(instances.ravel()))
    return ids[ids > 0] < FIRST_INSTANCE
