from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.normalization import GroupNorm
from segjax.models.rpn import Anchors, ProposalConfig, RPNHead, propose
from tests.models.slow_boxes import slow_decode, slow_nms
from tests.models.subsampling import run
from tests.models.test_layers import images, slow_convolution
from tests.variables import random_variables


def test_outputs_of_a_level_agree_with_numpy_in_the_order_of_its_anchors():
    levels = [images(2, 3, 4, 5), images(2, 2, 1, 5)]
    head = RPNHead(2, features=6)
    variables = random_variables(head, levels)
    params = jax.device_get(variables["params"])
    params = {name: part["convolution"] for name, part in params.items()}
    objectness, deltas = run(head, variables, levels)
    for level, scores, moves in zip(levels, objectness, deltas, strict=True):
        for image in (0, 1):
            first = params["convolution1"]
            x = np.maximum(slow_convolution(level[image], first["kernel"]) + first["bias"], 0)
            for name, found, size in (("objectness", scores, ()), ("deltas", moves, (4,))):
                expected = x @ params[name]["kernel"][0, 0] + params[name]["bias"]
                np.testing.assert_allclose(found[image], expected.reshape(-1, *size), atol=1e-4)


def test_levels_share_the_weights_and_the_second_convolution_follows_the_first():
    levels = [jnp.zeros((1, 4, 4, 6)), jnp.zeros((1, 2, 2, 6))]
    head = RPNHead(3, convolutions=2, norm=partial(GroupNorm, num_groups=2))
    params = jax.eval_shape(head.init, jax.random.key(0), levels)["params"]
    assert set(params) == {"convolution1", "convolution2", "objectness", "deltas"}
    assert set(params["convolution2"]) == {"convolution", "norm"}
    assert params["convolution2"]["convolution"]["kernel"].shape == (3, 3, 6, 6)
    assert params["deltas"]["convolution"]["kernel"].shape == (1, 1, 6, 12)
    found = jax.eval_shape(lambda: head.init_with_output(jax.random.key(0), levels))[0]
    assert [x.shape for x in found[0]] == [(1, 48), (1, 12)]


def test_the_papers_network_has_three_anchors_at_a_position_of_each_of_five_levels():
    anchors = Anchors()
    sizes = [(4, 6), (2, 3), (1, 2), (1, 1), (1, 1)]
    found = anchors.of(sizes, strides=(4, 8, 16, 32, 64), image_size=(16, 24))
    assert [len(level) for level in found] == [3 * h * w for h, w in sizes]
    assert anchors.per_position == 3
    for level, size in zip(found, (32, 64, 128, 256, 512), strict=True):
        sides = np.asarray(level[:, 2:] - level[:, :2])
        np.testing.assert_allclose(sides.prod(1), size**2, rtol=1e-4)
        np.testing.assert_allclose(sides[:3, 1] / sides[:3, 0], [0.5, 1, 2], rtol=1e-4)
    # Anchors of position (1, 2) of the first level are centred on pixel (4, 8).
    centre = np.asarray(found[0]).reshape(4, 6, 3, 2, 2)[1, 2].mean(axis=1)
    np.testing.assert_allclose(centre, [[8, 4]] * 3, atol=1e-4)


def test_a_stride_of_the_image_is_less_where_its_side_does_not_divide():
    anchors = Anchors(sizes=((8.0,),), aspect_ratios=(1.0,), stride="image")
    (found,) = anchors.of([(4, 4)], strides=(64,), image_size=(224, 256))
    found = np.asarray(found)
    centres = ((found[:, :2] + found[:, 2:]) / 2).reshape(4, 4, 2)
    np.testing.assert_array_equal(centres[1, 1], [64, 56])  # P6 of torchvision


def test_anchors_of_other_levels_than_the_models_are_refused():
    with pytest.raises(ValueError, match=r"anchors.sizes has 5 levels, and the model 1"):
        Anchors().of([(4, 4)], strides=(16,), image_size=(64, 64))
    with pytest.raises(ValueError, match=r"anchors.sizes needs the same number on each level"):
        _ = Anchors(sizes=((8.0,), (8.0, 16.0))).per_position


SIZES = np.array([[40, 64], [64, 30]], np.int32)
CONFIG = ProposalConfig(pre_nms=30, post_nms=13, nms_threshold=0.3, min_size=6.0)


