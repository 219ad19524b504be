import cv2
import numpy as np
import pytest
from PIL import Image

from segjax.data.checks.check import check, fill_report
from segjax.data.checks.labels import find_notes, find_problems
from segjax.data.checks.report import CheckReport
from segjax.data.instance_masks import CroppedMask
from segjax.data.prepare import prepare
from segjax.pictures.colors import color_map
from segjax.pictures.contact_sheet import draw_tile, join_tiles
from segjax.pictures.overlays import to_rgb
from tests.data import official_layouts


def example_with(labels, **more):
    labels = np.array(labels, np.uint8)
    image = np.arange(labels.size, dtype=np.uint8).reshape(*labels.shape, 1)
    return {"id": "x", "image": image, "labels": labels, **more}


@pytest.fixture(scope="module")
def cell_tracking(tmp_path_factory):
    """A tiny source folder, the folder it is prepared in, and its contents."""
    source, data_dir = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    expected = official_layouts.write_cell_tracking(source)
    prepare("cell_tracking/dic_c2dh_hela", source=source, data_dir=data_dir)
    return source, data_dir, expected


@pytest.mark.parametrize(
    ("labels", "num_classes", "problem"),
    [
        ([[0, 1, 2, 255]], 2, "labels has value 2, but classes are 0 to 1"),
        ([[0, 7, 9]], 3, "labels has values 7, 9, but classes are 0 to 2"),
        ([list(range(0, 250, 10))], 2, "24 different values from 10 to 240"),
        ([list(range(0, 250, 10))], 2, "anti-aliased"),
    ],
)
def test_wrong_label_values_are_problems(labels, num_classes, problem):
    [found] = find_problems(example_with(labels), num_classes=num_classes)
    assert problem in found


@pytest.mark.parametrize(
    "labels", [[[0, 1, 255]], [[0, 0]], [[255, 255]], [[1, 1]], [[1, 255]], [[0, 255]]]
)
def test_right_label_values_are_no_problem(labels):
    assert find_problems(example_with(labels), num_classes=2) == []


def test_background_and_ignored_alone_are_no_problem_among_many_classes():
    assert find_problems(example_with([[0, 255]]), num_classes=21) == []


def test_maps_of_another_size_than_the_image_are_problems():
    example = example_with([[0, 1]], field_of_view=np.ones((2, 1), bool))
    example["image"] = np.zeros((4, 5, 3), np.uint8)
    assert find_problems(example, num_classes=2) == [
        "labels has size 1×2, the image 4×5",
        "field_of_view has size 2×1, the image 4×5",
    ]


def test_instances_on_background_are_a_problem():
    example = example_with([[0, 1, 0, 255]], instances=np.array([[3, 3, 0, 4]], np.int32))
    assert find_problems(example, num_classes=2) == [
        "1 pixels of instances are labelled 0, background"
    ]


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        ([[0, 0, 255]], "the label map is empty: class 0 everywhere"),
        ([[255, 255, 255]], "nothing is labelled: 255 (ignored) everywhere"),
    ],
)
def test_empty_label_maps_are_noted(labels, note):
    assert find_notes(example_with(labels), official_size=(1, 3)) == [note]


def test_blank_images_and_unofficial_sizes_are_noted():
    example = example_with([[0, 1]])
    assert find_notes(example, official_size=(1, 2)) == []
    example["image"][:] = 7
    notes = find_notes(example, official_size=(3, 4))
    assert len(notes) == 2
    assert "published size 3×4" in notes[0]
    assert notes[1] == "the image is blank: 7 everywhere"


def test_the_counts_of_a_source_folder_are_those_of_its_files(cell_tracking, tmp_path):
    source, _, expected = cell_tracking
    report = check("cell_tracking/dic_c2dh_hela", source=source, data_dir=tmp_path)
    assert report.problems == []
    assert report.splits.keys() == expected.keys()
    for name, examples in expected.items():
        split, labels = report.splits[name], np.stack([example["labels"] for example in examples])
        assert split.num_examples == len(examples)
        assert split.images == {"20×24×1 uint8": len(examples)}
        values, counts = np.unique(labels, return_counts=True)
        assert split.label_pixels == dict(zip(values.tolist(), counts.tolist(), strict=True))
        assert split.instances == [np.unique(e["instances"]).size - 1 for e in examples]
    gold = report.splits["gold_01"]
    assert gold.label_examples == {0: 2, 1: 2, 255: 1}
    assert gold.instances == [2, 1]


def test_a_prepared_set_gives_the_report_of_its_source(cell_tracking):
    source, data_dir, _ = cell_tracking
    of_source = check("cell_tracking/dic_c2dh_hela", source=source, data_dir=data_dir)
    of_prepared = check("cell_tracking/dic_c2dh_hela", data_dir=data_dir)
    assert of_prepared.splits == of_source.splits
    assert of_prepared.notes == of_source.notes
    assert of_prepared.origin != of_source.origin


