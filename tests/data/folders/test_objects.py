"""Objects from masks of classes, and classes of numbered objects."""

import re

import numpy as np
import pytest
from PIL import Image

from segjax.data.folders.contents import read_folders
from segjax.data.folders.division import DivisionConfig
from segjax.data.folders.mask_format import MaskFormat
from segjax.data.folders.objects import components, give_classes

WHOLE = DivisionConfig(val_share=0.0)


def flood(labels):
    """Numbers the regions by a search over the four neighbours: a slow oracle of `components`."""
    numbered, last = np.zeros(labels.shape, int), 0
    for wanted in sorted({*labels.ravel().tolist()} - {0, 255}):
        for start in zip(*np.nonzero(labels == wanted), strict=True):
            if numbered[start]:
                continue
            last += 1
            waiting = [start]
            while waiting:
                y, x = waiting.pop()
                inside = 0 <= y < labels.shape[0] and 0 <= x < labels.shape[1]
                if inside and labels[y, x] == wanted and not numbered[y, x]:
                    numbered[y, x] = last
                    waiting += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return numbered


def test_components_are_the_regions_that_a_search_over_four_neighbours_finds():
    rng = np.random.default_rng(0)
    for classes in ([0, 1], [0, 1, 2, 255], [0]):
        labels = rng.choice(classes, (23, 31)).astype(np.uint8)
        np.testing.assert_array_equal(components(labels), flood(labels))


def test_corners_part_objects_and_a_single_pixel_is_one():
    labels = np.array([[1, 0, 2], [0, 1, 2], [1, 1, 255]], np.uint8)
    np.testing.assert_array_equal(components(labels), [[1, 0, 3], [0, 2, 3], [2, 2, 0]])


def test_black_and_white_masks_hold_objects_in_the_order_of_their_class():
    stored = np.array([[255, 0, 255]], np.int32)
    decoded = MaskFormat("components", ("0", "255")).decode(stored, origin="m.png")
    np.testing.assert_array_equal(decoded["labels"], [[1, 0, 1]])
    np.testing.assert_array_equal(decoded["instances"], [[1, 0, 2]])


def test_an_object_gets_the_class_of_most_of_its_pixels_that_are_not_ignored():
    instances = np.array([[7, 7, 7, 0, 300, 300, 9]], np.int32)
    labels = np.array([[1, 2, 2, 1, 255, 1, 255]], np.uint8)
    entries, mixed = give_classes(instances, labels, origin="a")
    assert mixed == 1
    np.testing.assert_array_equal(entries["instances"], [[7, 7, 7, 0, 0, 300, 0]])
    np.testing.assert_array_equal(entries["labels"], [[2, 2, 2, 1, 255, 1, 255]])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 0, 1, 0]], "a: object 7 of the one lies on background of the other"),
        ([[0, 0, 0, 0]], "a: objects 7, 8 of the one lie on background"),
        ([[0, 1]], r"a: 1 × 4 and 1 × 2 pixels \(height × width\); expected the same size"),
    ],
)
def test_masks_that_do_not_belong_together_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        give_classes(np.array([[7, 7, 8, 0]]), np.array(labels, np.uint8), origin="a")


def write(folder, kind, arrays, name="{}.png"):
    (folder / kind).mkdir()
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / kind / name.format(f"s{number}"))
    return folder / kind


@pytest.fixture
def own(tmp_path):
    """Two images; one object of class 1, one of class 2, and a stray pixel in the first."""
    classes = np.zeros((2, 16, 20), np.uint8)
    classes[:, 2:8, 2:8], classes[:, 8:14, 2:8] = 1, 2  # they touch
    classes[0, 15, 19] = 2
    numbers = classes * 90
    numbers[0, 15, 19] = 91
    write(tmp_path, "images", classes * 100)
    write(tmp_path, "classes", classes)
    write(tmp_path, "numbers", numbers)
    return tmp_path


def read(own, masks, **options):
    return read_folders({"train": (own / "images", own / masks)}, WHOLE, **options)


def test_folders_of_classes_hold_objects_of_several_classes(own):
    contents = read(own, "classes", holds="components", classes=("ground", "round", "square"))
    assert not contents.problems
    source = contents.sources["train"]
    assert source.object_counts.tolist() == [3, 2]
    example = source[0]
    np.testing.assert_array_equal(example["instances"], flood(example["labels"]))
    notes = "\n".join(contents.notes)
    assert "5 objects in 2 masks: 2 round, 3 square. Each connected region" in notes
    assert re.search(r"1 of 5 objects have fewer than 16 pixels \(most in .*s0.png\)", notes)


def test_a_second_folder_of_masks_gives_numbered_objects_their_classes(own):
    table = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
    kinds = np.array([np.array(Image.open(own / "classes" / f"s{i}.png")) for i in range(2)])
    colors = write(own, "colors", table[kinds], name="{}_class.png")
    for folder, given in (
        (own / "classes", None),
        (colors, MaskFormat("classes", ("#000000", "#800000", "#008000"))),
    ):
        contents = read(own, "numbers", class_masks={"train": folder}, mask_format=given)
        assert not contents.problems
        assert contents.mask_format.holds == "instances"
        assert len(contents.class_format.values) == 3
        source = contents.sources["train"]
        assert source.object_counts.tolist() == [3, 2]
        np.testing.assert_array_equal(np.unique(source[0]["instances"]), [0, 90, 91, 180])
        np.testing.assert_array_equal(source[0]["labels"], kinds[0])
        assert contents.pixels == {0: 495, 1: 72, 2: 73}
        assert "5 objects in 2 masks: 2 class 1, 3 class 2" in contents.notes


def test_a_mask_of_classes_that_is_missing_or_of_other_objects_is_a_problem(own):
    Image.fromarray(np.zeros((16, 20), np.uint8)).save(own / "classes" / "s0.png")
    contents = read(own, "numbers", class_masks={"train": own / "classes"})
    assert len(contents.problems) == 1
    assert re.search(r"numbers/s0.png with .*classes/s0.png: objects 90, 91", contents.problems[0])
    (own / "classes" / "s0.png").unlink()
    contents = read(own, "numbers", class_masks={"train": own / "classes"})
    assert "1 image without a mask of a fitting name" in contents.problems[0]
    contents = read(own, "numbers", class_masks={"train": own / "classes"}, skip_unmatched=True)
    assert not contents.problems
    assert [pair.id for pair in contents.sources["train"].pairs] == ["s1"]


def test_a_changed_mask_of_classes_is_read_again(own):
    folders = {"class_masks": {"train": own / "classes"}}
    assert len(read(own, "numbers", **folders).class_format.values) == 3
    for number in range(2):
        path = own / "numbers" / f"s{number}.png"
        ones = (np.array(Image.open(path)) > 0).astype(np.uint8)
        Image.fromarray(ones).save(own / "classes" / f"s{number}.png")
    contents = read(own, "numbers", **folders)
    assert "5 objects in 2 masks" in contents.notes  # of one class
