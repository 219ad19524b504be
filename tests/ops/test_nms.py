"""Non-maximum suppression against the greedy loop, over several tiles, with ties and groups."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.nms import TILE, _Boxes, _select, _select_on_accelerator, nms
from segjax.ops.platforms import for_every_platform

NUMBER = 804  # several tiles, the last not full
select = jax.jit(partial(nms, iou_threshold=0.5, max_outputs=NUMBER))
select_few = jax.jit(partial(nms, iou_threshold=0.5, max_outputs=4))


def clusters(seed, number=NUMBER):
    """Boxes around a few objects, with whole coordinates and scores that are often equal."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 60, (12, 2))[rng.integers(12, size=number)]
    low = low + rng.integers(-3, 4, (number, 2))
    boxes = np.concatenate((low, low + rng.integers(4, 20, (number, 2))), 1).astype(np.float32)
    return boxes, rng.integers(0, 200, number).astype(np.float32)


def oracle(boxes, scores, threshold, valid=None, groups=None):
    left = [i for i in np.argsort(-scores, kind="stable") if valid is None or valid[i]]
    selected = []
    for i in left:
        for j in selected:
            a, b = boxes[i], boxes[j]
            sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
            intersection = sides[0] * sides[1]
            union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - intersection
            same_group = groups is None or groups[i] == groups[j]
            if same_group and intersection > 0 and intersection / union > threshold:
                break
        else:
            selected.append(i)
    return selected


def selected_by(result):
    indices, valid = map(np.asarray, result)
    np.testing.assert_array_equal(valid, np.arange(len(valid)) < np.sum(valid))
    np.testing.assert_array_equal(indices[~valid], 0)
    return indices[valid].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_selected_are_the_oracles_over_several_tiles_with_equal_scores(seed):
    boxes, scores = clusters(seed)
    expected = oracle(boxes, scores, 0.5)
    assert 30 < len(expected) < NUMBER // 2
    assert selected_by(select(boxes, scores)) == expected


def test_groups_do_not_suppress_each_other():
    boxes, scores = clusters(5)
    groups = np.random.default_rng(5).integers(-2, 3, NUMBER).astype(np.int32)
    expected = oracle(boxes, scores, 0.5, groups=groups)
    assert len(expected) > len(oracle(boxes, scores, 0.5))
    assert selected_by(select(boxes, scores, groups=groups)) == expected


def test_more_selected_than_a_tile_holds_suppress_later_boxes():
    # A grid of boxes that do not touch, and then each again, moved a little, with a lower score.
    x, y = np.meshgrid(np.arange(20) * 10, np.arange(NUMBER // 40) * 10)
    grid = np.stack((x.ravel(), y.ravel()), 1).astype(np.float32)
    number = len(grid)
    assert number > TILE
    boxes = np.concatenate((grid, grid + 1))
    boxes = np.concatenate((boxes, boxes + 8), 1)
    boxes = np.pad(boxes, ((0, NUMBER - len(boxes)), (0, 0)))
    scores = np.arange(NUMBER, 0, -1).astype(np.float32)
    valid = np.arange(NUMBER) < 2 * number
    assert selected_by(select(boxes, scores, valid=valid)) == list(range(number))


def test_a_chain_of_boxes_that_each_overlap_the_next_loses_every_second_one():
    # Within one tile this takes as many repetitions of the rule as there are boxes.
    low = 4 * np.arange(NUMBER, dtype=np.float32)
    boxes = np.stack((low, np.zeros_like(low), low + 16, np.ones_like(low)), 1)
    assert selected_by(select(boxes, -low)) == list(range(0, NUMBER, 2))


def test_selection_ends_with_as_many_as_asked_for():
    boxes, scores = clusters(6)
    assert selected_by(select_few(boxes, scores)) == oracle(boxes, scores, 0.5)[:4]


def test_more_outputs_than_boxes_leave_the_rest_invalid():
    boxes, scores = clusters(7, 3)
    indices, valid = nms(boxes, scores, iou_threshold=0.9, max_outputs=7)  # NumPy, not under jit
    assert indices.shape == valid.shape == (7,)
    assert selected_by((indices, valid)) == oracle(boxes, scores, 0.9)


def test_boxes_that_overlap_by_exactly_the_threshold_are_both_selected():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 2.5]], np.float32)
    assert selected_by(select_few(boxes, np.array([3, 2, 1], np.float32))) == [0, 1]


def test_of_equal_boxes_with_equal_scores_the_first_is_selected():
    boxes = np.tile(np.array([[0, 0, 4, 4]], np.float32), (5, 1))
    assert selected_by(select_few(boxes, np.ones(5, np.float32))) == [0]


def test_what_is_not_valid_is_not_selected_and_suppresses_nothing():
    boxes, scores = clusters(8)
    valid = np.random.default_rng(8).random(NUMBER) < 0.5
    scores[:50] = -np.inf  # a valid box with it comes before all that is not valid
    expected = oracle(boxes, scores, 0.5, valid=valid)
    assert selected_by(select(boxes, scores, valid=valid)) == expected
    assert selected_by(select(boxes, scores, valid=np.zeros(NUMBER, bool))) == []


def test_nan_scores_are_not_valid():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 4], [9, 9, 12, 12]], np.float32)
    assert selected_by(select_few(boxes, np.array([np.nan, 1, np.nan], np.float32))) == [1]


def test_empty_boxes_suppress_nothing():
    boxes = np.array([[2, 2, 2, 2], [2, 2, 2, 2], [0, 0, 4, 4]], np.float32)
    assert selected_by(select_few(boxes, np.array([3, 2, 1], np.float32))) == [0, 1, 2]


