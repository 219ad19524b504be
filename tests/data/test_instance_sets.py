"""COCO, Cityscapes and the Data Science Bowl with objects, from official files to batches."""

import pickle
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from segjax.coco.classes import COCO_CATEGORIES, COCO_CLASSES
from segjax.coco.masks import paste_mask
from segjax.data.augmentation.instance import RandomFlip, ResizeShortSide
from segjax.data.augmentation.semantic import Normalize
from segjax.data.checks.check import check
from segjax.data.checks.labels import find_notes, find_problems
from segjax.data.datasets.cityscapes_instances import cityscapes_instances_dataset_builder
from segjax.data.datasets.dsb2018.dsb2018_dataset_builder import choose_test
from segjax.data.instance_masks import CroppedMask, InstancesToObjects
from segjax.data.loading.aspect_ratio import orientation_groups
from segjax.data.loading.loader import training_batches
from segjax.data.loading.pack_objects import PackObjects
from segjax.data.prepare import prepare
from segjax.data.sources.catalog import make_builder
from segjax.data.sources.coco_files import CocoInstances
from segjax.data.sources.files import ExampleFiles
from segjax.data.sources.semantic import open_dataset
from segjax.pictures.contact_sheet import draw_tile
from tests.data.official_instance_layouts import SIZES, write_cityscapes, write_coco


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A folder in COCO's layout, and the folder it is prepared in."""
    source, data_dir = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    write_coco(source)
    prepare("coco", source=source, data_dir=data_dir)
    return source, data_dir


def assert_same_objects(example, expected):
    assert example.keys() == expected.keys()
    assert (example["id"], example["image_id"]) == (expected["id"], expected["image_id"])
    for key in ("image", "boxes", "classes", "crowd", "areas"):
        assert example[key].dtype == expected[key].dtype, key
        np.testing.assert_array_equal(example[key], expected[key], err_msg=key)
    assert len(example["masks"]) == len(expected["masks"])
    for mask, other in zip(example["masks"], expected["masks"], strict=True):
        assert mask.box == other.box
        np.testing.assert_array_equal(mask.pixels, other.pixels)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_prepared_coco_holds_what_its_files_hold(coco, split):
    folder, data_dir = coco
    direct = CocoInstances(
        folder / "annotations" / f"instances_{split}2017.json", folder / f"{split}2017"
    )
    source = open_dataset("coco", split, data_dir=data_dir)
    assert source.class_names == direct.class_names == COCO_CLASSES
    assert source.category_ids == direct.category_ids == tuple(COCO_CATEGORIES)
    np.testing.assert_array_equal(source.sizes, list(SIZES.values()))
    assert [len(example["masks"]) for example in source] == [0, 3, 0]
    for number in range(3):
        expected = direct[number]
        assert expected.pop("has_mask").all()  # the prepared set has masks of all objects
        assert_same_objects(source[number], expected)
    assert pickle.loads(pickle.dumps(source))[1]["classes"].tolist() == [80, 1, 3]


@pytest.mark.parametrize(
    ("split", "places"),
    [
        ("train[1:]", [1, 2]),
        ("train[:1]", [0]),
        ("val[2:]+train[:2]", [2, 0, 1]),
        ("train", [0, 1, 2]),
    ],
)
def test_the_sizes_of_a_slice_are_those_of_its_images(coco, split, places):
    source = open_dataset("coco", split, data_dir=coco[1])
    sizes = [example["image"].shape[:2] for example in source]
    np.testing.assert_array_equal(source.sizes, sizes)
    assert sizes == [list(SIZES.values())[place] for place in places]


def test_a_set_prepared_before_sizes_were_noted_opens_without_them(coco, tmp_path):
    source, data_dir = coco
    prepared = tmp_path / "coco" / "1.0.0"
    prepared.mkdir(parents=True)
    for path in (data_dir / "coco" / "1.0.0").iterdir():
        if path.name != "metadata.json":
            (prepared / path.name).write_bytes(path.read_bytes())
    source = open_dataset("coco", "train", data_dir=tmp_path)
    assert source.sizes is None
    assert source[1]["image_id"] == 30