def slow_propose(objectness, deltas, anchors, size, config):
    candidates = []
    for level, (scores, moves, boxes) in enumerate(zip(objectness, deltas, anchors, strict=True)):
        for index in np.argsort(-scores)[: config.pre_nms]:
            box = slow_decode(moves[index], boxes[index].astype(float), (1, 1, 1, 1), size)
            if (box[2:] - box[:2] > config.min_size).all():
                candidates.append((scores[index], level, box))
    return slow_nms(candidates, config.nms_threshold)[: config.post_nms]


def draw(counts=(60, 20), batch=2):
    """Returns random (objectness, deltas, anchors) of two levels."""
    rng = np.random.default_rng(0)
    corners = [rng.uniform(-10, 60, (count, 2)) for count in counts]
    sides = [rng.uniform(4, 40, (count, 2)) for count in counts]
    anchors = [
        np.concatenate([c, c + s], 1).astype(np.float32)
        for c, s in zip(corners, sides, strict=True)
    ]
    objectness = [rng.normal(size=(batch, count)).astype(np.float32) for count in counts]
    deltas = [rng.normal(0, 0.3, (batch, count, 4)).astype(np.float32) for count in counts]
    return objectness, deltas, anchors


compiled = jax.jit(propose, static_argnames="config")


@pytest.fixture(scope="module")
def proposed():
    inputs = draw()
    return inputs, jax.device_get(compiled(*inputs, SIZES, config=CONFIG))


def test_proposals_agree_with_numpy(proposed):
    (objectness, deltas, anchors), found = proposed
    counts = []
    for image in (0, 1):
        expected = slow_propose(
            [x[image] for x in objectness],
            [x[image] for x in deltas],
            anchors,
            SIZES[image],
            CONFIG,
        )
        counts.append(len(expected))
        valid = found["valid"][image]
        np.testing.assert_array_equal(valid, np.arange(CONFIG.post_nms) < len(expected))
        np.testing.assert_allclose(found["objectness"][image][valid], [x[0] for x in expected])
        boxes = np.array([box for _, _, box in expected])
        np.testing.assert_allclose(found["boxes"][image][valid], boxes, atol=1e-3)
    # One image fills the capacity, the other leaves places empty.
    assert max(counts) == CONFIG.post_nms > min(counts), counts


def test_proposals_are_sorted_in_the_image_and_zero_where_not_valid(proposed):
    _, found = proposed
    for image, (height, width) in enumerate(SIZES):
        valid = found["valid"][image]
        assert (np.diff(found["objectness"][image][valid]) <= 0).all()
        boxes = found["boxes"][image]
        assert (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
        sides = boxes[valid][:, 2:] - boxes[valid][:, :2]
        assert (sides > CONFIG.min_size).all()
        assert not boxes[~valid].any()
        assert not found["objectness"][image][~valid].any()


BOX = np.array([[10, 10, 30, 30]], np.float32)


def test_boxes_of_different_levels_do_not_suppress_one_another():
    scores, still = np.array([[2.0]], np.float32), np.zeros((1, 1, 4), np.float32)
    config = ProposalConfig(post_nms=4)
    two_levels = compiled([scores, scores - 1], [still] * 2, [BOX] * 2, SIZES[:1], config=config)
    np.testing.assert_array_equal(two_levels["valid"], [[True, True, False, False]])
    np.testing.assert_array_equal(two_levels["objectness"][0, :2], [2, 1])
    one_level = compiled(
        [np.array([[2.0, 1.0]], np.float32)],
        [np.zeros((1, 2, 4), np.float32)],
        [np.repeat(BOX, 2, axis=0)],
        SIZES[:1],
        config=config,
    )
    np.testing.assert_array_equal(one_level["valid"], [[True, False, False, False]])


@pytest.mark.parametrize("reason", ["no side above the least", "outside", "not finite"])
def test_an_image_without_a_usable_box_has_no_proposal(reason):
    scores, box = np.array([[2.0]], np.float32), BOX
    config = ProposalConfig(post_nms=4, min_size=20.0 if "least" in reason else 0.0)
    if reason == "outside":
        box = BOX + 100
    if reason == "not finite":
        scores = np.full((1, 1), -np.inf, np.float32)
    found = compiled([scores], [np.zeros((1, 1, 4), np.float32)], [box], SIZES[:1], config=config)
    assert not any(np.asarray(value).any() for value in found.values())


def test_no_gradient_passes_proposals():
    objectness, deltas, anchors = draw()

    def total(objectness, deltas):
        found = propose(objectness, deltas, anchors, SIZES, CONFIG)
        return found["boxes"].sum() + found["objectness"].sum()

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(objectness, deltas)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))
