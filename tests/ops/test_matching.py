"""Matching and sampling against a slow oracle, with ties, empty truths and few candidates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.matching import BLOCK, _match_in_blocks, _match_one_by_one, match, sample
from segjax.ops.platforms import for_every_platform

match_rpn = jax.jit(partial(match, high=0.7, low=0.3, allow_low_quality=True))
match_box_head = jax.jit(partial(match, high=0.5, low=0.5, allow_low_quality=False))
sample_eight = jax.jit(partial(sample, size=8, positive_fraction=0.5))


def squares(*corners_and_sides):
    return np.array([(x, y, x + side, y + side) for x, y, side in corners_and_sides], np.float32)


def whole_boxes(rng, number, extent=12):
    """Boxes of a few whole numbers, so that IoUs are often equal and products exact."""
    low = rng.integers(0, extent, (number, 2))
    return np.concatenate((low, low + rng.integers(0, 7, (number, 2))), 1).astype(np.float32)


def oracle(candidates, truth, valid, high, low, allow_low_quality):
    """The rules one pair at a time, in float32 as the reference implementations compute."""
    iou = np.full((len(candidates), len(truth)), -1, np.float32)
    for i, a in enumerate(candidates):
        for j, b in enumerate(truth):
            sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
            intersection = sides[0] * sides[1]
            union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - intersection
            if valid[j]:
                iou[i, j] = intersection / union if intersection > 0 else 0
    matched, labels = np.zeros(len(candidates), int), np.zeros(len(candidates), int)
    for i in range(len(candidates)):
        if valid.any():
            matched[i] = np.argmax(iou[i])
            best = iou[i].max()
            labels[i] = 1 if best >= np.float32(high) else 0 if best < np.float32(low) else -1
    for j in np.flatnonzero(valid) if allow_low_quality else ():
        if iou[:, j].max() > 0:
            labels[iou[:, j] == iou[:, j].max()] = 1
    return matched, labels


def assert_equal(results, expected):
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("matcher", "options"), [(match_rpn, (0.7, 0.3, True)), (match_box_head, (0.5, 0.5, False))]
)
def test_matches_are_the_oracles_with_many_ties_and_gaps_among_the_valid(matcher, options):
    seen = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        candidates, truth = whole_boxes(rng, 60), whole_boxes(rng, 7)
        valid = rng.random(7) < 0.6
        expected = oracle(candidates, truth, valid, *options)
        seen |= set(expected[1])
        assert_equal(matcher(candidates, truth, valid), expected)
    assert seen == ({-1, 0, 1} if options[2] else {0, 1})


def test_low_quality_matches_come_after_thresholds_and_keep_the_truth_they_overlap_most():
    # Candidate 1 is the best that truth 1 has, and overlaps truth 0 more.
    candidates = squares((0, 0, 10), (3, 0, 10), (100, 100, 5))
    truth = squares((0, 0, 10), (11, 0, 10))
    matched, labels = match_rpn(candidates, truth, np.ones(2, bool))
    np.testing.assert_array_equal(matched[:2], [0, 0])
    np.testing.assert_array_equal(labels, [1, 1, 0])
    assert_equal(match_box_head(candidates, truth, np.ones(2, bool)), ([0, 0, 0], [1, 1, 0]))


def test_all_candidates_that_tie_for_a_truth_are_positive():
    candidates = squares((8, 8, 4), (12, 8, 4), (8, 12, 4), (40, 0, 4))
    _, labels = match_rpn(candidates, squares((10, 10, 4)), np.ones(1, bool))
    np.testing.assert_array_equal(labels, [1, 1, 1, 0])


def test_ties_that_are_not_whole_numbers_are_found():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 100, (40, 2)).astype(np.float32)
    boxes = np.concatenate((boxes, boxes + rng.uniform(5, 40, (40, 2)).astype(np.float32)), 1)
    truth = boxes[::5] + rng.uniform(-9, 9, (8, 4)).astype(np.float32)
    _, labels = match_rpn(np.concatenate((boxes, boxes)), truth, np.ones(8, bool))
    assert np.sum(labels == 1) > 8
    np.testing.assert_array_equal(labels[:40], labels[40:])


def test_a_truth_that_overlaps_nothing_makes_no_candidate_positive():
    candidates = squares((0, 0, 4), (8, 0, 4))
    truth = np.concatenate((squares((50, 50, 4)), np.zeros((1, 4), np.float32)))
    assert_equal(match_rpn(candidates, truth, np.ones(2, bool)), ([0, 0], [0, 0]))


def test_thresholds_belong_to_the_higher_label():
    truth = squares((0, 0, 10))
    candidates = np.array([[0, 0, 10, 7], [0, 0, 10, 3], [0, 0, 10, 10]], np.float32)
    _, labels = match_rpn(candidates, truth, np.ones(1, bool))
    np.testing.assert_array_equal(labels, [1, -1, 1])
    half = np.array([[0, 0, 10, 5]], np.float32)
    np.testing.assert_array_equal(match_box_head(half, truth, np.ones(1, bool))[1], [1])


@pytest.mark.parametrize("matcher", [match_rpn, match_box_head])
def test_without_a_valid_truth_all_candidates_are_negative(matcher):
    boxes = squares((0, 0, 4), (8, 0, 4))
    assert_equal(matcher(boxes, boxes, np.zeros(2, bool)), ([0, 0], [0, 0]))
    assert_equal(matcher(boxes, boxes[:0], np.zeros(0, bool)), ([0, 0], [0, 0]))


def test_matching_a_batch_equals_matching_one_by_one():
    rng = np.random.default_rng(3)
    candidates = np.stack([whole_boxes(rng, 60) for _ in range(3)])
    truth = np.stack([whole_boxes(rng, 7) for _ in range(3)])
    valid = np.arange(7)[None] < np.array([[7], [0], [2]])
    batch = jax.jit(jax.vmap(match_rpn))(candidates, truth, valid)
    for i in range(3):
        one = match_rpn(candidates[i], truth[i], valid[i])
        assert_equal((batch[0][i], batch[1][i]), one)


def test_numpy_arrays_are_matched_outside_jit():
    boxes = squares((0, 0, 4), (8, 0, 4))
    valid = np.array([False, True])
    result = match(boxes, boxes, valid, high=0.5, low=0.5, allow_low_quality=False)
    assert_equal(result, ([1, 1], [0, 1]))


def both_forms(candidates, truth, valid, *, find_best, batch=False):
    """The results of the CPU's and the accelerators' form."""
    coordinates = tuple(np.moveaxis(candidates, -1, 0))
    end = np.max(np.where(valid, np.arange(1, valid.shape[-1] + 1), 0), -1).astype(np.int32)
    for form in (_match_one_by_one, _match_in_blocks):
        form = partial(form, find_best=find_best)
        form = jax.vmap(form) if batch else form
        yield jax.jit(form)(coordinates, truth, valid, end)


@pytest.mark.parametrize("find_best", [True, False])
@pytest.mark.parametrize("objects", [1, BLOCK - 1, BLOCK, BLOCK + 1, 300])
def test_accelerators_match_as_the_cpu_does(objects, find_best):
    rng = np.random.default_rng(objects)
    candidates, truth = (whole_boxes(rng, number, 60) for number in (2000, objects))
    candidates[::2] += rng.uniform(0, 1, (1000, 4)).astype(np.float32)
    truth[objects // 2 :] = truth[: objects - objects // 2]  # each twice
    counts = set()
    for valid in (
        np.ones(objects, bool),
        np.arange(objects) < objects // 2,
        rng.random(objects) < 0.3,
        np.zeros(objects, bool),
    ):
        one, other = both_forms(candidates, truth, valid, find_best=find_best)
        assert_equal(one, other)
        counts.add(int(np.sum(one[2])))
    assert (max(counts) > 0) == find_best


def test_accelerators_find_all_candidates_that_tie_for_a_truth():
    # Equal boxes far apart in the array; their IoUs are no whole numbers.
    rng = np.random.default_rng(0)
    boxes = squares(*rng.uniform(3, 60, (700, 3)))
    truth = boxes[:20] + rng.uniform(-2, 2, (20, 4)).astype(np.float32)
    one, other = both_forms(np.concatenate((boxes,) * 3), truth, np.ones(20, bool), find_best=True)
    assert_equal(one, other)
    is_best = np.asarray(other[2]).reshape(3, 700)
    assert 0 < np.sum(is_best[0]) <= 20
    np.testing.assert_array_equal(is_best, is_best[[0, 0, 0]])


def test_accelerators_match_a_batch_as_the_cpu_does():
    rng = np.random.default_rng(3)
    candidates = np.stack([whole_boxes(rng, 60) for _ in range(3)])
    truth = np.stack([whole_boxes(rng, 40) for _ in range(3)])
    valid = np.arange(40)[None] < np.array([[40], [0], [2]])
    results = both_forms(candidates, truth, valid, find_best=True, batch=True)
    assert_equal(*results)


@pytest.mark.parametrize(
    ("platform", "accelerated"), [("cpu", False), ("cuda", True), ("tpu", True)]
)
def test_the_platform_of_the_program_chooses_the_form(platform, accelerated):
    # Within a batch within a loop, as in a train step.
    def step(candidates, truth, valid):
        return jax.lax.map(lambda x: jax.vmap(match_rpn)(*x), (candidates, truth, valid))

    shapes = jnp.zeros((2, 2, 9, 4)), jnp.zeros((2, 2, 3, 4)), jnp.ones((2, 2, 3), bool)
    with for_every_platform():
        traced = jax.jit(step).trace(*shapes)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == accelerated


def test_a_low_threshold_above_the_high_one_is_refused():
    boxes = squares((0, 0, 4))
    with pytest.raises(ValueError, match=r"low=0\.6"):
        match(boxes, boxes, np.ones(1, bool), high=0.5, low=0.6, allow_low_quality=False)


def drawn(result):
    indices, valid = map(np.asarray, result)
    assert not np.any(np.diff(valid.astype(int)) > 0), "valid entries come first"
    np.testing.assert_array_equal(indices[~valid], 0)
    return indices[valid]


def test_a_sample_has_its_share_of_positives_first_and_no_candidate_twice():
    labels = jnp.array([1, 0, -1] * 20, jnp.int32)
    for seed in range(20):
        indices = drawn(sample_eight(jax.random.key(seed), labels))
        np.testing.assert_array_equal(labels[indices], [1, 1, 1, 1, 0, 0, 0, 0])
        assert len(set(indices.tolist())) == 8


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (2, 40, (2, 6)),
        (20, 1, (4, 1)),
        (0, 40, (0, 8)),
        (20, 0, (4, 0)),
        (3, 2, (3, 2)),
        (0, 0, (0, 0)),
    ],
)
def test_negatives_fill_up_for_positives_and_never_the_other_way(positives, negatives, expected):
    labels = np.full(60, -1, np.int32)
    labels[:positives] = 1
    labels[30 : 30 + negatives] = 0
    labels = np.roll(labels, 7)
    indices = drawn(sample_eight(jax.random.key(0), labels))
    counts = tuple(int(np.sum(labels[indices] == label)) for label in (1, 0))
    assert counts == expected


@pytest.mark.parametrize("number", [0, 5])
def test_a_sample_larger_than_the_candidates_takes_all_that_the_fraction_allows(number):
    labels = jnp.array([0, 1, 0, 1, -1], jnp.int32)[:number]
    draw = jax.jit(partial(sample, size=12), static_argnames="positive_fraction")
    result = draw(jax.random.key(0), labels, positive_fraction=0.25)
    assert sorted(drawn(result).tolist()) == [0, 1, 2, 3][:number]
    none = draw(jax.random.key(0), labels, positive_fraction=0.0)
    assert sorted(drawn(none).tolist()) == [0, 2][:number]


def test_each_candidate_is_drawn_equally_often():
    labels = jnp.array([1] * 10 + [0] * 30, jnp.int32)
    indices, valid = jax.vmap(sample_eight, (0, None))(
        jax.random.split(jax.random.key(1), 6000), labels
    )
    assert np.all(valid)
    counts = np.bincount(np.ravel(indices), minlength=40)
    # 4 of 10 and 4 of 30 are drawn; five standard deviations.
    for part, chance in ((counts[:10], 4 / 10), (counts[10:], 4 / 30)):
        deviation = np.sqrt(6000 * chance * (1 - chance))
        np.testing.assert_allclose(part, 6000 * chance, atol=5 * deviation)


def test_sampling_a_batch_equals_sampling_one_by_one():
    keys = jax.random.split(jax.random.key(0), 3)
    labels = jax.random.randint(jax.random.key(5), (3, 60), -1, 2)
    indices, valid = jax.vmap(sample_eight)(keys, labels)
    for i in range(3):
        assert_equal((indices[i], valid[i]), sample_eight(keys[i], labels[i]))


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_a_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(ValueError, match="positive_fraction"):
        sample(jax.random.key(0), jnp.zeros(3, jnp.int32), size=2, positive_fraction=fraction)