def test_the_report_counts_objects_and_crowds_of_each_class(coco, tmp_path):
    folder, data_dir = coco
    sheet = tmp_path / "sheet.png"
    report = check("coco", data_dir=data_dir, contact_sheet=sheet)
    assert check("coco", data_dir=data_dir, source=folder).splits == report.splits
    assert report.problems == []
    assert report.splits["val"].objects == {80: 1, 1: 1, 3: 1}
    text = report.text()
    assert "class  80  1 in 1 examples: toothbrush" in text
    assert "crowds     1" in text
    assert "train: no objects: 2 of 3 (000000000007, 000000000200)" in text
    assert "val: an object's mask is empty: smaller than any pixel: 1 of 3" in text
    assert sheet.stat().st_size > 1000


def test_missing_images_and_other_categories_are_problems_of_a_source(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "train2017" / "000000000007.jpg").unlink()
    path = tmp_path / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text().replace("toothbrush", "comb"))
    problems = make_builder("coco", data_dir=tmp_path).find_examples(tmp_path).problems
    assert len(problems) == 2
    assert "000000000007.jpg: missing" in problems[0]
    assert "instances_val2017.json: the categories are not the 80 of COCO 2017" in problems[1]


def test_coco_goes_through_the_loader_in_batches_of_one_orientation(coco):
    source = open_dataset("coco", "train+val", data_dir=coco[1])
    transforms = (
        ResizeShortSide((48, 64), 96),
        RandomFlip(),
        PackObjects(
            ((64, 96), (96, 64)), max_objects=4, mask_size=14, normalize=Normalize(127.5, 127.5)
        ),
    )
    groups = orientation_groups(source.sizes)
    batches = training_batches(
        source, transforms, batch_size=2, seed=0, groups=groups, num_threads=0
    )
    seen = list(islice(batches, 6))
    batches.close()
    for batch in seen:
        tall = groups[batch["index"][0]]
        assert batch["image"].shape == ((2, 96, 64, 3) if tall else (2, 64, 96, 3))
        counts = np.count_nonzero(batch["classes"], axis=1)
        np.testing.assert_array_equal(counts, 2 * groups[batch["index"]])
        assert batch["masks"].dtype == np.uint8
        assert batch["masks"][batch["classes"] == 80].min(initial=255) > 200  # a filled rectangle
    assert {bool(groups[batch["index"][0]]) for batch in seen} == {True, False}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"classes": np.array([3], np.int32)}, "classes has [3], but the classes of objects are 1"),
        ({"classes": np.array([1, 1], np.int32)}, "the entries of objects differ in number"),
        ({"boxes": np.float32([[0, 0, 9, 4]])}, "a box lies outside"),
        ({"boxes": np.float32([[2, 2, 2, 3]])}, "a box lies outside of the image or has no"),
        ({"masks": (CroppedMask(3, 0, np.ones((2, 1), bool)),)}, "a mask reaches to (0, 3, 1, 5)"),
    ],
)
def test_wrong_objects_are_problems(change, problem):
    example = {
        "id": "x",
        "image": np.zeros((4, 5, 3), np.uint8),
        "boxes": np.float32([[0, 0, 2, 2]]),
        "classes": np.array([2], np.int32),
        "masks": (CroppedMask(0, 0, np.ones((2, 2), bool)),),
        "crowd": np.array([False]),
        "areas": np.float32([4]),
    }
    assert find_problems(example, num_classes=3) == []
    assert find_notes(example, official_size=None) == ["the image is blank: 0 everywhere"]
    [found] = find_problems({**example, **change}, num_classes=3)
    assert problem in found


def test_the_smaller_of_overlapping_objects_is_drawn_on_top():
    example = {
        "image": np.zeros((64, 64, 3), np.uint8),
        "masks": (
            CroppedMask(20, 20, np.ones((8, 8), bool)),
            CroppedMask(0, 0, np.ones((64, 64), bool)),
        ),
        "boxes": np.float32([[20, 20, 28, 28], [0, 0, 64, 64]]),
        "classes": np.int32([1, 1]),
        "crowd": np.array([False, False]),
    }
    marked = draw_tile(example, "", ("background", "cell"))[-512:, 512:]
    assert (marked[8 * 26, 8 * 26] != marked[8 * 50, 8 * 50]).any()