def test_the_text_says_counts_shares_and_instances(cell_tracking):
    _, data_dir, _ = cell_tracking
    text = check("cell_tracking/dic_c2dh_hela", data_dir=data_dir).text()
    assert "gold_01: 2 examples" in text
    assert "20×24×1 uint8 (2)" in text
    # Frame 1 has cells of 49 and 80 pixels, frame 3 the first of them, of 2 × 480 pixels.
    assert "label   1   18.54 % of pixels, in 2 examples: cell" in text
    assert "label 255    8.33 % of pixels, in 1 examples: ignored" in text
    assert "instances  1 to 2 an image, median 1.5" in text
    assert "problems: none" in text
    assert "not of the published size 512×512" in text


def test_all_problems_of_a_source_are_listed_and_the_rest_is_counted(tmp_path):
    official_layouts.write_isbi2012(tmp_path)
    official_layouts.write_chasedb1(tmp_path)
    (tmp_path / "Image_02L.jpg").unlink()
    (tmp_path / "Image_14R_2ndHO.png").unlink()
    (tmp_path / "Image_05R_1stHO.png").write_bytes(b"not an image")
    ramp = np.linspace(0, 255, 20 * 24).reshape(20, 24)
    Image.fromarray(np.uint8(ramp)).save(tmp_path / "Image_06L_1stHO.png")
    report = check("chasedb1", source=tmp_path, data_dir=tmp_path / "data")
    assert [problem.removeprefix(f"{tmp_path}/").split(":")[0] for problem in report.problems] == [
        "Image_02L.jpg",
        "Image_14R_2ndHO.png",
        "Image_05R_1stHO.png",
        "Image_06L_1stHO.png",
    ]
    assert report.splits["train"].images == {"20×24×3 uint8": 17}
    assert "problems: 4" in report.text()


def test_examples_of_any_origin_are_checked_by_functions_that_read_them(tmp_path):
    def unreadable():
        raise PermissionError("b.png: Permission denied")

    examples = [example_with([[0, 1, 1]]), example_with([[0, 1, 2]]) | {"id": "y"}]
    readers = {"train": [*(lambda each=each: each for each in examples), unreadable], "val": []}
    report = CheckReport("mine", "images", ("background", "cell"))
    sheet = tmp_path / "sheet.png"
    found = fill_report(report, readers, official_size=(1, 4), contact_sheet=sheet)
    assert found is report
    assert report.problems == [
        "train y: labels has value 2, but classes are 0 to 1",
        "b.png: Permission denied",
    ]
    assert report.splits["train"].num_examples == 3
    assert report.splits["train"].label_pixels == {0: 2, 1: 3, 2: 1}
    assert report.splits["val"].num_examples == 0
    [note] = report.notes
    assert "published size 1×4" in note
    assert note.endswith("2 of 3 (x, y)")
    assert sheet.is_file()


def test_a_set_without_published_labels_is_noted_once_for_all_its_images(tmp_path):
    official_layouts.write_isbi2012(tmp_path)
    report = check("isbi2012", source=tmp_path, data_dir=tmp_path)
    [note] = [note for note in report.notes if "nothing is labelled" in note]
    assert note.startswith("test: ")
    assert "30 of 30 (test_00, test_01, test_02, test_03 …)" in note


def test_silver_truth_that_skips_frames_is_noted(tmp_path):
    official_layouts.write_cell_tracking(tmp_path)
    (tmp_path / "01_ST" / "SEG" / "man_seg002.tif").unlink()
    report = check("cell_tracking/dic_c2dh_hela", source=tmp_path, data_dir=tmp_path)
    assert f"{tmp_path}/01_ST/SEG: no silver truth for frames 002" in report.notes


def test_damaged_records_are_problems_by_number(tmp_path):
    official_layouts.write_cell_tracking(tmp_path / "source")
    name = "cell_tracking/dic_c2dh_hela"
    folder = prepare(name, source=tmp_path / "source", data_dir=tmp_path)
    [records] = folder.glob("*gold_02*")
    content = bytearray(records.read_bytes())
    content[100:-100] = bytes(len(content) - 200)
    records.write_bytes(content)
    problems = check(name, data_dir=tmp_path).problems
    assert [problem.split(" (")[0] for problem in problems] == [
        f"{name} gold_02: example {index} is damaged on disk" for index in range(2)
    ]


def test_checking_what_is_not_prepared_says_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="segjax data prepare drive --source DIR"):
        check("drive", data_dir=tmp_path)


def test_the_contact_sheet_is_a_png_with_examples_of_each_split(cell_tracking, tmp_path):
    _, data_dir, _ = cell_tracking
    path = tmp_path / "new" / "sheet.png"
    check("cell_tracking/dic_c2dh_hela", data_dir=data_dir, contact_sheet=path)
    sheet = cv2.imread(str(path))
    # 2 + 2 gold and 4 + 4 silver examples, three in a row, each with two panels of 213×256.
    assert sheet.shape[0] > 4 * 213
    assert sheet.shape[1] > 3 * 2 * 256


def test_a_contact_sheet_of_another_kind_is_refused_before_reading(tmp_path):
    with pytest.raises(ValueError, match=r"sheet\.jpg: .*should end in \.png"):
        check("drive", data_dir=tmp_path, contact_sheet=tmp_path / "sheet.jpg")


