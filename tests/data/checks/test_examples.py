"""The check that guards every source: what it refuses, with the cause, and what it lets through."""

import dataclasses
import pickle
from functools import partial

import numpy as np
import pytest

from segjax.data.augmentation.semantic import Normalize
from segjax.data.checks.examples import (
    BadData,
    ExampleCheck,
    check_before_training,
    open_sources,
)
from segjax.data.instance_masks import EMPTY, crop_mask
from segjax.data.loading.loader import evaluation_examples, training_batches
from segjax.data.loading.part import own_part
from segjax.messages.lists import PROBLEMS_NAMED

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
        ({"image": image_of(np.uint16, 4000)}, "uint16 from 4000 to 4000: .*network.pixel_range"),
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
        ({"labels": None}, "labels: expected a NumPy array, found NoneType"),
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


@pytest.mark.parametrize(
    "box",
    [
        [1, 0, 1 + 2.0**-30, 1],  # float32 has no such number
        [0, 0, 1e-7, 1],  # it would not survive scaling and mirroring
        [0, 0, np.nan, 1],
        [0, 0, 1, 3],
    ],
)
def test_a_box_is_checked_in_float32_as_it_is_used(box):
    given = objects([[0, 0, 1, 1]]) | {"boxes": np.array([box])}
    with pytest.raises(BadData, match=r"no extent in float32: box 0 is .* in an image of 2 × 2"):
        OBJECTS(given, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": (None,)}, "masks: expected a CroppedMask for each object, found NoneType"),
        ({"crowd": [False]}, "crowd: expected a NumPy array, found list"),
        ({"boxes": np.zeros((1, 5))}, r"boxes: expected \[n, 4\], found \[1, 5\]"),
        ({"boxes": np.zeros(4)}, r"boxes: expected \[n, 4\], found the shape \[4\]"),
        ({"boxes": np.array([["0", "0", "1", "1"]])}, "boxes: expected numbers, found <U1"),
        ({"classes": np.array([1.5])}, "classes: expected integers, found float64"),
        ({"classes": np.array(1)}, r"classes: expected \[n\], found the shape \[\]"),
        ({"classes": np.array(["red"])}, "classes: expected integers, found <U3"),
        ({"crowd": np.array([0])}, "crowd: expected bool, found int64"),
        ({"crowd": np.array(["0"])}, "crowd: expected bool, found <U1"),
        ({"has_mask": np.array([1])}, "has_mask: expected bool, found int64"),
        ({"areas": np.array(["1"])}, "areas: expected numbers, found <U1"),
        ({"masks": None}, "masks: expected a tuple, found NoneType"),
        ({"masks": EMPTY}, "masks: expected a tuple, found CroppedMask"),
    ],
)
def test_a_wrong_entry_of_objects_is_named(changes, message):
    with pytest.raises(BadData, match=message):
        OBJECTS(objects([[0, 0, 1, 1]]) | changes, None)


def test_boxes_that_do_not_fit_their_masks_are_refused_where_most_do_not():
    mask = crop_mask(np.eye(2, dtype=bool)[:, :1])  # the first pixel alone

    def problems_of(*boxes):
        source = [objects([box], masks=(mask,)) for box in boxes]
        check_before_training({"train": source}, OBJECTS, progress=False)

    fits, apart = [0, 0, 1, 1], [1, 1, 2, 2]
    problems_of(fits, apart)
    with pytest.raises(BadData, match="train: 2 of 3 boxes do not fit their masks"):
        problems_of(fits, apart, apart)


def test_parts_are_judged_together():
    """What only a whole split shows is not told from the part of one process."""
    source = [example(labels=np.full((2, 2), value, np.uint8)) for value in (0, 0, 1, 0)]
    read, messages = [], []

    def gather(reports):
        read.append(reports)
        return read

    for index in range(2):
        part = partial(own_part, process_index=index, process_count=2)
        try:
            report = check_before_training(
                {"train": source}, SEMANTIC, part=part, gather=gather, progress=False
            )["train"]
        except BadData as error:
            messages.append(str(error))
    # The first process here gathers its own report only, as if it were all of them.
    assert messages == ["train: labels are 0 in all examples: there is nothing to learn"]
    whole = check_before_training({"train": source}, SEMANTIC, progress=False)["train"]
    assert report == whole
    assert report.digest(4) == whole.digest(4)


