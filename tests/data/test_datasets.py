import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import tensorflow_datasets as tfds

from segjax.data.datasets.cell_tracking.cell_tracking_dataset_builder import (
    Builder as CellTrackingBuilder,
)
from segjax.data.datasets.cell_tracking.cell_tracking_dataset_builder import (
    CellTrackingConfig,
    unannotated,
)
from segjax.data.datasets.synthetic_cells import synthetic_cells_dataset_builder
from segjax.data.prepare import prepare
from segjax.data.sources.catalog import dataset_names, make_builder
from segjax.data.sources.files import mask_of
from segjax.data.sources.semantic import open_dataset
from segjax.data.sources.synthetic import synthetic_cells
from tests.data import official_layouts

LAYOUTS = {
    "isbi2012": official_layouts.write_isbi2012,
    "cell_tracking/dic_c2dh_hela": official_layouts.write_cell_tracking,
    "cell_tracking/phc_c2dh_u373": partial(official_layouts.write_cell_tracking, digits=4),
    "drive": official_layouts.write_drive,
    "chasedb1": official_layouts.write_chasedb1,
    "camvid": official_layouts.write_camvid,
    "voc2012": official_layouts.write_voc2012,
    "cityscapes": official_layouts.write_cityscapes,
    "coco_voc": official_layouts.write_coco_voc,
    "ade20k": official_layouts.write_ade20k,
}
REAL_FOLDERS = {
    "isbi2012": "isbi2012",
    "cell_tracking/dic_c2dh_hela": "ctc/DIC-C2DH-HeLa",
    "drive": "drive",
    "chasedb1": "chasedb1",
}