def test_the_real_coco_images_are_prepared_and_packed(real_data, tmp_path):
    folder = real_data / "coco_mini"
    builder = make_builder("coco", data_dir=tmp_path)
    listing = builder.find_examples(folder)
    assert listing.problems == []
    assert {split: len(files) for split, files in listing.splits.items()} == {
        "train": 80,
        "val": 79,
    }
    files = listing.splits["train"][0]
    example = builder.read_example(files)
    record = builder.to_record(example)
    record |= {"image": example["image"], "id": record["id"].encode()}
    assert_same_objects(builder.to_example(record | {"masks": record["masks"].encode()}), example)


def test_cityscapes_things_get_their_classes_and_groups_are_crowds(tmp_path):
    ids = write_cityscapes(tmp_path / "source")
    prepare("cityscapes_instances", source=tmp_path / "source", data_dir=tmp_path)
    source = open_dataset("cityscapes_instances", "train", data_dir=tmp_path)
    assert source.class_names[:4] == ("background", "person", "rider", "car")
    example = source[0]
    assert example["id"] == "aachen_train"
    np.testing.assert_array_equal(example["instances"], np.where(ids == 7, 0, ids))
    np.testing.assert_array_equal(
        example["labels"], np.select([ids == 24_003, ids > 7], [1, 3], 0).astype(np.uint8)
    )
    objects = InstancesToObjects()(example, np.random.default_rng(0))
    assert objects["classes"].tolist() == [3, 1, 3, 3]
    assert objects["crowd"].tolist() == [True, False, False, False]
    np.testing.assert_array_equal(paste_mask(objects["masks"][1], (20, 24)), ids == 24_003)
    unknown = open_dataset("cityscapes_instances", "test", data_dir=tmp_path)[0]
    assert (unknown["labels"] == 255).all()
    assert unknown["crowd"].shape == (0,)


def test_an_id_that_is_none_of_cityscapes_is_refused():
    with pytest.raises(ValueError, match="value 34000; official class ids are 0 to 33"):
        cityscapes_instances_dataset_builder.things_of(np.array([[7, 34_000]], np.int32))


def test_both_layouts_of_the_data_science_bowl_hold_the_same_examples(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        name, coloured = f"n{number:02d}", number % 2
        image = rng.integers(0, 256, (16, 16, 3), np.uint8)
        image = image if coloured else image[..., :1].repeat(3, axis=2)
        instances = np.zeros((16, 16), np.uint16)
        instances[1:4, 2:9], instances[8:12, 5:11] = 1, 2
        official = tmp_path / "official" / "stage1_train" / name
        for path, array in (
            (official / "images" / f"{name}.png", image),
            (official / "masks" / "a.png", np.uint8(255 * (instances == 1))),
            (official / "masks" / "b.png", np.uint8(255 * (instances == 2))),
            (tmp_path / "maps" / "images" / f"{name}.png", image if coloured else image[..., 0]),
            (tmp_path / "maps" / "labels" / f"{name}.png", instances),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    builder = make_builder("dsb2018", data_dir=tmp_path)
    listings = [builder.find_examples(tmp_path / layout) for layout in ("official", "maps")]
    assert [listing.problems for listing in listings] == [[], []]
    for split, count in (("train", 10), ("test", 2)):
        examples = [
            [builder.read_example(files) for files in listing.splits[split]] for listing in listings
        ]
        assert len(examples[0]) == len(examples[1]) == count
        for example, other in zip(*examples, strict=True):
            assert example.keys() == other.keys()
            assert example["id"] == other["id"]
            for key in ("image", "labels", "instances"):
                np.testing.assert_array_equal(example[key], other[key])
    kinds = [int(files.id[1:]) % 2 for files in listings[0].splits["test"]]
    assert sorted(kinds) == [0, 1]  # one of the six images of each kind


def test_the_split_of_the_data_science_bowl_never_changes():
    examples = [ExampleFiles(f"image_{number}", {}) for number in range(10)]
    assert {files.id for files in choose_test(examples)} == {"image_3", "image_5"}
    assert choose_test(examples[::-1]) == choose_test(examples)


def test_the_real_data_science_bowl_is_split_by_kind(real_data, tmp_path):
    builder = make_builder("dsb2018", data_dir=tmp_path)
    listing = builder.find_examples(real_data / "dsb2018")
    assert (listing.problems, listing.notes) == ([], [])
    assert {split: len(files) for split, files in listing.splits.items()} == {
        "train": 532,
        "test": 132,
    }
    example = builder.read_example(listing.splits["test"][0])
    assert example["image"].shape[2] == 3
    assert example["instances"].max() > 1