def test_no_boxes_give_no_outputs():
    empty = jnp.zeros((0, 4)), jnp.zeros(0)
    assert selected_by(nms(*empty, iou_threshold=0.5, max_outputs=3)) == []


def test_selecting_in_a_batch_equals_selecting_one_by_one():
    boxes, scores = (np.stack(x) for x in zip(*(clusters(seed) for seed in range(3)), strict=True))
    valid = np.arange(NUMBER)[None] < np.array([[NUMBER], [0], [40]])
    run = partial(nms, iou_threshold=0.5, max_outputs=NUMBER)
    batch = jax.jit(jax.vmap(lambda b, s, v: run(b, s, valid=v)))(boxes, scores, valid)
    for i in range(3):
        one = select(boxes[i], scores[i], valid=valid[i])
        np.testing.assert_array_equal(batch[0][i], one[0])
        np.testing.assert_array_equal(batch[1][i], one[1])


def test_a_loss_can_be_differentiated_through_what_is_selected():
    boxes, scores = clusters(9, 20)

    def loss(boxes, scores):
        indices, valid = select_few(boxes, scores)
        return jnp.sum(jnp.where(valid, scores[indices], 0.0)) + jnp.sum(boxes[indices[0]])

    by_boxes, by_scores = jax.grad(loss, (0, 1))(boxes, scores)
    selected = oracle(boxes, scores, 0.5)[:4]
    np.testing.assert_array_equal(np.flatnonzero(by_scores), sorted(selected))
    np.testing.assert_array_equal(np.flatnonzero(by_boxes.any(1)), selected[:1])


def test_fewer_than_one_output_is_refused():
    with pytest.raises(ValueError, match="max_outputs=0"):
        nms(jnp.zeros((2, 4)), jnp.zeros(2), iou_threshold=0.5, max_outputs=0)


def chain(number):
    """Boxes of which each overlaps the next: each decides about the next."""
    low = 4 * np.arange(number, dtype=np.float32)
    return np.stack((low, np.zeros_like(low), low + 16, np.ones_like(low)), 1)


# The accelerators' tiles are made smaller here: on a CPU, theirs take long for the chain.
SMALL_TILE = 96
LONG = 2 * SMALL_TILE + 30  # three tiles, the last not full
INPUTS = {
    "clusters": clusters(10, LONG)[0],
    "chain": chain(LONG),
    "equal boxes": np.tile(np.array([[0, 0, 4, 4]], np.float32), (LONG, 1)),
    "boxes apart": np.pad(10 * chain(LONG)[:, :1], ((0, 0), (0, 3))) + np.float32([0, 0, 9, 9]),
    "empty boxes": np.zeros((LONG, 4), np.float32),
    "few": clusters(11, 5)[0],
    "none": np.zeros((0, 4), np.float32),
}


def both_forms(boxes, groups, total, max_outputs, threshold=0.5):
    """The selections of the CPU's and the accelerators' form among sorted boxes."""
    number = len(boxes)
    sorted_boxes = _Boxes(boxes.T, groups[None], np.arange(number, dtype=np.int32)[None] * 2 + 1)
    for form in (_select, partial(_select_on_accelerator, tile_size=SMALL_TILE)):
        form = partial(form, iou_threshold=threshold, max_outputs=max_outputs)
        yield jax.jit(form)(sorted_boxes, np.int32(total))


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("max_outputs", [3, 150])
def test_accelerators_select_what_the_cpu_selects(name, max_outputs):
    boxes = INPUTS[name]
    number = len(boxes)
    groups = np.random.default_rng(0).integers(0, 2, number).astype(np.int32)
    for total in (number, number // 2, 0):
        one, other = both_forms(boxes, groups * (name == "clusters"), total, max_outputs)
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
        assert np.any(one[1]) == (total > 0)


def test_accelerators_select_in_a_batch_what_they_select_one_by_one():
    names = ("clusters", "chain", "boxes apart")
    boxes = np.stack([INPUTS[name].T for name in names])
    places = np.broadcast_to(np.arange(LONG, dtype=np.int32), (3, 1, LONG))
    sorted_boxes = _Boxes(boxes, np.zeros_like(places), places)
    totals = np.array([LONG, LONG // 2, 0], np.int32)
    options = {"iou_threshold": 0.5, "max_outputs": 100, "tile_size": SMALL_TILE}
    form = partial(_select_on_accelerator, **options)
    batch = jax.jit(jax.vmap(form))(sorted_boxes, totals)
    for i in range(3):
        one = jax.jit(form)(jax.tree.map(lambda x, i=i: x[i], sorted_boxes), totals[i])
        np.testing.assert_array_equal(batch[0][i], one[0])
        np.testing.assert_array_equal(batch[1][i], one[1])


@pytest.mark.parametrize(
    ("platform", "accelerated"), [("cpu", False), ("cuda", True), ("tpu", True)]
)
def test_the_platform_of_the_program_chooses_the_form(platform, accelerated):
    # Within a batch within a loop, as in a train step.
    def step(boxes, scores):
        run = jax.vmap(partial(nms, iou_threshold=0.5, max_outputs=3))
        return jax.lax.map(lambda x: run(*x), (boxes, scores))

    with for_every_platform():
        traced = jax.jit(step).trace(jnp.zeros((2, 2, 9, 4)), jnp.zeros((2, 2, 9)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == accelerated


def test_a_program_for_this_machine_has_its_form_alone():
    function = partial(nms, iou_threshold=0.5, max_outputs=3)
    boxes, scores = jnp.zeros((9, 4)), jnp.zeros(9)
    assert "platform_index" not in str(jax.make_jaxpr(function)(boxes, scores))
    with for_every_platform():
        every = partial(nms, iou_threshold=0.5, max_outputs=3)
        assert "platform_index" in str(jax.make_jaxpr(every)(boxes, scores))
