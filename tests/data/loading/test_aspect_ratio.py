"""Batches hold one group each, use all examples equally, and are a function of position."""

from itertools import islice

import numpy as np
import pytest

from segjax.data.loading.aspect_ratio import GroupSchedule, orientation_groups
from segjax.data.loading.loader import training_batches
from tests.data.loading.test_loader import assert_same, indices, make_source, take

GROUPS = np.array([0, 1, 0, 0, 1, 0, 0])


def test_images_taller_than_wide_are_one_group_and_square_ones_are_of_the_other():
    sizes = np.array([[480, 640], [640, 480], [512, 512], [513, 512]])
    groups = orientation_groups(sizes)
    np.testing.assert_array_equal(groups, [0, 1, 0, 1])
    assert groups.dtype == np.int32
    with pytest.raises(ValueError, match=r"expected sizes \[n, 2\], got shape \(4,\)"):
        orientation_groups(sizes[:, 0])


@pytest.mark.parametrize("counts", [(5, 2), (1, 1), (7, 0), (0, 3), (90, 7), (3, 4, 5), (1, 0, 99)])
def test_each_group_has_its_share_of_the_batches_spread_evenly(counts):
    schedule = GroupSchedule(np.repeat(np.arange(len(counts)), counts))
    total = sum(counts)
    seen = np.zeros(len(counts), int)
    for number in range(3 * total):
        group, before = schedule.of_batch(number)
        assert before == seen[group]
        seen[group] += 1
        # A group deviates from its share by less than one batch for each other group.
        share = (number + 1) * np.array(counts) / total
        assert (np.abs(seen - share) < max(1, len(counts) - 1)).all()
    np.testing.assert_array_equal(seen, 3 * np.array(counts))


def test_a_batch_far_on_is_known_at_once():
    schedule = GroupSchedule(GROUPS)
    group, before = schedule.of_batch(7 * 10**15 + 3)
    assert (group, before - 10**15 * (5, 2)[group]) == schedule.of_batch(3)


def test_all_examples_of_a_batch_are_of_one_group():
    batches = take(21, make_source(), groups=GROUPS)
    assert all(len(set(GROUPS[batch["index"]])) == 1 for batch in batches)
    assert {int(GROUPS[batch["index"][0]]) for batch in batches} == {0, 1}


def test_each_epoch_of_a_group_has_each_of_its_examples_once():
    seen = indices(take(35, make_source(), (), groups=GROUPS))
    for group in (0, 1):
        members = np.flatnonzero(group == GROUPS)
        of_group = seen[GROUPS[seen] == group]
        epochs = of_group.reshape(-1, len(members))
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(members, (len(epochs), 1)))
    # 35 batches of 4 are 20 epochs of 7 examples.
    np.testing.assert_array_equal(np.bincount(seen), np.full(7, 20))


def test_starting_at_a_grouped_batch_equals_skipping_to_it():
    source = make_source()
    batches = take(12, source, groups=GROUPS)
    assert_same(take(7, source, start=5, groups=GROUPS), batches[5:])
    assert len(take(1, source, start=10**12, groups=GROUPS)) == 1


@pytest.mark.parametrize("options", [{"num_threads": 3}, {"num_workers": 1}])
def test_threads_and_workers_change_nothing_of_grouped_batches(options):
    source = make_source()
    batches = take(6, source, groups=GROUPS, **options)
    assert_same(batches, take(6, source, groups=GROUPS))


def test_the_shares_of_two_processes_make_up_the_grouped_batches_of_one():
    source = make_source()
    shares = [
        take(9, source, groups=GROUPS, process_index=index, process_count=2) for index in (0, 1)
    ]
    whole = [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_same(whole, take(9, source, groups=GROUPS))


def test_without_groups_the_order_is_a_permutation_drawn_from_seed_epoch_and_count():
    """The order is written out, so that no change of the loader alters recorded runs."""
    expected = [np.random.default_rng((3, epoch, 7)).permutation(7) for epoch in range(4)]
    source = make_source()
    np.testing.assert_array_equal(indices(take(7, source, ())), np.concatenate(expected))
    assert_same(take(7, source, groups=np.zeros(7, int)), take(7, source))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.zeros(6, int), r"groups of shape \(6,\) for 7 examples"),
        (np.zeros(7), "groups must be integers .* float64"),
        (np.full(7, -1), "lowest -1"),
    ],
)
def test_impossible_groups_are_refused_at_once(groups, message):
    with pytest.raises(ValueError, match=message):
        training_batches(make_source(), (), batch_size=4, seed=0, groups=groups)


def test_images_of_two_shapes_make_batches_of_one_shape_each():
    tall, wide = make_source(3, height=9, width=5), make_source(4, height=5, width=9)
    source = [*tall, *wide]
    groups = orientation_groups(np.array([example["image"].shape[:2] for example in source]))
    batches = training_batches(source, (), batch_size=2, seed=0, num_threads=0, groups=groups)
    shapes = {batch["image"].shape for batch in islice(batches, 14)}
    batches.close()
    assert shapes == {(2, 9, 5, 1), (2, 5, 9, 1)}
