"""ISBI 2012: neuronal structures in electron microscopy stacks."""

from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds

from segjax.data.builder import (
    SegmentationBuilder,
    image_feature,
    instance_feature,
    label_feature,
)
from segjax.data.images import read_images
from segjax.data.sources.files import ExampleFiles, SourceListing, mask_of
from segjax.labels import IGNORE_LABEL

NUM_SLICES = 30


class Builder(SegmentationBuilder):
    """Two stacks of 30 slices; the labels of the test stack were never published."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    homepage = "https://imagej.net/events/isbi-2012-segmentation-challenge"
    license = "The data may be used for research if the two papers in `CITATIONS.bib` are cited"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "A folder with train-volume.tif, train-labels.tif and test-volume.tif of the ISBI 2012 "
        "challenge: https://imagej.net/events/isbi-2012-segmentation-challenge"
    )
    official_size = (512, 512)
    background = "membrane"

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": image_feature(channels=1),
            "labels": label_feature(["membrane", "cell"]),
            "instances": instance_feature(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def find_examples(self, source: Path) -> SourceListing:
        splits, problems = {}, []
        for split, roles in (("train", ("volume", "labels")), ("test", ("volume",))):
            paths = {role: source / f"{split}-{role}.tif" for role in roles}
            slices = [
                ExampleFiles(f"{split}_{page:02d}", paths, page) for page in range(NUM_SLICES)
            ]
            stack_problems = []
            for path in paths.values():
                stack_problems += _stack_problems(path)
            splits[split] = [] if stack_problems else slices
            problems += stack_problems
        return SourceListing(splits, problems)

    def read_example(self, files: ExampleFiles) -> dict[str, Any]:
        image = _read_stack(files.paths["volume"])[files.page]
        if "labels" in files.paths:
            path = files.paths["labels"]
            labels = mask_of(_read_stack(path)[files.page], path).astype(np.uint8)
        else:
            labels = np.full(image.shape[:2], IGNORE_LABEL, np.uint8)
        _, instances = cv2.connectedComponents((labels == 1).astype(np.uint8), connectivity=4)
        return {"id": files.id, "image": image, "labels": labels, "instances": instances}


def _read_stack(path: Path) -> list[np.ndarray]:
    return _read_version(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)  # slices of a volume and of its labels are read in turn
def _read_version(path: Path, modified: int) -> list[np.ndarray]:
    return list(read_images(path))


def _stack_problems(path: Path) -> list[str]:
    if not path.is_file():
        return [f"{path}: missing"]
    try:
        found = len(_read_stack(path))
    except ValueError as error:
        return [str(error)]
    return [] if found == NUM_SLICES else [f"{path}: {found} slices; expected {NUM_SLICES}"]
