"""Batches are a function of source, transforms, seed and position, whoever computes them."""

import multiprocessing
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from segjax.data.augmentation.photometric import GreyValues
from segjax.data.augmentation.semantic import CenterCrop, Warp
from segjax.data.loading.loader import evaluation_examples, training_batches

AUGMENT = (Warp((6, 5), rotation=90.0, flip_horizontal=True), GreyValues(noise=0.1))


def make_source(count=7, height=8, width=9):
    """Examples whose first pixel is their index."""
    images = np.random.default_rng(0).integers(256, size=(count, height, width, 1), dtype=np.uint8)
    images[:, 0, 0, 0] = range(count)
    return [
        {
            "id": f"picture {index}",
            "image": images[index],
            "labels": np.arange(height * width, dtype=np.uint8).reshape(height, width) % 3,
            "instances": np.full((height, width), 2**30 + index, np.int32),
            "second_observer": np.zeros((height, width), np.uint8),
        }
        for index in range(count)
    ]


def take(count, source, transforms=AUGMENT, **options):
    options = {"batch_size": 4, "seed": 3, "num_threads": 0, **options}
    batches = training_batches(source, transforms, **options)
    try:
        return list(islice(batches, count))
    finally:
        batches.close()


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)
            assert batch[key].dtype == other[key].dtype


def indices(batches):
    return np.concatenate([batch["index"] for batch in batches])