def assert_same_example(example, expected):
    assert example.keys() == expected.keys()
    assert example["id"] == expected["id"]
    for key in example.keys() - {"id"}:
        assert example[key].dtype == expected[key].dtype, key
        np.testing.assert_array_equal(example[key], expected[key], err_msg=key)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the tiny ISBI 2012, and the examples written there."""
    source, data_dir = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    expected = official_layouts.write_isbi2012(source)
    prepare("isbi2012", source=source, data_dir=data_dir)
    return data_dir, expected


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_prepared_set_holds_exactly_what_the_official_files_hold(name, tmp_path):
    expected = LAYOUTS[name](tmp_path / "source")
    prepare(name, source=tmp_path / "source", data_dir=tmp_path)
    for split, examples in expected.items():
        source = open_dataset(name, split, data_dir=tmp_path)
        assert source.split_sizes == {split: len(examples) for split, examples in expected.items()}
        assert len(source) == len(examples)
        for index, example in enumerate(examples):
            assert_same_example(source[index], example)


def test_drive_reads_either_name_of_the_test_folder_and_its_absence_of_truth(tmp_path):
    write = partial(official_layouts.write_drive, test_folder="testing", test_truth=False)
    expected = write(tmp_path / "source")
    builder = make_builder("drive", data_dir=tmp_path)
    listing = builder.find_examples(tmp_path / "source")
    assert not listing.problems
    assert "1st_manual: no such folder" in listing.notes[0]
    for files, example in zip(listing.splits["test"], expected["test"], strict=True):
        assert_same_example(builder.read_example(files), example)


def test_16_bit_frames_keep_every_value(tmp_path):
    write = partial(official_layouts.write_cell_tracking, dtype=np.uint16)
    expected = write(tmp_path / "source")["silver_02"]
    config = CellTrackingConfig(
        name="sixteen", version="1.0.0", image_dtype="uint16", official_size=(20, 24)
    )
    builder = CellTrackingBuilder(data_dir=tmp_path, config=config)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "source"),
        file_format="array_record",
    )
    images = [record["image"] for record in builder.as_data_source("silver_02")]
    assert max(image.max() for image in images) > 255
    for image, example in zip(images, expected, strict=True):
        assert image.dtype == np.uint16
        np.testing.assert_array_equal(image, example["image"])


def test_frames_of_the_wrong_depth_are_refused_by_name(tmp_path):
    official_layouts.write_cell_tracking(tmp_path, dtype=np.uint16)
    builder = make_builder("cell_tracking/dic_c2dh_hela", data_dir=tmp_path)
    files = builder.find_examples(tmp_path).splits["gold_01"][0]
    with pytest.raises(ValueError, match=r"01/t001\.tif: uint16, channels: 1; expected uint8"):
        builder.read_example(files)


def test_the_parent_of_a_cell_tracking_archive_gets_a_hint(tmp_path):
    official_layouts.write_cell_tracking(tmp_path / "DIC-C2DH-HeLa")
    builder = make_builder("cell_tracking/dic_c2dh_hela", data_dir=tmp_path)
    problems = builder.find_examples(tmp_path).problems
    assert problems[0].endswith(f"did you mean {tmp_path / 'DIC-C2DH-HeLa'}?")


def test_unannotated_cells_are_those_of_which_gold_covers_less_than_half():
    silver = np.array([[1, 1, 1, 1, 0, 2, 2, 0, 3, 3, 3]])
    gold = np.array([[9, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0]])
    expected = np.array([[0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]], bool)
    np.testing.assert_array_equal(unannotated(gold, silver), expected)


def test_no_cell_is_unannotated_where_gold_has_all_of_them_or_silver_none():
    silver = np.array([[1, 1, 0, 2]])
    assert not unannotated(silver, silver).any()
    assert not unannotated(silver, np.zeros_like(silver)).any()


@pytest.mark.parametrize("values", [(0, 255), (0, 1), (3, 253), (0, 0), (255, 255)])
def test_two_valued_masks_are_understood(values):
    array = np.array(values, np.uint8).reshape(1, 2, 1)
    expected = [[value > 127 or value == 1 for value in values]]
    np.testing.assert_array_equal(mask_of(array, "mask.png"), expected)


@pytest.mark.parametrize("values", [(0, 100, 255), (0, 2, 9), (0, 1, 2), (240, 255)])
def test_masks_of_other_values_are_refused_by_name(values):
    with pytest.raises(ValueError, match=r"mask\.png: .*saved as JPEG"):
        mask_of(np.array(values, np.uint8).reshape(1, -1, 1), "mask.png")


def test_synthetic_pictures_are_all_different_and_reproducible(tmp_path, monkeypatch):
    monkeypatch.setattr(
        synthetic_cells_dataset_builder, "SPLITS", {"train": 2, "validation": 1, "test": 1}
    )
    prepare("synthetic_cells", data_dir=tmp_path)
    source = open_dataset("synthetic_cells", "all", data_dir=tmp_path)
    ids = [source[index]["id"] for index in range(len(source))]
    assert sorted(ids) == ["cells_000", "cells_001", "cells_002", "cells_003"]
    for index, name in enumerate(ids):
        image, instances = synthetic_cells(np.random.default_rng(int(name[-3:])))
        np.testing.assert_array_equal(source[index]["image"], image)
        np.testing.assert_array_equal(source[index]["instances"], instances)
        np.testing.assert_array_equal(source[index]["labels"], instances > 0)


def test_slices_of_splits_keep_the_official_order(prepared):
    data_dir, expected = prepared
    ids = [example["id"] for example in expected["train"]]
    first = open_dataset("isbi2012", "train[:24]", data_dir=data_dir)
    rest = open_dataset("isbi2012", "train[24:]", data_dir=data_dir)
    assert [first[i]["id"] for i in range(len(first))] == ids[:24]
    assert [rest[i]["id"] for i in range(len(rest))] == ids[24:]


def test_a_source_knows_its_classes(prepared):
    data_dir, _ = prepared
    source = open_dataset("isbi2012", "train", data_dir=data_dir)
    assert source.class_names == ("membrane", "cell")
    assert source.split_sizes == {"train": 30, "test": 30}


def test_an_index_outside_is_an_error_and_ends_iteration(prepared):
    data_dir, _ = prepared
    source = open_dataset("isbi2012", "train[:3]", data_dir=data_dir)
    assert len(list(source)) == 3
    with pytest.raises(IndexError, match="example 3 of 3"):
        source[3]


def test_a_source_pickles_small_even_after_reading(prepared):
    data_dir, expected = prepared
    source = open_dataset("isbi2012", "train", data_dir=data_dir)
    source[0]
    pickled = pickle.dumps(source)
    assert len(pickled) < 20_000
    assert_same_example(pickle.loads(pickled)[5], expected["train"][5])


@pytest.mark.parametrize("split", ["val", "train[30:]", "train[:31]", "train[", ""])
def test_a_wrong_split_is_an_error_that_lists_the_splits(prepared, split):
    data_dir, _ = prepared
    with pytest.raises(ValueError, match=r"train \(30\), test \(30\)"):
        open_dataset("isbi2012", split, data_dir=data_dir)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("isbi2013", "isbi2012"), ("cell_tracking", "cell_tracking/dic_c2dh_hela or cell_tracking/")],
)
def test_a_wrong_name_is_an_error_that_lists_the_data_sets(tmp_path, name, meant):
    with pytest.raises(ValueError, match=f"Did you mean {meant}.*Data sets: .*synthetic_cells"):
        open_dataset(name, "train", data_dir=tmp_path)


def test_a_set_that_is_not_prepared_is_an_error_with_the_command(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=f"segjax data prepare drive --source DIR --data-dir {tmp_path}",
    ):
        open_dataset("drive", "train", data_dir=tmp_path)
    with pytest.raises(
        FileNotFoundError, match=f"segjax data prepare synthetic_cells --data-dir {tmp_path}"
    ):
        open_dataset("synthetic_cells", "train", data_dir=tmp_path)


def test_a_prepared_set_is_an_ordinary_tfds_set(prepared):
    data_dir, expected = prepared
    builder = tfds.builder_from_directory(data_dir / "isbi2012" / "1.0.0")
    record = builder.as_data_source("train")[3]
    np.testing.assert_array_equal(record["labels"][..., 0], expected["train"][3]["labels"])


@pytest.mark.parametrize("name", dataset_names())
def test_every_data_set_is_described_and_cited_with_tags_that_tfds_knows(name, tmp_path):
    metadata = make_builder(name, data_dir=tmp_path).get_metadata()
    assert "Terms:" in metadata.description
    assert f"segjax data prepare {name.partition('/')[0]}" in metadata.description
    assert metadata.citation.startswith("@")
    assert metadata.tags
    assert set(metadata.tags) <= set(tfds.core.dataset_metadata.valid_tags())


def test_building_and_reading_import_neither_tensorflow_nor_jax(tmp_path):
    official_layouts.write_drive(tmp_path / "source")
    script = f"""
