"""Data Science Bowl 2018: nuclei in many kinds of microscopy."""

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from segjax.data.builder import (
    SegmentationBuilder,
    image_feature,
    instance_feature,
    label_feature,
)
from segjax.data.images import match_channels, read_image
from segjax.data.loading.ordered_map import map_in_threads
from segjax.data.sources.files import (
    ExampleFiles,
    SourceListing,
    note_sizes,
    pair_files,
    read_instances,
    read_mask,
)

TEST_PART = 5  # one in five images of a kind is a test image
PUBLISHED = {"train": 532, "test": 132}  # in the corrected set


class Builder(SegmentationBuilder):
    """The training images; grey and colour images are each split by the hashes of their names."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    homepage = "https://bbbc.broadinstitute.org/BBBC038"
    license = "CC0"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The folder with stage1_train of https://bbbc.broadinstitute.org/BBBC038, or with images "
        "and labels"
    )
    official_size = None

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": image_feature(channels=3),
            "labels": label_feature(["background", "nucleus"]),
            "instances": instance_feature(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def find_examples(self, source: Path) -> SourceListing:
        problems, notes = [], []
        if (source / "stage1_train").is_dir():
            examples = _find_official(source / "stage1_train", problems)
        else:
            examples = pair_files(source / "images", source / "labels", problems, notes)
        kinds = {True: [], False: []}
        for files, kind in zip(examples, map_in_threads(_kind, examples), strict=True):
            if isinstance(kind, ValueError):
                problems.append(str(kind))
            else:
                kinds[kind].append(files)
        test = {files.id for kind in kinds.values() for files in choose_test(kind)}
        splits = {
            "train": [files for files in examples if files.id not in test],
            "test": [files for files in examples if files.id in test],
        }
        sizes = {split: len(files) for split, files in splits.items()}
        return SourceListing(splits, problems, notes + note_sizes(sizes, PUBLISHED))

    def read_example(self, files: ExampleFiles) -> dict[str, Any]:
        image = match_channels(read_image(files.paths["image"]), 3)
        if "labels" in files.paths:
            instances = read_instances(files.paths["labels"])
        else:
            instances = np.zeros(image.shape[:2], np.int32)
            masks = [path for role, path in files.paths.items() if role != "image"]
            for number, path in enumerate(masks, 1):
                mask = read_mask(path)
                if mask.shape != instances.shape:
                    raise ValueError(f"{path}: size {mask.shape}, the image {instances.shape}")
                instances[mask] = number
        return {
            "id": files.id,
            "image": image,
            "labels": (instances > 0).astype(np.uint8),
            "instances": instances,
        }


def choose_test(examples: list[ExampleFiles]) -> list[ExampleFiles]:
    """The test images of one kind: the first fifth by the SHA-256 of their names."""
    ranked = sorted(examples, key=lambda files: hashlib.sha256(files.id.encode()).hexdigest())
    return ranked[: len(ranked) // TEST_PART]


def _find_official(folder: Path, problems: list[str]) -> list[ExampleFiles]:
    """The examples of a folder: one folder each, with an image and a mask for each nucleus."""
    examples = []
    for path in sorted(folder.iterdir()):
        image, masks = path / "images" / f"{path.name}.png", sorted(path.glob("masks/*.png"))
        if image.is_file() and masks:
            paths = {f"mask {number}": mask for number, mask in enumerate(masks, 1)}
            examples.append(ExampleFiles(path.name, {"image": image, **paths}))
        elif path.is_dir():
            problems.append(f"{image}: missing, or there are no masks/*.png beside its folder")
    if not examples:
        problems.append(f"{folder}: no ID/images/ID.png")
    return examples


def _kind(files: ExampleFiles) -> bool | ValueError:
    """Whether an image is grey, which nearly always tells the kind of microscopy."""
    try:
        image = read_image(files.paths["image"])
    except ValueError as error:
        return error
    return bool((image == image[..., :1]).all())