def test_each_epoch_has_each_example_once_in_an_order_of_its_own():
    epochs = indices(take(21, make_source())).reshape(12, 7)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(7), (12, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 12


def test_batches_have_the_dtypes_of_the_device_and_belong_to_their_index():
    source = make_source()
    for batch in take(4, source, ()):
        assert {key: value.dtype for key, value in batch.items()} == {
            "image": np.float32,
            "labels": np.int32,
            "instances": np.int32,
            "index": np.int32,
        }
        assert batch["image"].shape == (4, 8, 9, 1)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
        np.testing.assert_array_equal(batch["instances"][:, 7, 8], 2**30 + batch["index"])
        np.testing.assert_array_equal(batch["labels"][3], source[0]["labels"])


def test_starting_at_a_batch_equals_skipping_to_it():
    source = make_source()
    assert_same(take(6, source, start=5), take(11, source)[5:])
    assert len(take(1, source, start=10**12)) == 1


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_change_nothing(num_threads):
    source = make_source()
    assert_same(take(8, source, num_threads=num_threads), take(8, source))


@pytest.mark.parametrize("process_count", [2, 4])
def test_the_shares_of_all_processes_make_up_the_batches_of_one(process_count):
    source = make_source()
    shares = [
        take(5, source, process_index=index, process_count=process_count, start=2)
        for index in range(process_count)
    ]
    whole = [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_same(whole, take(5, source, start=2))


PARTS = [(0, 3), (3, 6), (6, 10)]  # of ten examples, for three processes


def test_processes_may_each_draw_from_their_own_part():
    source, augmented = make_source(10), []
    for process, (start, stop) in enumerate(PARTS):
        place = {"process_index": process, "process_count": 3, "part_only": True}
        batches = take(2 * (stop - start), source, batch_size=3, **place)
        epochs = indices(batches).reshape(2, stop - start)
        np.testing.assert_array_equal(np.sort(epochs, axis=1), [range(start, stop)] * 2)
        later = take(2, source, batch_size=3, start=3, **place)
        assert_same(later, batches[3:5])
        augmented += [batch["image"].tobytes() for batch in batches]
    assert len(set(augmented)) == 20


def test_the_part_of_one_process_is_the_whole():
    source = make_source(10)
    assert_same(take(6, source, part_only=True), take(6, source))


def test_a_process_opens_no_example_of_another_part():
    class Half(list):
        def __getitem__(self, index):
            assert index >= 5, index
            return super().__getitem__(index)

    place = {"process_index": 1, "process_count": 2}
    assert set(indices(take(10, Half(make_source(10)), part_only=True, **place))) == {*range(5, 10)}
    part = evaluation_examples(Half(make_source(10)), **place)
    assert [index for index, _ in part] == [*range(5, 10)]


def test_the_batches_of_all_parts_have_the_same_group():
    source, groups = make_source(10), np.array([0, 1] * 5)
    both = [
        indices(
            take(10, source, groups=groups, process_index=k, process_count=2, part_only=True)
        ).reshape(10, 2)
        for k in range(2)
    ]
    assert set(both[0].ravel()) == {*range(5)}
    assert set(both[1].ravel()) == {*range(5, 10)}
    of_each = groups[np.concatenate(both, axis=1)]
    assert (of_each == of_each[:, :1]).all()
    assert {*of_each[:, 0]} == {0, 1}


@pytest.mark.parametrize(
    ("size", "groups", "message"),
    [
        (1, None, "process 0 of 2 has no example: its part holds 0 of 1 examples. Train with few"),
        (4, [0, 1, 1, 1], "process 1 of 2 has no example of group 0, such as an orientation: its"),
    ],
)
def test_a_part_without_examples_is_refused(size, groups, message):
    place = {"process_index": int(size > 1), "process_count": 2, "part_only": True}
    with pytest.raises(ValueError, match=message):
        training_batches(
            make_source(size),
            (),
            batch_size=2,
            seed=0,
            groups=None if groups is None else np.array(groups),
            **place,
        )


def test_the_seed_decides_order_and_augmentation():
    source = make_source()
    assert_same(take(3, source), take(3, source))
    assert (indices(take(3, source)) != indices(take(3, source, seed=4))).any()
    one = make_source(1)
    images = [take(1, one, batch_size=1, seed=seed)[0]["image"] for seed in (3, 4)]
    assert (images[0] != images[1]).any()


def test_an_example_is_augmented_anew_in_each_epoch():
    labels = [batch["labels"] for batch in take(20, make_source(1), batch_size=1)]
    assert len({array.tobytes() for array in labels}) > 15


def test_workers_change_nothing_name_a_bad_example_and_leave():
    source = make_source(5)
    expected = take(4, source, batch_size=1, start=1)
    bad = int(expected.pop()["index"][0])
    del source[bad]["image"]
    batches = training_batches(source, AUGMENT, batch_size=1, seed=3, start=1, num_workers=2)
    assert_same(list(islice(batches, 3)), expected)
    message = rf"example {bad} of 5, id 'picture {bad}': Warp failed: KeyError: 'image'"
    with pytest.raises(RuntimeError, match=message):
        next(batches)
    assert not multiprocessing.active_children()


def test_workers_end_when_their_parent_is_killed():
    script = """
import multiprocessing, os, signal
from segjax.data.loading.loader import training_batches
source = [{"image": [1.0], "id": "a"}]
batches = training_batches(source, (), batch_size=1, seed=0, num_workers=1)
next(batches)
print("running", len(multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    # A surviving worker would hold the pipe open until the time limit.
    result = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    assert result.stdout == b"running 1\n"


class Unreadable:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 2:
            raise OSError("disk on fire")
        return make_source()[index]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_unreadable_example_is_named(num_threads):
    with pytest.raises(RuntimeError, match="example 2 of 3: reading failed: OSError: disk on fire"):
        take(1, Unreadable(), batch_size=3, num_threads=num_threads)
    with pytest.raises(RuntimeError, match="example 2 of 3: reading failed: OSError: disk on fire"):
        list(evaluation_examples(Unreadable(), num_threads=num_threads))


def test_an_example_that_a_transform_refuses_is_named_with_the_transform():
    source = [*make_source(2), *make_source(1, height=5)]
    message = r"id 'picture 0': CenterCrop failed: ValueError: the image is 5 × 9, smaller than"
    with pytest.raises(RuntimeError, match=message):
        take(1, source, (CenterCrop((6, 6)),), batch_size=3)


def test_a_batch_of_different_shapes_or_entries_names_two_examples():
    source = make_source(2)
    source[1] = make_source(2, height=5)[1]
    with pytest.raises(ValueError, match=r"'image' .*'picture \d' .*'picture \d' .*one size"):
        take(1, source, (), batch_size=2)
    source = make_source(2)
    del source[0]["instances"]
    with pytest.raises(ValueError, match=r"'instances' differs.*None"):
        take(1, source, (), batch_size=2)


@pytest.mark.parametrize("process_count", [1, 2, 3, 5])
@pytest.mark.parametrize("num_threads", [0, 2])
def test_evaluation_reads_each_example_once_and_in_order(process_count, num_threads):
    source = make_source(4)
    seen = []
    for process_index in range(process_count):
        part = list(
            evaluation_examples(
                source,
                process_index=process_index,
                process_count=process_count,
                num_threads=num_threads,
            )
        )
        assert 4 // process_count <= len(part) <= -(-4 // process_count)
        seen += part
    assert [index for index, _ in seen] == [0, 1, 2, 3]
    assert all(example is source[index] for index, example in seen)


def test_evaluation_transforms_repeat_themselves():
    runs = [list(evaluation_examples(make_source(3), AUGMENT)) for _ in range(2)]
    for (_, example), (_, again) in zip(*runs, strict=True):
        np.testing.assert_array_equal(example["image"], again["image"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 3, "process_count": 2}, "batch_size 3 must be .* process_count 2"),
        ({"process_index": 2, "process_count": 2}, r"process_index 2 must be within 0\.\.1"),
        ({"seed": -1}, "seed .*-1"),
        ({"start": -1}, "start .*-1"),
        ({"num_workers": -1}, "num_workers .*-1"),
        ({"source": []}, "no examples"),
    ],
)
def test_impossible_requests_are_refused_at_once(options, message):
    options = {"source": make_source(), "transforms": (), "batch_size": 4, "seed": 0, **options}
    with pytest.raises(ValueError, match=message):
        training_batches(**options)
