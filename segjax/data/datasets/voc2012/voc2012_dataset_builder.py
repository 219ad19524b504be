"""PASCAL VOC 2012 segmentation, with the training images that SBD adds."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from segjax.data.builder import SegmentationBuilder, image_feature, label_feature
from segjax.data.images import match_channels, read_image
from segjax.data.label_maps import read_label_map
from segjax.data.sources.files import ExampleFiles, SourceListing, keep_complete, note_sizes
from segjax.data.voc_classes import VOC_CLASSES
from segjax.labels import IGNORE_LABEL

CLASS_IDS = {value: value for value in (*range(len(VOC_CLASSES)), IGNORE_LABEL)}
PUBLISHED = {"train": 1464, "val": 1449, "trainval": 2913, "test": 1456, "train_aug": 10582}


class Builder(SegmentationBuilder):
    """The official splits, and `train_aug` if SBD's labels are available."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    homepage = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012"
    license = "The images are Flickr's, subject to its terms of use; research only"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The folder that holds VOCdevkit/VOC2012 and, for the split train_aug, benchmark_RELEASE "
        "(SBD): http://host.robots.ox.ac.uk/pascal/VOC/voc2012"
    )
    official_size = None

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": image_feature(channels=3),
            "labels": label_feature(VOC_CLASSES),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def find_examples(self, source: Path) -> SourceListing:
        voc = _voc_folder(source)
        if voc is None:
            return SourceListing({}, [f"{source}: holds no VOCdevkit/VOC2012/JPEGImages"])
        problems, notes, names = [], [], {}
        for split in ("train", "val", "trainval", "test"):
            path = voc / "ImageSets" / "Segmentation" / f"{split}.txt"
            if split != "test" or path.is_file():  # test is a separate archive
                names[split] = _read_names(path, problems)
        added = _find_added_labels(source, voc, problems)
        if added:
            names["train_aug"] = sorted({*names["train"], *added} - {*names["val"]})
        else:
            notes.append(
                f"{source}: neither benchmark_RELEASE/dataset (SBD) nor "
                f"{voc.relative_to(source) / 'SegmentationClassAug'}, so there is no train_aug"
            )
        official = {*names["train"], *names["trainval"]}
        splits = {}
        for split, split_names in names.items():
            examples = []
            for name in split_names:
                paths = {"image": voc / "JPEGImages" / f"{name}.jpg"}
                # SBD re-annotated many of VOC's own images; those keep VOC's labels.
                if split == "train_aug" and name not in official:
                    paths["labels"] = added[name]
                elif split != "test":
                    paths["labels"] = voc / "SegmentationClass" / f"{name}.png"
                examples.append(ExampleFiles(name, paths))
            splits[split] = keep_complete(examples, problems)
        notes += note_sizes({split: len(listed) for split, listed in names.items()}, PUBLISHED)
        return SourceListing(splits, problems, notes)

    def read_example(self, files: ExampleFiles) -> dict[str, Any]:
        image = match_channels(read_image(files.paths["image"]), 3)
        if "labels" not in files.paths:
            labels = np.full(image.shape[:2], IGNORE_LABEL, np.uint8)
        elif files.paths["labels"].suffix == ".mat":
            labels = read_sbd_labels(files.paths["labels"])
        else:
            labels = read_label_map(files.paths["labels"], CLASS_IDS)
        return {"id": files.id, "image": image, "labels": labels}


def read_sbd_labels(path: Path) -> np.ndarray:
    """Reads the class ids of one of SBD's files `cls/*.mat`, uint8 [H, W].

    Raises:
      ValueError: the file is unreadable or has another structure; the message names it.
    """
    try:
        # GTcls is an array of one struct; its field Segmentation holds the class ids.
        return np.ascontiguousarray(scipy.io.loadmat(path)["GTcls"]["Segmentation"][0, 0], np.uint8)
    # SciPy raises MatReadError, KeyError, zlib.error, struct.error and more.
    except Exception as error:
        raise ValueError(
            f"{path}: damaged, or without the field GTcls.Segmentation of SBD ({error})"
        ) from error


def _voc_folder(source: Path) -> Path | None:
    """Finds VOC2012 in the source folder, which may also be VOCdevkit or VOC2012 itself."""
    folders = (source / "VOCdevkit" / "VOC2012", source / "VOC2012", source)
    return next((folder for folder in folders if (folder / "JPEGImages").is_dir()), None)


def _find_added_labels(source: Path, voc: Path, problems: list[str]) -> dict[str, Path]:
    """Finds the label file of each image that SBD annotated: a .mat, or a PNG made from it."""
    sbd = source / "benchmark_RELEASE" / "dataset"
    if not sbd.is_dir():
        return {path.stem: path for path in (voc / "SegmentationClassAug").glob("*.png")}
    names = []
    for split in ("train", "val"):
        names += _read_names(sbd / f"{split}.txt", problems)
    return {name: sbd / "cls" / f"{name}.mat" for name in names}


def _read_names(path: Path, problems: list[str]) -> list[str]:
    """Reads the names in a list file, one a line; adds a problem if the file is missing."""
    if not path.is_file():
        problems.append(f"{path}: missing")
        return []
    return path.read_text().split()
