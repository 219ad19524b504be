"""Runs TFDS's own test on each of our builders; needs TensorFlow and dill."""

import importlib
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from segjax.data.sources.catalog import dataset_names
from segjax.data.sources.semantic import open_dataset
from tests.data import official_instance_layouts, official_layouts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorFlow warns of itself
    for module in ("tensorflow", "dill"):
        pytest.importorskip(module, reason="TFDS's own test needs pip install tensorflow dill")


def write_pets(folder):
    """Two images a split with a trimap of 1 to 3; only those of train have a box of the head."""
    rng = np.random.default_rng(0)
    for part in ("images", "annotations/trimaps", "annotations/xmls"):
        (folder / part).mkdir(parents=True)
    for split, numbers in (("trainval", (1, 2)), ("test", (3, 4))):
        names = [f"beagle_{number}" for number in numbers]
        lines = [f"{name} 5 2 1\n" for name in names]
        (folder / "annotations" / f"{split}.txt").write_text("".join(lines))
        for name in names:
            photograph = Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
            photograph.save(folder / "images" / f"{name}.jpg")
            trimap = Image.fromarray(rng.integers(1, 4, (20, 24), np.uint8))
            trimap.save(folder / "annotations" / "trimaps" / f"{name}.png")
            if split == "trainval":
                (folder / "annotations" / "xmls" / f"{name}.xml").write_text(
                    "<annotation><size><width>24</width><height>20</height></size><object><bndbox>"
                    "<xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>"
                    "</bndbox></object></annotation>"
                )


pytestmark = pytest.mark.filterwarnings("ignore")  # TFDS calls deprecated functions
# The writer of a small official layout, and the examples that it has in each split.
LAYOUTS = {
    "ade20k": (official_layouts.write_ade20k, {"training": 3, "validation": 3}),
    "camvid": (official_layouts.write_camvid, {"train": 4, "val": 4, "test": 4}),
    "cell_tracking": (
        official_layouts.write_cell_tracking,
        {"gold_01": 2, "gold_02": 2, "silver_01": 4, "silver_02": 4},
    ),
    "chasedb1": (official_layouts.write_chasedb1, {"train": 20, "test": 8}),
    "cityscapes": (official_layouts.write_cityscapes, {"train": 4, "val": 4, "test": 2}),
    "cityscapes_instances": (
        official_instance_layouts.write_cityscapes,
        {"train": 1, "val": 1, "test": 1},
    ),
    "coco": (official_instance_layouts.write_coco, {"train": 3, "val": 3}),
    "coco_voc": (official_layouts.write_coco_voc, {"train": 2, "val": 3}),
    "drive": (official_layouts.write_drive, {"train": 20, "test": 20}),
    "dsb2018": (official_instance_layouts.write_nuclei, {"train": 10, "test": 2}),
    "isbi2012": (official_layouts.write_isbi2012, {"train": 30, "test": 30}),
    "oxford_iiit_pet": (write_pets, {"train": 2, "test": 2}),
    "synthetic_cells": (lambda folder: None, {"train": 64, "validation": 16, "test": 16}),
    "voc2012": (
        official_layouts.write_voc2012,
        {"train": 3, "val": 2, "trainval": 5, "train_aug": 6},
    ),
}


def case_of(name):
    """TFDS's test case of a data set, on a small official layout that it writes first."""
    write, splits = LAYOUTS[name]
    module = importlib.import_module(f"segjax.data.datasets.{name}.{name}_dataset_builder")

    class Case(tfds.testing.DatasetBuilderTestCase):
        DATASET_CLASS = module.Builder
        SPLITS = splits
        OVERLAPPING_SPLITS = ("trainval", "train_aug")
        DL_EXTRACT_RESULT: ClassVar = {"images": ".", "annotations": "."}  # of the pets

        @classmethod
        def setUpClass(cls):
            folder = tempfile.TemporaryDirectory()
            cls.addClassCleanup(folder.cleanup)
            cls.EXAMPLE_DIR = folder.name
            write(Path(folder.name))
            super().setUpClass()

        def test_registered(self):
            """Our builders deliberately stay out of the registry."""
            assert module.Builder not in tfds.core.registered._DATASET_REGISTRY.values()

        def test_an_image_and_its_labels_are_what_is_supervised(self):
            keys = self.builder.info.supervised_keys
            if name == "coco":  # an example has objects, not a map of labels
                assert keys is None
            else:
                assert {*keys} <= {*self.builder.info.features}
                assert keys[0] == "image"

    Case.__name__ = Case.__qualname__ = f"Test_{name}"
    return Case


def test_the_command_tfds_build_makes_what_segjax_opens(tmp_path):
    for needed in ("apache_beam", "mlcroissant"):
        pytest.importorskip(needed, reason=f"TFDS's command imports {needed}")
    official_layouts.write_camvid(tmp_path / "source")
    folder = Path(importlib.import_module("segjax.data.datasets.camvid").__file__).parent
    command = (
        f"-m tensorflow_datasets.scripts.cli.main build {folder} "
        f"--manual_dir {tmp_path / 'source'} --data_dir {tmp_path} --file_format array_record"
    )
    subprocess.run([sys.executable, *command.split()], check=True)
    assert len(open_dataset("camvid", "train", data_dir=tmp_path)) == 4


def test_every_data_set_is_tested():
    assert {*LAYOUTS} == {name.partition("/")[0] for name in dataset_names()}


globals().update({f"Test_{name}": case_of(name) for name in LAYOUTS})