def test_problems_of_other_parts_are_left_to_their_processes():
    class Files(list):
        def file_problems(self):
            return {0: "a.png is damaged"}

    source = Files([{}, *[example(labels=np.array([[0, 1]] * 2, np.uint8))] * 3])
    part = partial(own_part, process_index=1, process_count=2)
    check_before_training({"train": source}, SEMANTIC, part=part, progress=False)
    with pytest.raises(BadData, match=r"train: a.png is damaged"):
        check_before_training({"train": source}, SEMANTIC, progress=False)


def test_a_source_of_crowds_alone_is_refused_without_counts_of_its_own():
    crowd = objects([[0, 0, 1, 1]], crowd=np.array([True]))
    with pytest.raises(BadData, match="train: no example has an object that is not a crowd"):
        check_before_training({"train": [crowd]}, OBJECTS, progress=False)
    check_before_training({"train": [crowd, objects([[0, 0, 1, 1]])]}, OBJECTS, progress=False)


def test_pixels_that_are_not_finite_are_refused_where_floats_are_taken():
    check = ExampleCheck(num_classes=2, channels=(1, 3), required=("image", "labels"))
    for value in (np.nan, np.inf):
        given = example(image=image_of(np.float32, value))
        with pytest.raises(BadData, match="image: expected finite pixels"):
            check(given, None)
        with pytest.raises(BadData, match="image: expected finite pixels"):
            check_before_training({"train": [given]}, check, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros((2, 2, 1), int)}, "labels has size 2×2×1, the image 2×2"),
        ({"labels": np.array(1)}, r"labels has size 1 \(a single number\), the image 2×2"),
        ({"labels": np.array([[0, -1], [0, 1]])}, "value -1, but .* -1 meant for ignored pixels"),
        ({"weights": np.full((2, 2), np.nan)}, "weights: expected finite numbers from 0 on"),
        ({"weights": -np.ones((2, 2))}, "weights: expected finite numbers from 0 on"),
        ({"weights": np.full((2, 2), "1")}, "weights: expected finite numbers from 0 on"),
        ({"instances": np.ones((2, 2))}, "instances: expected integers, found float64"),
    ],
)
def test_maps_of_other_shapes_types_and_values_are_refused(changes, message):
    with pytest.raises(BadData, match=message):
        SEMANTIC(example([[0, 1], [1, 1]]) | changes, None)


def test_instances_lie_on_any_class_but_the_background():
    given = example([[0, 1], [1, 0]], instances=np.array([[1, 0], [0, 1]]))
    for background, refused in ((0, True), (1, False), (None, False)):
        check = dataclasses.replace(SEMANTIC, background=background)
        assert bool(check.problems(given)) == refused


def test_a_missing_entry_is_named_with_those_there_are():
    given = {key: value for key, value in example().items() if key != "labels"}
    with pytest.raises(BadData, match="it has no 'labels'; it has 'id', 'image'"):
        SEMANTIC(given, None)


def test_sixteen_bits_pass_where_the_preprocessing_takes_them():
    check = ExampleCheck(num_classes=2, channels=(1, 3), required=("image", "labels"))
    check(example(image=image_of(np.uint16, 60_000)), None)
    check(example(image=image_of(np.uint8, 6, channels=1)), None)


RANGE = dataclasses.replace(SEMANTIC, pixel_range=(0, 65535))


def test_a_range_of_pixels_converts_only_images_that_the_task_does_not_take():
    photo = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    assert RANGE(given := example(image=photo), None) is given
    wide = example(image=photo * np.uint16(257))
    for found in (RANGE(wide, None), RANGE.check_image(wide)):
        np.testing.assert_array_equal(found["image"], photo)
        assert found["image"].dtype == np.uint8
    takes_all = dataclasses.replace(RANGE, dtypes=("uint8", "uint16"))
    assert takes_all(wide, None) is wide
    with pytest.raises(BadData, match=r"found float32 from .* they must be finite"):
        RANGE(example(image=image_of(np.float32, np.nan)), None)
    with pytest.raises(ValueError, match="pixel_range=7 3; expected"):
        dataclasses.replace(SEMANTIC, pixel_range=(7, 3))


