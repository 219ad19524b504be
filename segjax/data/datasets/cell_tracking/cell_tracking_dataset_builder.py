"""Cell Tracking Challenge: the two-dimensional training sets with their segmentation truth."""

import dataclasses
import re
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
from segjax.data.images import read_image
from segjax.data.sources.files import ExampleFiles, SourceListing, read_instances
from segjax.labels import IGNORE_LABEL

SEQUENCES = ("01", "02")
TRUTHS = {"gold": "GT", "silver": "ST"}


@dataclasses.dataclass(eq=False)
class CellTrackingConfig(tfds.core.BuilderConfig):
    """One data set of the challenge.

    Attributes:
      official_name: the challenge's name, which is also the name of the folder in the archive.
      official_size: height and width of the frames.
      image_dtype: "uint8" or "uint16", the depth of the frames.
    """

    official_name: str = ""
    official_size: tuple[int, int] = (0, 0)
    image_dtype: str = "uint8"


class Builder(SegmentationBuilder):
    """The annotated frames of both training sequences, one split for each sequence and truth."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    homepage = "https://celltrackingchallenge.net/2d-datasets"
    license = "The challenge's conditions of use"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The unpacked training archive of the data set, with the folders 01, 01_GT, 01_ST, 02, "
        "02_GT and 02_ST: https://celltrackingchallenge.net/2d-datasets"
    )
    BUILDER_CONFIGS: ClassVar = [
        CellTrackingConfig(
            name="dic_c2dh_hela",
            description="HeLa cells on glass, differential interference contrast.",
            official_name="DIC-C2DH-HeLa",
            official_size=(512, 512),
        ),
        CellTrackingConfig(
            name="phc_c2dh_u373",
            description="Glioblastoma-astrocytoma U373 cells, phase contrast.",
            official_name="PhC-C2DH-U373",
            official_size=(520, 696),
        ),
    ]

    def __init__(self, **options):
        super().__init__(**options)
        self.official_size = self._config.official_size

    @property
    def _config(self) -> CellTrackingConfig:
        assert isinstance(self.builder_config, CellTrackingConfig)
        return self.builder_config

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": image_feature(channels=1, dtype=self._config.image_dtype),
            "labels": label_feature(["background", "cell"]),
            "instances": instance_feature(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def find_examples(self, source: Path) -> SourceListing:
        splits, problems, notes = {}, [], []
        for truth, suffix in TRUTHS.items():
            for sequence in SEQUENCES:
                folder = source / f"{sequence}_{suffix}" / "SEG"
                frames = _numbered(source / sequence, "t")
                truths = _numbered(folder, "man_seg")
                silver = _numbered(source / f"{sequence}_ST" / "SEG", "man_seg")
                if not truths:
                    problems.append(f"{folder}: no man_seg*.tif")
                examples = []
                for number, path in truths.items():
                    if number not in frames:
                        expected = source / sequence / f"t{number}.tif"
                        problems.append(f"{expected}: missing (image of {path})")
                        continue
                    paths = {"image": frames[number], "instances": path}
                    if truth == "gold" and number in silver:
                        paths["silver"] = silver[number]
                    examples.append(ExampleFiles(f"{sequence}_t{number}", paths))
                splits[f"{truth}_{sequence}"] = examples
                without = sorted(frames.keys() - truths.keys())
                if truth == "silver" and truths and without:
                    notes.append(f"{folder}: no silver truth for frames {', '.join(without)}")
        official = source / self._config.official_name
        if not any(splits.values()) and official.is_dir():
            problems.insert(0, f"{source}: holds no sequences; did you mean {official}?")
        return SourceListing(splits, problems, notes)

    def read_example(self, files: ExampleFiles) -> dict[str, Any]:
        image = read_image(files.paths["image"])
        depth = self._config.image_dtype
        if image.dtype != depth or image.shape[2] != 1:
            raise ValueError(
                f"{files.paths['image']}: {image.dtype}, channels: {image.shape[2]}; "
                f"expected {depth}, channels: 1"
            )
        instances = read_instances(files.paths["instances"])
        labels = (instances > 0).astype(np.uint8)
        if "silver" in files.paths:
            silver = read_instances(files.paths["silver"])
            if silver.shape != instances.shape:
                raise ValueError(
                    f"{files.paths['silver']}: size {silver.shape}, but "
                    f"{files.paths['instances']} has {instances.shape}"
                )
            labels[unannotated(instances, silver)] = IGNORE_LABEL
        return {"id": files.id, "image": image, "labels": labels, "instances": instances}


def unannotated(gold: np.ndarray, silver: np.ndarray) -> np.ndarray:
    """Finds the cells that a partly annotated gold frame leaves out, as bool [H, W].

    A cell is left out if gold covers less than half of its silver object; pixels that gold covers
    do not belong to it. The challenge's SEG measure matches two objects by more than half, too.
    With "any overlap", a cell that grazes an annotated neighbour would count as annotated.

    Args:
      gold: int32 [H, W] instance ids, 0 = background or not annotated.
      silver: int32 [H, W] instance ids, 0 = background.
    """
    areas = np.bincount(silver.ravel())
    covered = np.bincount(silver.ravel(), weights=gold.ravel() > 0)
    left_out = 2 * covered < areas
    left_out[0] = False
    return left_out[silver] & (gold == 0)


def _numbered(folder: Path, stem: str) -> dict[str, Path]:
    """The files "{stem}NNN.tif" or "{stem}NNNN.tif" of a folder, by their number as written."""
    pattern = re.compile(rf"{stem}(\d{{3,4}})\.tif")
    files = sorted(folder.glob(f"{stem}*.tif"))
    return {match[1]: path for path in files if (match := pattern.fullmatch(path.name))}
