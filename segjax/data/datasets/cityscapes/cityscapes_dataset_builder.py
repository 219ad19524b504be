"""Cityscapes: street scenes of 50 cities, finely annotated."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from segjax.data.builder import SegmentationBuilder, image_feature, label_feature
from segjax.data.images import read_image
from segjax.data.label_maps import read_label_map
from segjax.data.sources.files import ExampleFiles, SourceListing, keep_complete, note_sizes
from segjax.labels import IGNORE_LABEL

# The evaluated classes in the order of their train ids, with the official ids stored in the files.
# The other ids from 0 to 33 are not evaluated (cityscapesScripts, helpers/labels.py).
OFFICIAL_IDS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
TRAIN_IDS = dict.fromkeys(range(34), IGNORE_LABEL) | {
    official_id: train_id for train_id, official_id in enumerate(OFFICIAL_IDS.values())
}
PUBLISHED = {"train": 2975, "val": 500, "test": 1525}


class Builder(SegmentationBuilder):
    """The finely annotated frames, city by city, with the 19 evaluated classes."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    homepage = "https://www.cityscapes-dataset.com"
    license = "The Cityscapes licence; non-commercial research and teaching, no redistribution"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The folder with leftImg8bit and gtFine, of leftImg8bit_trainvaltest.zip and "
        "gtFine_trainvaltest.zip: https://www.cityscapes-dataset.com/downloads"
    )
    official_size = (1024, 2048)

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": image_feature(channels=3),
            "labels": label_feature(tuple(OFFICIAL_IDS)),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def find_examples(self, source: Path) -> SourceListing:
        return find_frames(source, truth_ending="_gtFine_labelIds.png")

    def read_example(self, files: ExampleFiles) -> dict[str, Any]:
        image = read_image(files.paths["image"])
        if "labels" in files.paths:
            labels = read_label_map(files.paths["labels"], TRAIN_IDS)
        else:
            labels = np.full(image.shape[:2], IGNORE_LABEL, np.uint8)
        return {"id": files.id, "image": image, "labels": labels}


def find_frames(source: Path, *, truth_ending: str) -> SourceListing:
    """Lists the frames of the official layout; the "labels" files are CITY/NAME{truth_ending}."""
    splits, problems, notes = {}, [], []
    for split in PUBLISHED:
        folder, truth = source / "leftImg8bit" / split, source / "gtFine" / split
        if split == "test" and not folder.is_dir():
            notes.append(f"{folder}: no such folder, so there is no test split")
            continue
        images = _files(folder, "_leftImg8bit.png")
        if not images:
            problems.append(f"{folder}: no CITY/*_leftImg8bit.png")
            continue
        # The test labels are not published; the archive's files for them are empty.
        unpaired = {} if split == "test" else _files(truth, truth_ending)
        examples = []
        for name, path in images.items():
            paths = {"image": path}
            if split != "test":
                paths["labels"] = truth / path.parent.name / f"{name}{truth_ending}"
                unpaired.pop(name, None)
            examples.append(ExampleFiles(name, paths))
        problems += [f"{path}: no image of this name" for path in unpaired.values()]
        splits[split] = keep_complete(examples, problems)
    sizes = {split: len(examples) for split, examples in splits.items()}
    notes += note_sizes(sizes, PUBLISHED)
    return SourceListing(splits, problems, notes)


def _files(folder: Path, ending: str) -> dict[str, Path]:
    """The files CITY/NAME{ending} of a split by their names, city by city."""
    return {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"*/*{ending}"))}
