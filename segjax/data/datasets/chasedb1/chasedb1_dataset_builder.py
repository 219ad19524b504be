"""CHASE_DB1: blood vessels in photographs of children's retinas."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from segjax.data.builder import SegmentationBuilder, image_feature, label_feature
from segjax.data.images import read_image
from segjax.data.sources.files import ExampleFiles, SourceListing, keep_complete, read_mask

NAMES = [f"Image_{child:02d}{eye}" for child in range(1, 15) for eye in "LR"]


class Builder(SegmentationBuilder):
    """Both eyes of 14 children, annotated by two observers; the first ten children train."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    homepage = (
        "https://researchinnovation.kingston.ac.uk/en/datasets/"
        "chasedb1-retinal-vessel-reference-dataset-4"
    )
    license = "Research use; see the archive's page"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The unpacked archive, a folder with Image_01L.jpg, Image_01L_1stHO.png, "
        f"Image_01L_2ndHO.png and so on: {homepage}"
    )
    official_size = (960, 999)

    def _info(self):
        class_names = ["background", "vessel"]
        features = {
            "id": tfds.features.Text(),
            "image": image_feature(channels=3),
            "labels": label_feature(class_names),
            "second_observer": label_feature(class_names),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def find_examples(self, source: Path) -> SourceListing:
        problems = []
        splits = {
            split: keep_complete(
                [
                    ExampleFiles(
                        name,
                        {
                            "image": source / f"{name}.jpg",
                            "labels": source / f"{name}_1stHO.png",
                            "second_observer": source / f"{name}_2ndHO.png",
                        },
                    )
                    for name in names
                ],
                problems,
            )
            for split, names in (("train", NAMES[:20]), ("test", NAMES[20:]))
        }
        return SourceListing(splits, problems)

    def read_example(self, files: ExampleFiles) -> dict[str, Any]:
        return {
            "id": files.id,
            "image": read_image(files.paths["image"]),
            "labels": read_mask(files.paths["labels"]).astype(np.uint8),
            "second_observer": read_mask(files.paths["second_observer"]).astype(np.uint8),
        }
