"""TFDS's own tools on our builders, without TensorFlow."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from segjax.data.sources.catalog import dataset_names, make_builder
from segjax.data.sources.semantic import open_builder, open_dataset
from tests.data import official_instance_layouts, official_layouts

OURS = "segjax.data.datasets"
TFDSS = "tensorflow_datasets"
# Each order of imports ends with the modules of the builders that TFDS finds by three names.
FIND = """
print(*(tfds.builder_cls(name).__module__ for name in ("coco", "cityscapes", "oxford_iiit_pet")))
"""
TFDS_FIRST = """
import tensorflow_datasets as tfds
import tensorflow_datasets.object_detection.coco
tfds.builder_cls("cityscapes"), tfds.builder_cls("oxford_iiit_pet")
"""
OURS_FIRST = """
from segjax.data.sources.catalog import dataset_names, make_builder
print(*(type(make_builder(name, data_dir="unused")).__module__ for name in dataset_names()))
import tensorflow_datasets as tfds
"""


def lines_of(code, *, folder):
    """The lines that a fresh Python process prints, with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("code", [TFDS_FIRST + OURS_FIRST, OURS_FIRST + TFDS_FIRST])
def test_ours_and_tfdss_builders_live_together_in_either_order_of_import(code, tmp_path):
    ours, tfdss = lines_of(code + FIND, folder=tmp_path)
    assert len(ours.split()) == len(dataset_names())
    assert all(module.startswith(OURS) for module in ours.split())
    assert all(module.startswith(TFDSS) for module in tfdss.split())


def test_only_the_builder_that_is_asked_for_is_imported(tmp_path):
    code = f"""
import sys
from segjax.data.sources.catalog import make_builder
make_builder("camvid", data_dir="unused")
print(*(name for name in sys.modules if name.startswith("{OURS}.") and name.count(".") == 3))
"""
    assert lines_of(code, folder=tmp_path) == [f"{OURS}.camvid"]


@pytest.mark.parametrize("name", dataset_names())
def test_tfds_knows_where_a_data_set_is_from_its_terms_and_its_history(name, tmp_path):
    builder = make_builder(name, data_dir=tmp_path)
    info = builder.info
    assert "tensorflow.org" not in info.homepage  # the page that TFDS makes up
    description = " ".join(info.description.split())
    assert info.homepage in description
    assert info.redistribution_info.license.lower() in description.partition("Terms: ")[2].lower()
    assert str(builder.version) in info.release_notes
    if name == "coco":  # an example has objects, and no map of labels
        assert info.supervised_keys is None
    else:
        assert info.supervised_keys[0] == "image"
        assert info.supervised_keys[1] in {"labels", "segmentation_mask"}


def test_an_unknown_config_or_a_data_set_that_needs_one_is_refused(tmp_path):
    for name in ("cell_tracking", "cell_tracking/hela", "camvid/", "camvid/small"):
        with pytest.raises(ValueError, match="no data set is named"):
            make_builder(name, data_dir=tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder in which TFDS's own call has built two of our data sets from official files."""
    source, data_dir = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    official_layouts.write_camvid(source / "camvid")
    official_instance_layouts.write_coco(source / "coco")
    for name in ("camvid", "coco"):
        make_builder(name, data_dir=data_dir).download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=source / name),
            file_format="array_record",
        )
    return data_dir


def test_tfdss_own_call_builds_what_segjax_opens(built):
    example = open_dataset("camvid", "val", data_dir=built)[0]
    assert (example["id"], example["image"].shape) == ("val_00", (*official_layouts.SIZE, 3))
    assert (built / "camvid" / "1.0.0" / "LICENSE").read_text() == "CC BY-NC 4.0"


def test_data_in_tfdss_default_format_are_refused_with_the_remedy(built, tmp_path):
    shutil.copytree(built / "camvid", tmp_path / "camvid")
    path = tmp_path / "camvid" / "1.0.0" / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"camvid is prepared as tfrecord, .* with --overwrite"):
        open_dataset("camvid", "train", data_dir=tmp_path)