import sys
from segjax.data.prepare import prepare
from segjax.data.sources.semantic import open_dataset
prepare("drive", source={str(tmp_path / "source")!r}, data_dir={str(tmp_path)!r})
source = open_dataset("drive", "test", data_dir={str(tmp_path)!r})
print(source[0]["image"].shape, sorted({{"tensorflow", "jax", "torch"}} & sys.modules.keys()))
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "(20, 24, 3) []"


@pytest.mark.parametrize("name", REAL_FOLDERS)
def test_the_real_files_are_read_in_full(name, real_data, tmp_path):
    builder = make_builder(name, data_dir=tmp_path)
    listing = builder.find_examples(real_data / REAL_FOLDERS[name])
    assert not listing.problems
    assert not listing.notes
    sizes = {split: len(files) for split, files in listing.splits.items()}
    assert (
        sizes
        == {
            "isbi2012": {"train": 30, "test": 30},
            "cell_tracking/dic_c2dh_hela": {
                "gold_01": 9,
                "gold_02": 9,
                "silver_01": 84,
                "silver_02": 84,
            },
            "drive": {"train": 20, "test": 20},
            "chasedb1": {"train": 20, "test": 8},
        }[name]
    )
    for files in listing.splits.values():
        example = builder.read_example(files[-1])
        assert example["image"].shape[:2] == example["labels"].shape == builder.official_size


def test_only_the_partly_annotated_frame_of_dic_hela_has_ignored_pixels(real_data, tmp_path):
    builder = make_builder("cell_tracking/dic_c2dh_hela", data_dir=tmp_path)
    listing = builder.find_examples(real_data / REAL_FOLDERS["cell_tracking/dic_c2dh_hela"])
    ignored = {}
    for split in ("gold_01", "gold_02"):
        for files in listing.splits[split]:
            ignored[files.id] = np.count_nonzero(builder.read_example(files)["labels"] == 255)
    assert {name for name, pixels in ignored.items() if pixels} == {"01_t067"}
    assert 130_000 < ignored["01_t067"] < 140_000
