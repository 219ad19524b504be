"""DRIVE: blood vessels in photographs of the retina."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from segjax.data.builder import SegmentationBuilder, image_feature, label_feature
from segjax.data.images import read_image
from segjax.data.sources.files import ExampleFiles, SourceListing, keep_complete, read_mask
from segjax.labels import IGNORE_LABEL


class Builder(SegmentationBuilder):
    """The two official halves of 20 photographs each, with the camera's field of view."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    homepage = "https://drive.grand-challenge.org"
    license = "Research and education only, no redistribution"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The unpacked archive, with the folders training and test (or testing): "
        "https://drive.grand-challenge.org"
    )
    official_size = (584, 565)

    def _info(self):
        class_names = ["background", "vessel"]
        features = {
            "id": tfds.features.Text(),
            "image": image_feature(channels=3),
            "labels": label_feature(class_names),
            "second_observer": label_feature(class_names),
            "field_of_view": image_feature(channels=1),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def find_examples(self, source: Path) -> SourceListing:
        problems, notes = [], []
        testing = source / "testing"
        halves = {
            "train": (source / "training", range(21, 41), "training"),
            "test": (testing if testing.is_dir() else source / "test", range(1, 21), "test"),
        }
        splits = {}
        for split, (folder, numbers, suffix) in halves.items():
            observers = {"labels": "1st_manual"}
            if split == "test":
                observers["second_observer"] = "2nd_manual"
                # Some archives have no truth at all for the test half. A folder with missing files
                # is a problem all the same.
                for role, name in list(observers.items()):
                    if folder.is_dir() and not (folder / name).is_dir():
                        notes.append(f"{folder / name}: no such folder; {role} of test is all 255")
                        del observers[role]
            examples = []
            for number in numbers:
                paths = {
                    "image": folder / "images" / f"{number:02d}_{suffix}.tif",
                    "field_of_view": folder / "mask" / f"{number:02d}_{suffix}_mask.gif",
                }
                for role, name in observers.items():
                    paths[role] = folder / name / f"{number:02d}_manual{name[0]}.gif"
                examples.append(ExampleFiles(f"{number:02d}_{suffix}", paths))
            splits[split] = keep_complete(examples, problems)
        return SourceListing(splits, problems, notes)

    def read_example(self, files: ExampleFiles) -> dict[str, Any]:
        image = read_image(files.paths["image"])
        absent = np.full(image.shape[:2], IGNORE_LABEL, np.uint8)
        return {
            "id": files.id,
            "image": image,
            "field_of_view": read_mask(files.paths["field_of_view"]),
            **{
                role: read_mask(files.paths[role]).astype(np.uint8)
                if role in files.paths
                else absent
                for role in ("labels", "second_observer")
            },
        }
