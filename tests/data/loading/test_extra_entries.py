"""Entries that segjax does not know reach the batch and the evaluation, or are refused by name."""

import multiprocessing

import numpy as np
import pytest

from segjax.data.loading.loader import evaluation_examples
from tests.data.loading.test_loader import AUGMENT, assert_same, make_source, take


def with_extra(count=7):
    """Examples with maps and numbers that follow from their index and their labels."""
    source = make_source(count)
    for index, example in enumerate(source):
        example |= {
            "boundary": np.float64(example["labels"]) / 2,
            "again": example["labels"].astype(np.int64),
            "seen": example["labels"] > 0,
            "age": 0.5 * index,
            "night": index % 2 == 0,
            "camera": np.array([index, -index], np.int64),
        }
    return source


def test_maps_numbers_and_vectors_enter_the_batch():
    source = with_extra()
    for batch in take(4, source, ()):
        index = batch["index"]
        assert {key: (batch[key].dtype, batch[key].shape) for key in batch.keys() - {"image"}} == {
            "index": (np.int32, (4,)),
            "labels": (np.int32, (4, 8, 9)),
            "instances": (np.int32, (4, 8, 9)),
            "boundary": (np.float32, (4, 8, 9)),
            "again": (np.int32, (4, 8, 9)),
            "seen": (bool, (4, 8, 9)),
            "age": (np.float32, (4,)),
            "night": (bool, (4,)),
            "camera": (np.int32, (4, 2)),
        }
        np.testing.assert_array_equal(batch["age"], index / 2)
        np.testing.assert_array_equal(batch["night"], index % 2 == 0)
        np.testing.assert_array_equal(batch["camera"], np.stack([index, -index], 1))
        np.testing.assert_array_equal(batch["boundary"], batch["labels"] / 2)


def test_augmented_maps_stay_on_their_labels_whoever_computes_them():
    source = with_extra()
    batches = take(5, source)
    for batch in batches:
        np.testing.assert_array_equal(batch["again"], batch["labels"])
        np.testing.assert_array_equal(batch["seen"], batch["labels"] > 0)
    assert len({batch["again"].tobytes() for batch in batches}) == 5
    for options in ({"num_threads": 3}, {"num_workers": 2}):
        assert_same(take(5, source, **options), batches)
    assert_same(take(3, source, start=2), batches[2:])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a street", r"'mine' \(str\) cannot enter a batch"),
        ([1.0, 2.0], r"'mine' \(list\) cannot enter a batch"),
        (None, r"'mine' \(NoneType\) cannot enter a batch"),
        (np.array(["a"]), r"'mine' \(an array of <U1\) cannot enter a batch"),
        (np.array([None]), r"'mine' \(an array of object\) cannot enter"),
        (2**40, r"'mine' has integers from 1099511627776 .* 32 bits"),
        (np.array([0, 2**31]), r"'mine' has integers from 0 to 2147483648"),
    ],
)
def test_what_cannot_enter_a_batch_is_refused_by_name(value, message):
    source = make_source()
    for example in source:
        example["mine"] = value
    with pytest.raises(RuntimeError, match=rf"example \d, id 'picture \d': {message}"):
        take(1, source)


@pytest.mark.parametrize("name", ["index", "normalizer"])
def test_an_entry_with_a_name_of_segjax_is_refused(name):
    source = [{**example, name: 1} for example in make_source()]
    with pytest.raises(RuntimeError, match=rf"segjax adds an entry '{name}' .* rename yours"):
        take(1, source)


def test_workers_refuse_by_name_too_and_leave():
    source = [{**example, "mine": "text"} for example in make_source()]
    with pytest.raises(RuntimeError, match=r"id 'picture \d': 'mine' \(str\) cannot enter"):
        take(1, source, num_workers=1)
    assert not multiprocessing.active_children()


def test_a_transform_may_convert_or_remove_what_cannot_enter_a_batch():
    def measure(example, rng):
        kept = {key: value for key, value in example.items() if key != "text"}
        return {**kept, "length": len(example["text"])}

    source = [{**example, "text": "four"} for example in make_source()]
    (batch,) = take(1, source, (*AUGMENT, measure))
    np.testing.assert_array_equal(batch["length"], [4] * 4)
    assert "text" not in batch


def test_vectors_of_different_lengths_are_refused_in_a_batch_and_between_batches():
    source = make_source(2)
    for index, example in enumerate(source):
        example["points"] = np.zeros(2 + index)
    message = r"'points' differs in one batch: .* shape \([23],\) of float32 .* shape \([23],\)"
    with pytest.raises(ValueError, match=message):
        take(1, source, batch_size=2)
    with pytest.raises(ValueError, match=r"differ between batches: \{'points': 'float32 \[[23]\]'"):
        take(2, source, batch_size=1)


def test_numbers_of_different_types_are_refused():
    source = make_source(2)
    for example, age in zip(source, (3, 2.5), strict=True):
        example["age"] = age
    with pytest.raises(ValueError, match=r"'age' differs .* of (int32|float32) but .* of"):
        take(1, source, batch_size=2)


def test_maps_may_differ_in_size_between_batches_as_images_do():
    source = [*make_source(1), *make_source(1, height=9, width=8)]
    for example in source:
        example["mine"] = example["labels"]
    batches = take(2, source, (), batch_size=1)
    assert {batch["mine"].shape for batch in batches} == {(1, 8, 9), (1, 9, 8)}


def test_evaluation_sees_all_entries_and_numbers_examples_without_an_id():
    source = [{**example, "place": "here"} for example in with_extra(3)]
    for index, example in evaluation_examples(source):
        assert example is source[index]
    for example in source:
        del example["id"]
    found = [example for _, example in evaluation_examples(source)]
    assert [example["id"] for example in found] == ["0", "1", "2"]
    assert all(example["place"] == "here" for example in found)
