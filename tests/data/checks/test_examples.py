"""The check that guards every source: what it refuses, with the cause, and what it lets through."""

import pickle

import numpy as np
import pytest

from segjax.data.checks.examples import (
    PROBLEMS_NAMED,
    BadData,
    ExampleCheck,
    check_before_training,
)
from segjax.data.instance_masks import EMPTY
from segjax.data.loading.loader import evaluation_examples, training_batches

SEMANTIC = ExampleCheck(
    num_classes=2, channels=(3,), dtypes=("uint8",), required=("image", "labels")
)


def example(labels=((0, 1), (1, 0)), **changes):
    labels = np.array(labels, np.uint8)
    image = np.zeros((*labels.shape, 3), np.uint8)
    return {"id": "cat", "image": image, "labels": labels, **changes}


def image_of(dtype, value, channels=3):
    return np.full((2, 2, channels), value, dtype)


def test_a_right_example_passes_as_it_is():
    given = example()
    assert SEMANTIC(given, None) is given
    given = example([[0, 255], [255, 1]])  # 255 is ignored
    assert SEMANTIC(given, None) is given


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": image_of(np.float32, 0.5)}, r"found float32 from 0.5 to 0.5: scaled to 0..1\?"),
        ({"image": image_of(np.float64, 300)}, "found float64 from 300 to 300: cast it"),
        ({"image": image_of(np.uint16, 4000)}, "found uint16 from 4000 to 4000: .* 0 to 255"),
        ({"image": image_of(np.int64, 7)}, "expected uint8 pixels, found int64"),
        (
            {"image": image_of(np.uint8, 7, channels=4)},
            r"expected \[height, width, 3\], found .*4\]",
        ),
        ({"image": np.zeros((2, 2), np.uint8)}, r"found the shape \[2, 2\]"),
        ({"image": [[1, 2]]}, "expected a NumPy array, found list"),
        ({"labels": np.array([[0, 1], [2, 0]])}, "labels has value 2, but classes are 0 to 1"),
        ({"labels": np.array([[0, 1], [-1, 0]])}, "labels has value -1, but classes are 0 to 1"),
        ({"labels": np.zeros((2, 2), np.float32)}, "labels: expected integers, found float32"),
        ({"labels": np.zeros((3, 2), np.uint8)}, "labels has size 3×2, the image 2×2"),
    ],
)
def test_a_wrong_entry_is_refused_with_what_was_expected(changes, message):
    with pytest.raises(BadData, match=message):
        SEMANTIC(example() | changes, None)


def objects(boxes, **others):
    count = len(boxes)
    return {
        "id": "cat",
        "image": image_of(np.uint8, 0),
        "boxes": np.array(boxes, np.float32),
        "classes": np.ones(count, np.int32),
        "masks": (EMPTY,) * count,
        "crowd": np.zeros(count, bool),
        "areas": np.ones(count, np.float32),
        **others,
    }


OBJECTS = ExampleCheck(num_classes=2, channels=(3,), required=("image", "boxes", "classes"))


def test_optional_entries_of_objects_are_counted_too():
    OBJECTS(objects([[0, 0, 1, 1]], has_mask=np.array([False])), None)
    with pytest.raises(BadData, match=r"the entries of objects differ in number: .*'has_mask': 2"):
        OBJECTS(objects([[0, 0, 1, 1]], has_mask=np.array([False, True])), None)


def test_a_box_without_extent_is_only_scored():
    flat = objects([[0, 0, 0, 1]])
    with pytest.raises(BadData, match="a box lies outside of the image or has no extent"):
        OBJECTS(flat, None)
    as_annotated = {"annotated_boxes": np.array([[-3.0, 0, 3, 1]]), "annotated_areas": np.ones(1)}
    OBJECTS(flat | as_annotated, None)


def test_a_missing_entry_is_named_with_those_there_are():
    given = {key: value for key, value in example().items() if key != "labels"}
    with pytest.raises(BadData, match="it has no 'labels'; it has 'id', 'image'"):
        SEMANTIC(given, None)


def test_sixteen_bits_pass_where_the_preprocessing_takes_them():
    check = ExampleCheck(num_classes=2, channels=(1, 3), required=("image", "labels"))
    check(example(image=image_of(np.uint16, 60_000)), None)
    check(example(image=image_of(np.uint8, 6, channels=1)), None)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_names_the_example_that_it_refuses(num_workers):
    source = [example(), example([[0, 9]], id="dog")]
    batches = training_batches(source, (SEMANTIC,), batch_size=2, seed=0, num_workers=num_workers)
    with pytest.raises(BadData, match=r"^example 1 of 2, id 'dog': labels has value 9, but"):
        next(batches)
    batches.close()


def test_evaluation_names_the_example_that_it_refuses():
    source = [example(), example(id="dog", image=image_of(np.uint8, 0, channels=1))]
    with pytest.raises(BadData, match=r"^example 1 of 2, id 'dog': image: expected"):
        list(evaluation_examples(source, (SEMANTIC,)))


def before_training(train, **others):
    check_before_training({"train": train, **others}, SEMANTIC, progress=False)


def test_what_is_right_starts():
    empty = example([[0, 0]], id="empty")
    before_training([example(), empty], val=[empty])  # a scored split may lack a class


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_of_0_and_255_are_told_apart_from_ignored_pixels(split):
    mask, right = example([[0, 255], [255, 0]]), example()
    sources = {"train": [right], "val": [right], split: [mask, mask]}
    with pytest.raises(BadData, match=f"^{split}: labels are 0 and 255 .* never 1: a 0/255 mask"):
        check_before_training(sources, SEMANTIC, progress=False)
    check_before_training(sources | {split: [mask, right]}, SEMANTIC, progress=False)


@pytest.mark.parametrize(
    ("value", "message"), [(0, "labels are 0 in all"), (1, "are 1 in"), (255, "are 255 .ignored")]
)
def test_a_training_set_of_one_class_is_refused(value, message):
    with pytest.raises(BadData, match=f"^train: .*{message}.*: there is nothing to learn"):
        before_training([example([[value, value]])])


def test_a_task_of_a_single_class_is_refused():
    one = ExampleCheck(num_classes=1, channels=(3,), required=("image", "labels"))
    source = [example([[0, 255], [0, 0]])]
    with pytest.raises(BadData, match="nothing to learn; a single class: the background is"):
        check_before_training({"train": source}, one, progress=False)


def test_many_problems_become_five_and_a_count():
    source = [example([[0, 7]], id=str(number)) for number in range(606)]
    with pytest.raises(BadData) as error:
        before_training(source)
    first, *lines = str(error.value).splitlines()
    assert first == "500 problems in train:"  # as many as are read before the first step
    assert len(lines) == PROBLEMS_NAMED + 1
    assert lines[0] == "  example 0 of 606, id '0': labels has value 7, but classes are 0 to 1"
    assert lines[-1] == "  and 495 more"


def test_what_a_source_raises_becomes_a_line_with_the_example():
    class Broken(list):
        def __getitem__(self, index):
            raise KeyError("mask")

    with pytest.raises(BadData, match=r"^example 0 of 1: KeyError: 'mask'$"):
        before_training(Broken([0]))


def test_the_check_and_its_error_pickle_to_worker_processes():
    assert pickle.loads(pickle.dumps(SEMANTIC)) == SEMANTIC
    assert str(pickle.loads(pickle.dumps(BadData("a: b")))) == "a: b"