def test_tfds_finds_what_is_prepared_by_its_name_and_folder(built):
    record = tfds.data_source("camvid", split="test[:3]", data_dir=built)[2]
    assert (record["id"], record["labels"].shape) == (b"test_02", (*official_layouts.SIZE, 1))
    builder = tfds.builder("camvid", data_dir=built)
    assert builder.info.homepage == make_builder("camvid", data_dir=built).homepage
    assert builder.info.supervised_keys == ("image", "labels")
    assert builder.info.features["labels"].names[:2] == ["sky", "building"]
    # The name "coco" is TFDS's own, so ours is found by its folder.
    coco = tfds.builder_from_directory(built / "coco" / "1.0.0")
    assert len(coco.as_data_source("train")[1]["boxes"]) == 3  # a crowd among them


def test_a_subclass_registers_a_builder_under_a_name_of_its_own(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "registered.py").write_text(
        "from segjax.data.datasets.coco.coco_dataset_builder import Builder\n"
        "class SegjaxCoco(Builder, skip_registration=False): pass\n"
    )
    code = """
import sys
sys.path.insert(0, "")
import tensorflow_datasets as tfds
from mine import registered
builder = tfds.builder("segjax_coco", data_dir="unused")
print(type(builder) is registered.SegjaxCoco, builder.info.homepage)
"""
    assert lines_of(code, folder=tmp_path) == ["True https://cocodataset.org"]


def kinds_of(example):
    """The dtype, rank and channels of each entry: the sizes of mocked images are random."""
    return {
        key: (value.dtype, value.ndim, value.shape[2:]) if isinstance(value, np.ndarray) else str
        for key, value in example.items()
    }


MAP = (np.dtype(np.uint8), 2, ())
EXTRA = {
    "instances": (np.dtype(np.int32), 2, ()),
    "second_observer": MAP,
    "field_of_view": (np.dtype(np.bool_), 2, ()),
    "crowd": (np.dtype(np.bool_), 1, ()),
}
ENTRIES = {
    "cell_tracking/dic_c2dh_hela": ["instances"],
    "cell_tracking/phc_c2dh_u373": ["instances"],
    "chasedb1": ["second_observer"],
    "cityscapes_instances": ["instances", "crowd"],
    "drive": ["second_observer", "field_of_view"],
    "dsb2018": ["instances"],
    "isbi2012": ["instances"],
    "synthetic_cells": ["instances"],
}
GREY = ("cell_tracking", "isbi2012", "synthetic_cells")


@pytest.mark.parametrize("name", [name for name in dataset_names() if name != "coco"])
def test_mocked_data_becomes_examples_of_the_right_kinds(name, tmp_path):
    with tfds.testing.mock_data(num_examples=3):
        builder = make_builder(name, data_dir=tmp_path)
        records = builder.as_data_source("train")
        source = open_builder(builder, "train")
        assert len(records) == len(source) == 3
        features = builder.info.features
        for record, example in zip(records, (source[i] for i in range(3)), strict=True):
            assert record.keys() == features.keys()
            assert record["image"].dtype == features["image"].np_dtype
            channels = 1 if name.startswith(GREY) else 3
            assert kinds_of(example) == {
                "id": str,
                "image": (np.dtype(np.uint8), 3, (channels,)),
                "labels": MAP,
                **{key: EXTRA[key] for key in ENTRIES.get(name, ())},
            }


def test_mocked_coco_is_given_masks_since_random_text_is_no_run_length(tmp_path):
    record = {
        "id": "mocked",
        "image_id": np.int64(7),
        "image": np.zeros((4, 5, 3), np.uint8),
        "boxes": np.zeros((1, 4), np.float32),
        "classes": np.ones(1, np.int32),
        "masks": "d0",  # 20 pixels of background
        "crowd": np.zeros(1, bool),
        "areas": np.zeros(1, np.float32),
    }
    with tfds.testing.mock_data(as_data_source_fn=lambda self, split: [record]):
        source = open_builder(make_builder("coco", data_dir=tmp_path), "train")
    example = source[0]
    assert (example["id"], example["image_id"], len(example["masks"])) == ("mocked", 7, 1)


def test_mocks_of_a_prepared_data_set_know_its_splits(built):
    with tfds.testing.mock_data(num_examples=2, data_dir=built):
        assert len(open_dataset("camvid", "train", data_dir=built)) == 2
        with pytest.raises(ValueError, match=r"Splits: .*train \(4\)"):
            open_dataset("camvid", "validation", data_dir=built)
