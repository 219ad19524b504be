"""ADE20K: the MIT scene parsing benchmark of 150 classes."""

from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from segjax.data.builder import SegmentationBuilder, image_feature, label_feature
from segjax.data.datasets.ade20k.class_names import CLASS_NAMES
from segjax.data.images import match_channels, read_image
from segjax.data.label_maps import read_label_map
from segjax.data.sources.files import ExampleFiles, SourceListing, note_sizes, pair_files
from segjax.labels import IGNORE_LABEL

CLASS_IDS = {0: IGNORE_LABEL} | {value: value - 1 for value in range(1, len(CLASS_NAMES) + 1)}
PUBLISHED = {"training": 20210, "validation": 2000}


class Builder(SegmentationBuilder):
    """The benchmark's labels minus one, so that 0 is a class and "other" is ignored."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    homepage = "http://sceneparsing.csail.mit.edu"
    license = "Images for non-commercial research and education; annotations BSD 3-clause"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The unpacked ADEChallengeData2016.zip, with images and annotations: "
        "http://sceneparsing.csail.mit.edu"
    )
    official_size = None

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
            split: pair_files(
                source / "images" / split, source / "annotations" / split, problems, notes
            )
            for split in PUBLISHED
        }
        sizes = {split: len(examples) for split, examples in splits.items()}
        return SourceListing(splits, problems, notes + note_sizes(sizes, PUBLISHED))

    def read_example(self, files: ExampleFiles) -> dict[str, Any]:
        return {
            "id": files.id,
            "image": match_channels(read_image(files.paths["image"]), 3),
            "labels": read_label_map(files.paths["labels"], CLASS_IDS),
        }