@pytest.mark.parametrize("kind", ["labels", "instances", "field_of_view"])
def test_a_tile_marks_the_labels_on_its_right_half_alone(kind):
    square = np.zeros((64, 64), bool)
    square[16:48, 16:48] = True
    grey = np.full((64, 64, 1), 90, np.uint8)
    example = {"image": grey, "labels": np.uint8(square) * (kind != "field_of_view")}
    if kind == "instances":
        example["instances"] = np.int32(square)
    if kind == "field_of_view":
        example["field_of_view"] = square
    tile = draw_tile(example, "caption", size=64)[-64:]
    marked = np.any(tile != 90, axis=2)
    assert not marked[:, :64].any()
    outline = square & ~cv2.erode(np.uint8(square), np.ones((3, 3), np.uint8)).astype(bool)
    right = marked[:, 64:]
    assert right[outline].all()
    assert not right[~square].any()


@pytest.mark.parametrize("with_instances", [False, True])
def test_a_tile_hatches_ignored_pixels(with_instances):
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 255
    example = {"image": np.full((64, 64, 1), 90, np.uint8), "labels": labels}
    if with_instances:
        example["instances"] = np.zeros((64, 64), np.int32)
    right = draw_tile(example, "caption", size=64)[-64:, 64:]
    assert (right[:, :32] == 90).all()
    assert (right[:, 32:] != 90).any()


def test_a_tile_stretches_16_bit_images():
    image = np.linspace(1000, 1200, 64 * 64).reshape(64, 64, 1).astype(np.uint16)
    example = {"image": image, "labels": np.zeros((64, 64), np.uint8)}
    left = draw_tile(example, "caption", size=64)[-64:, :64]
    assert left.min() < 5
    assert left.max() > 250


@pytest.mark.parametrize(("bands", "dtype"), [(2, np.uint16), (5, np.float32), (4, np.int32)])
def test_a_tile_shows_images_of_any_bands_and_types(bands, dtype):
    image = np.random.default_rng(0).integers(0, 4000, (64, 64, bands)).astype(dtype)
    example = {"image": image, "labels": np.zeros((64, 64), np.uint8)}
    left = draw_tile(example, "caption", size=64)[-64:, :64]
    np.testing.assert_array_equal(left, to_rgb(image))


def test_tiles_of_several_sizes_are_laid_out_without_overlap():
    tiles = [np.full((10 + i, 20 + i, 3), i, np.uint8) for i in range(5)]
    sheet = join_tiles(tiles, columns=2)
    for i, tile in enumerate(tiles):
        assert np.count_nonzero(np.all(sheet == i, axis=2)) == tile.shape[0] * tile.shape[1]


def test_rows_of_tiles_are_as_high_as_their_own_tiles():
    tiles = [np.zeros((height, 20, 3), np.uint8) for height in (10, 30, 5)]
    assert join_tiles(tiles, columns=2).shape == (30 + 6 + 5 + 6, 2 * 26, 3)
    assert join_tiles(tiles).shape[1] == 3 * 26
    wide = [np.zeros((10, 1024, 3), np.uint8)] * 3
    assert join_tiles(wide).shape[1] == 2 * 1030


def test_a_legend_names_the_classes_of_a_tile():
    labels = np.zeros((64, 64), np.uint8)
    labels[:9], labels[9:20], labels[20:30] = 1, 255, 3
    example = {"image": np.full((64, 64, 1), 90, np.uint8), "labels": labels}
    plain = draw_tile(example, "", size=256)
    named = draw_tile(example, "", ("background", "cell"), size=256)
    legend = named[plain.shape[0] :]
    assert (named[: plain.shape[0], : plain.shape[1]] == plain).all()
    for drawn, value in ((True, 1), (True, 3), (False, 2), (False, 0)):
        assert (legend == color_map(4)[value]).all(axis=2).any() == drawn


@pytest.mark.parametrize("kind", ["object", "crowd", "box only"])
def test_a_tile_marks_objects_on_its_right_half_alone(kind):
    example = {
        "image": np.full((128, 96, 1), 90, np.uint8),
        "masks": (CroppedMask(64, 32, np.ones((32, 48), bool)),),
        "boxes": np.float32([[32, 64, 80, 96]]),
        "classes": np.int32([1]),
        "crowd": np.array([kind == "crowd"]),
        "has_mask": np.array([kind != "box only"]),
    }
    tile = draw_tile(example, "", ("background", "cell"))[-512:]
    assert tile.shape == (512, 2 * 384, 3)
    left, right = tile[:, :384], tile[:, 384:]
    assert (left == 90).all()
    inside = right[4 * 64 + 4 : 4 * 96 - 4, 4 * 32 + 4 : 4 * 80 - 4]
    assert (inside != 90).any() == (kind != "box only")
    assert (np.ptp(inside, axis=2) > 0).any() == (kind == "object")  # a crowd is grey
    assert (right[4 * 64, 4 * 32 : 4 * 80] != 90).any(axis=1).all()  # the box
    assert (right[4 * 96 + 4 :] == 90).all()