def test_training_reads_converted_images_from_the_check_on():
    photo = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    wide = [example(image=photo * np.uint16(257))]
    check_before_training({"train": wide}, RANGE, progress=False)
    with pytest.raises(BadData, match="set it to 0 65535"):
        check_before_training({"train": wide}, SEMANTIC, progress=False)
    normalize = Normalize(mean=100.0, std=50.0)
    seen = []
    for source in (wide, [example(image=photo)]):
        batches = training_batches(source, (RANGE, normalize), batch_size=1, seed=0, num_threads=0)
        seen.append(next(batches)["image"])
        batches.close()
    np.testing.assert_array_equal(*seen)


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


def test_masks_of_0_and_255_name_their_cause_among_many_classes_too():
    many = dataclasses.replace(SEMANTIC, num_classes=21)
    source = [example([[0, 255], [0, 0]])]
    with pytest.raises(BadData, match="a 0/255 mask that is not mapped to the classes"):
        check_before_training({"train": source}, many, progress=False)
    right = [example([[0, 5], [0, 0]])]
    check_before_training({"train": right, "val": source}, many, progress=False)


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


def test_the_problems_of_all_splits_are_named_at_once():
    wrong = [example([[0, 7]])]
    with pytest.raises(BadData) as error:
        before_training(wrong, val=[example()], test=wrong * 2)
    first, second, *lines = str(error.value).splitlines()
    assert first.startswith("train: example 0 of 1, id 'cat': labels has value 7")
    assert second == "2 problems in test:"
    assert len(lines) == 2


def test_a_split_without_objects_is_refused():
    class Counted(list):
        object_counts = np.zeros(1, int)

    empty, full = objects(np.zeros((0, 4))), objects([[0, 0, 1, 1]])
    check_before_training({"train": [full], "val": [empty]}, OBJECTS, progress=False)
    with pytest.raises(BadData, match=r"^val: no example has an object that is not a crowd$"):
        check_before_training({"train": [full], "val": Counted([empty])}, OBJECTS, progress=False)


def test_what_a_source_finds_in_all_its_files_is_named_and_not_read_again():
    class Files(list):
        def file_problems(self):
            return {number: f"{number}.png: cut short" for number in range(0, 1000, 2)}

        def __getitem__(self, index):
            assert index % 2
            return super().__getitem__(index)

    with pytest.raises(BadData, match=r"^500 problems in train:\n  0\.png: cut short\n"):
        before_training(Files([example()] * 1000))


def test_all_splits_that_cannot_be_opened_are_named():
    def fails(message):
        raise FileNotFoundError(message)

    assert open_sources({"train": lambda: "a", "val": lambda: "b"}) == {"train": "a", "val": "b"}
    with pytest.raises(FileNotFoundError, match=r"^not prepared$"):
        open_sources(dict.fromkeys(("train", "val"), lambda: fails("not prepared")))
    with pytest.raises(BadData, match=r"2 problems in the data:\n  train\.json.*\n  val\.json"):
        open_sources({name: partial(fails, f"{name}.json") for name in ("train", "val")})


def test_a_source_without_a_length_is_named():
    with pytest.raises(BadData, match=r"^train: expected a source with __len__ .* found generator"):
        before_training(each for each in [example()])


def test_what_a_source_raises_becomes_a_line_with_the_example():
    class Broken(list):
        def __getitem__(self, index):
            raise KeyError("mask")

    with pytest.raises(BadData, match=r"^train: example 0 of 1: KeyError: 'mask'$"):
        before_training(Broken([0]))


def test_the_check_and_its_error_pickle_to_worker_processes():
    assert pickle.loads(pickle.dumps(SEMANTIC)) == SEMANTIC
    assert str(pickle.loads(pickle.dumps(BadData("a: b")))) == "a: b"
