import contextlib
import dataclasses
from functools import partial

import chex
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.coco import run_lengths as rle
from segjax.data.augmentation.instance import ResizeShortSide
from segjax.data.augmentation.semantic import Normalize
from segjax.inference.instance_tiles import InstanceTiles
from segjax.losses.instance import DetectionLoss
from segjax.models.normalization import BatchNorm, GroupNorm
from segjax.models.regions import RegionSampling
from segjax.tasks import instance
from segjax.tasks.instance import InstanceView
from tests.models.mask_rcnn_tiny import (
    SIDE,
    WEIGHTS,
    compiled_loss,
    packed_example,
    stack,
    tiny_model,
    tiny_task,
    variables_of,
)

KEY = jax.random.key(0)
TERMS = {"objectness", "rpn_box", "classes", "box", "mask"}
EXAMPLES = {
    "first": packed_example(0, size=(48, 64)),
    "second": packed_example(1, objects=1),
    "empty": packed_example(2, objects=0),
}


@pytest.fixture(scope="module")
def losses():
    """Maps the names of two examples, and a key, to (loss, metrics, gradients)."""
    model = tiny_model()
    variables, run = variables_of(model), compiled_loss(tiny_task(model))

    def evaluate(*names, key=KEY, **changes):
        batch = stack(*(EXAMPLES[name] for name in names)) | changes
        (loss, aux), gradients = jax.device_get(run(variables, batch, key))
        return loss, aux["metrics"], gradients

    return evaluate


def test_the_loss_is_the_weighted_sum_of_five_terms_and_the_metrics_have_their_names(losses):
    loss, metrics, _ = losses("first", "second")
    assert set(metrics) == TERMS | {"positive_regions", "dropped_objects"}
    weighted = sum(getattr(WEIGHTS, name) * metrics[name] for name in TERMS)
    assert loss == pytest.approx(weighted, rel=1e-6)
    assert all(metrics[name] > 0 for name in TERMS)


def test_terms_of_a_batch_are_those_of_its_images_weighted_by_what_each_has_sampled(losses):
    """A batch of one image twice has its terms, because sums and counts both double."""
    _, both, _ = losses("first", "second")
    (_, first, _), (_, second, _) = losses("first", "first"), losses("second", "second")
    for name in ("objectness", "rpn_box", "classes", "box", "positive_regions"):
        # Both images sample the same number of anchors, and all 16 regions.
        assert both[name] == pytest.approx((first[name] + second[name]) / 2, rel=1e-5), name
    counts = [metrics["positive_regions"] for metrics in (first, second)]
    assert counts[0] != counts[1]
    expected = np.average([first["mask"], second["mask"]], weights=counts)
    assert both["mask"] == pytest.approx(expected, rel=1e-5)


def test_the_draw_for_an_example_follows_its_index_and_the_key_not_its_place(losses):
    loss, metrics, _ = losses("first", "second")
    swapped, other_metrics, _ = losses("second", "first")
    for name in metrics:
        assert other_metrics[name] == pytest.approx(metrics[name], rel=1e-5), name
    other_index, _, _ = losses("first", "second", index=np.array([7, 8], np.int32))
    other_key, _, _ = losses("first", "second", key=jax.random.key(1))
    assert len({float(np.float16(x)) for x in (loss, other_index, other_key)}) == 3
    assert swapped == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("names", [("empty", "empty"), ("first", "empty"), ("empty", "second")])
def test_images_without_objects_have_finite_losses_and_gradients(losses, names):
    loss, metrics, gradients = losses(*names)
    assert np.isfinite(loss)
    assert all(np.isfinite(value) for value in metrics.values())
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
    assert metrics["objectness"] > 0
    assert metrics["classes"] > 0
    if set(names) == {"empty"}:
        for name in ("rpn_box", "box", "mask", "positive_regions"):
            assert metrics[name] == 0, name
        assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["mask_head"]))
        assert any(leaf.any() for leaf in jax.tree.leaves(gradients["box_head"]))
    else:
        assert metrics["mask"] > 0
        assert metrics["positive_regions"] > 0


def test_the_flag_of_masks_changes_no_bit_if_all_objects_have_one(losses):
    expected = losses("first", "second")
    classes = stack(EXAMPLES["first"], EXAMPLES["second"])["classes"]
    chex.assert_trees_all_equal(losses("first", "second", has_mask=classes > 0), expected)


def test_objects_without_a_mask_train_class_and_box_and_not_the_mask(losses):
    _, whole, _ = losses("first", "second")
    classes = stack(EXAMPLES["first"], EXAMPLES["second"])["classes"]
    flags = (classes > 0) & (np.arange(2)[:, None] == 1)
    _, some, _ = losses("first", "second", has_mask=flags)
    for name in ("objectness", "rpn_box", "classes", "box", "positive_regions"):
        assert some[name] == whole[name], name
    _, second, _ = losses("second", "second")
    assert some["mask"] == pytest.approx(second["mask"], rel=1e-5)  # the mean over masks
    _, none, gradients = losses("first", "second", has_mask=np.zeros(classes.shape, bool))
    assert none["mask"] == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["mask_head"]))


def test_objects_beyond_the_capacity_are_reported(losses):
    _, metrics, _ = losses("first", "second", dropped=np.array([3, 0], np.int32))
    assert metrics["dropped_objects"] == 1.5
    assert losses("first", "second")[1]["dropped_objects"] == 0


def test_what_stands_in_places_without_an_object_changes_nothing(losses):
    batch = stack(EXAMPLES["first"], EXAMPLES["second"])
    boxes, masks, none = batch["boxes"].copy(), batch["masks"].copy(), batch["classes"] == 0
    assert none.any()
    boxes[none], masks[none] = [3, 3, 60, 60], 255
    loss, _, gradients = losses("first", "second")
    other, _, other_gradients = losses("first", "second", boxes=boxes, masks=masks)
    assert other == loss
    for leaf, expected in zip(
        jax.tree.leaves(other_gradients), jax.tree.leaves(gradients), strict=True
    ):
        np.testing.assert_array_equal(leaf, expected)


BATCH_NORM = partial(BatchNorm, momentum=0.5)
MASK_BRANCHES = {
    "fpn": lambda: tiny_model(),
    "fpn, group norm": lambda: tiny_model(head_norm=partial(GroupNorm, num_groups=2)),
    "c4, softmax": lambda: tiny_model("c4", mask_loss="softmax"),
    "dc5, class-agnostic, MLP": lambda: tiny_model(
        "dc5", class_agnostic_masks=True, mask_network="mlp"
    ),
    "dc5, MLP, a norm for the box head": lambda: tiny_model(
        "dc5", mask_network="mlp", head_norm=BATCH_NORM
    ),
}
# Their norms need statistics over all regions, which are therefore computed together.
WHOLE_MASK_BRANCHES = {
    "fpn, batch norm": lambda: tiny_model(head_norm=BATCH_NORM),
    "c4, batch norm": lambda: tiny_model("c4", norm=BATCH_NORM),
}


def levels_and_regions(model, variables, places=7):
    """Returns maps and regions of two images, with three and one positive regions."""
    rng = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((2, SIDE, SIDE, 3), jnp.float32)
    shapes = jax.eval_shape(partial(model.apply, method="pyramid"), variables, images)
    levels = [rng.normal(size=x.shape).astype(np.float32) for x in shapes]
    corners, sides = rng.uniform(0, 40, (2, places, 2)), rng.uniform(8, 24, (2, places, 2))
    positive = np.arange(places) < np.array([[3], [1]])
    regions = {
        "boxes": np.concatenate([corners, corners + sides], axis=2).astype(np.float32),
        "classes": np.where(positive, rng.integers(1, 3, (2, places)), 0).astype(np.int32),
        "matched": np.zeros((2, places), np.int32),
        "positive": positive,
    }
    return levels, regions


def roughness(outputs, batch, regions):
    """A mask term that depends on the features and on the logits."""
    assert regions["mask_targets"].shape == outputs["logits"].shape[:4]
    features = jnp.mean(outputs["features"] ** 2, axis=(2, 3, 4))
    return 0.5 * features + jnp.mean(outputs["logits"] ** 2, axis=(2, 3, 4))


@pytest.mark.parametrize("branch", MASK_BRANCHES)
def test_the_mask_losses_in_groups_are_those_of_all_regions_at_once(branch, monkeypatch):
    """Three and one of seven places are positive, so two of four groups of two are computed."""
    model = MASK_BRANCHES[branch]()
    variables = variables_of(model)
    levels, regions = levels_and_regions(model, variables)
    batch = stack(EXAMPLES["first"], EXAMPLES["second"])
    task = tiny_task(
        model,
        region_sampling=RegionSampling(size=28),
        extra_mask_losses={"roughness": roughness},
    )
    monkeypatch.setattr(instance, "MASK_GROUP", 2)

    def run(together):
        def loss(params, levels):
            applied = variables | {"params": params}
            outputs = {"levels": levels, "regions": regions}
            if together:
                masked = task._masked(regions, batch)
                outputs["masks"] = model.apply(applied, levels, masked, True, method="mask_outputs")
            return task._mask_losses(applied, outputs, batch, True)

        found = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables["params"], levels)
        return jax.device_get(found)

    ((total, terms), gradients), expected = run(False), run(True)
    assert total == pytest.approx(WEIGHTS.mask * terms["mask"] + terms["roughness"], rel=1e-6)
    assert terms["roughness"] > 0
    chex.assert_trees_all_close((total, terms), expected[0], rtol=1e-5)
    chex.assert_trees_all_close(gradients, expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("branch", MASK_BRANCHES | WHOLE_MASK_BRANCHES)
def test_a_mask_branch_needs_all_regions_if_it_writes_statistics(branch):
    model = (MASK_BRANCHES | WHOLE_MASK_BRANCHES)[branch]()
    variables = variables_of(model)
    inputs = levels_and_regions(model, variables)
    # Without mutable collections, writing statistics fails.
    run = partial(model.apply, train=True, method="mask_outputs")
    assert model.masks_need_all_regions == (branch in WHOLE_MASK_BRANCHES)
    refusal = pytest.raises(flax.errors.ModifyScopeVariableError)
    with refusal if model.masks_need_all_regions else contextlib.nullcontext():
        jax.eval_shape(run, variables, *inputs)


def test_extra_terms_are_added_and_logged_and_see_all_that_the_network_computes():
    """One term computes the box head's loss again, from the outputs alone."""
    model = tiny_model()
    variables = variables_of(model)
    batch = stack(EXAMPLES["first"], EXAMPLES["second"])

    def classes_again(outputs, batch, variables):
        assert [level.shape[0] for level in outputs["levels"]] == [2] * 5
        assert {"params", "batch_stats"} == set(variables)
        assert batch["image"].shape[0] == 2
        terms = DetectionLoss().rpn_terms(outputs) | DetectionLoss().box_terms(outputs)
        return 2.0 * terms["classes"] + terms["objectness"]

    plain = tiny_task(model)
    extended = dataclasses.replace(
        plain,
        extra_losses={"again": classes_again},
        extra_mask_losses={"roughness": roughness},
    )
    (expected, aux), _ = jax.device_get(compiled_loss(plain)(variables, batch, KEY))
    (loss, extended_aux), gradients = jax.device_get(compiled_loss(extended)(variables, batch, KEY))
    metrics, more = aux["metrics"], extended_aux["metrics"]
    assert set(more) == set(metrics) | {"again", "roughness"}
    for name in metrics:
        assert more[name] == pytest.approx(metrics[name], rel=1e-5), name
    assert more["again"] == pytest.approx(2 * metrics["classes"] + metrics["objectness"], rel=1e-5)
    assert loss == pytest.approx(expected + more["again"] + more["roughness"], rel=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    for field in ("extra_losses", "extra_mask_losses"):
        task = dataclasses.replace(plain, **{field: {"mask": classes_again}})
        with pytest.raises(ValueError, match="extra loss term is named 'mask'"):
            jax.eval_shape(compiled_loss(task), variables, batch, KEY)


# A network with given outputs, which tests the task alone.


@dataclasses.dataclass(frozen=True)
class Given:
    """Returns detections that depend only on the size of the image."""

    detections = tiny_model().detections

    def apply(self, variables, images, sizes, *, train):
        del variables, train
        height, width = (sizes[:, i].astype(jnp.float32) for i in (0, 1))
        # Each image has its upper left ninth, and a place that is not valid.
        box = jnp.stack([0 * width, 0 * height, width / 3, height / 3], axis=-1)
        left_half = jnp.broadcast_to(jnp.arange(8) < 4, (8, 8)).astype(jnp.float32)
        batch = images.shape[0]
        return {
            "boxes": jnp.stack([box, 0 * box], axis=1),
            "scores": jnp.tile(jnp.array([[0.9, 0.0]]), (batch, 1)),
            "classes": jnp.tile(jnp.array([[2, 0]], jnp.int32), (batch, 1)),
            "masks": jnp.broadcast_to(left_half, (batch, 2, 8, 8)),
            "valid": jnp.tile(jnp.array([[True, False]]), (batch, 1)),
        }


def view(side, *, flip=False):
    return InstanceView(ResizeShortSide((side,), 4 * side), flip)


def predict(task, image):
    example = {"id": "a", "image": image}
    outputs = []
    for item in task.inputs(example):
        found = task.predict({}, {name: value[None] for name, value in item.items()})
        outputs.append({name: np.asarray(value[0]) for name, value in found.items()})
    return task.merge(example, outputs)


IMAGE = np.random.default_rng(0).integers(0, 255, (30, 60, 3)).astype(np.uint8)


@pytest.mark.parametrize("side", [30, 60])
def test_detections_return_to_the_frame_of_the_image(side):
    task = tiny_task(Given(), views=(view(side),), buckets=((64, 128),))
    found = predict(task, IMAGE)
    np.testing.assert_allclose(found["boxes"], [[0, 0, 20, 10]], atol=1e-4)
    np.testing.assert_array_equal(found["classes"], [2])
    assert found["scores"] == pytest.approx([0.9])
    expected = np.zeros((30, 60), bool)
    expected[:10, :10] = True
    np.testing.assert_array_equal(rle.decode(found["masks"][0]), expected)


def test_a_mirrored_view_is_mirrored_back():
    task = tiny_task(Given(), views=(view(60, flip=True),), buckets=((64, 128),))
    found = predict(task, IMAGE)
    np.testing.assert_allclose(found["boxes"], [[40, 0, 60, 10]], atol=1e-4)
    expected = np.zeros((30, 60), bool)
    expected[:10, 50:] = True
    np.testing.assert_array_equal(rle.decode(found["masks"][0]), expected)


def test_detections_of_several_views_are_merged():
    views = (view(30), view(60), view(30, flip=True))
    found = predict(tiny_task(Given(), views=views, buckets=((64, 128),)), IMAGE)
    # The first two views see the same object.
    np.testing.assert_allclose(found["boxes"], [[0, 0, 20, 10], [40, 0, 60, 10]], atol=1e-4)


def test_an_image_that_one_tile_covers_is_predicted_as_without_tiles():
    task = tiny_task(Given(), views=(view(30), view(60)), buckets=((64, 128),))
    tiled = dataclasses.replace(task, tiles=InstanceTiles(60))
    chex.assert_trees_all_equal(predict(tiled, IMAGE), predict(task, IMAGE))


def test_each_tile_is_resized_like_an_image_and_its_objects_return_to_their_places():
    """Each window has an object in its upper left ninth, which no other window finds."""
    views = (view(40), view(40, flip=True))
    task = tiny_task(Given(), views=views, buckets=((64, 64),), tiles=InstanceTiles(20))
    items = [*task.inputs({"id": "a", "image": IMAGE})]
    assert len(items) == 2 * 2 * 4  # views × rows × columns
    assert all(item["size"].tolist() == [40, 40] for item in items)
    single = dataclasses.replace(task, views=views[:1])
    found = predict(single, IMAGE)
    corners = [[x, y, x + 20 / 3, y + 20 / 3] for y in (0, 10) for x in (0, 15, 30, 40)]
    np.testing.assert_allclose(found["boxes"], corners, atol=1e-4)
    expected = np.zeros((30, 60), bool)
    expected[10:17, 15:18] = True
    np.testing.assert_array_equal(rle.decode(found["masks"][5]), expected)
    with pytest.raises(ValueError, match="shorter"):
        task.merge({"id": "a", "image": IMAGE}, [])


def test_inputs_are_resized_normalized_mirrored_and_padded_with_zeros():
    task = tiny_task(
        Given(),
        views=(view(30), view(30, flip=True)),
        buckets=((96, 96), (32, 64), (64, 32)),
        preprocess=Normalize(100.0, 50.0),
    )
    straight, mirrored = task.inputs({"id": "a", "image": IMAGE})
    for item in (straight, mirrored):
        assert item["image"].shape == (32, 64, 3)
        assert item["image"].dtype == np.float32
        np.testing.assert_array_equal(item["size"], [30, 60])
        assert not item["image"][30:].any()
        assert not item["image"][:, 60:].any()
    expected = (IMAGE.astype(np.float32) - 100) / 50
    np.testing.assert_allclose(straight["image"][:30, :60], expected, rtol=1e-6)
    np.testing.assert_allclose(mirrored["image"][:30, :60], expected[:, ::-1], rtol=1e-6)


def test_an_image_goes_to_the_smallest_bucket_that_it_fits():
    buckets = ((96, 96), (64, 128), (128, 64))
    for size, bucket in {
        (64, 128): (64, 128),
        (65, 64): (128, 64),
        (10, 10): (64, 128),
        (65, 96): (96, 96),
        # These fit no bucket and get multiples of 32.
        (97, 97): (128, 128),
        (64, 129): (64, 160),
        (20, 70): (64, 128),
    }.items():
        example = {"id": "a", "image": np.zeros((*size, 3), np.uint8)}
        task = tiny_task(Given(), buckets=buckets, views=(view(min(size)),))
        (item,) = task.inputs(example)
        assert item["image"].shape[:2] == bucket, size


def test_grey_images_get_the_channels_of_the_network():
    task = tiny_task(Given(), views=(view(30),), preprocess=Normalize((1.0, 2.0, 3.0), 1.0))
    (item,) = task.inputs({"id": "a", "image": IMAGE[:, :, :1]})
    for channel in range(3):
        found = item["image"][:30, :60, channel]
        np.testing.assert_array_equal(found, IMAGE[..., 0] - np.float32(channel + 1))


def test_an_image_without_detections_has_an_empty_prediction():
    class Nothing(Given):
        def apply(self, *arguments, **options):
            found = super().apply(*arguments, **options)
            return jax.tree.map(jnp.zeros_like, found)

    views = (view(30), view(30, flip=True))
    for count in (1, 2):
        found = predict(tiny_task(Nothing(), views=views[:count]), IMAGE)
        assert found["boxes"].shape == (0, 4)
        assert found["masks"] == []
        assert found["scores"].shape == found["classes"].shape == (0,)


def test_the_losses_of_the_rpn_are_divided_by_the_anchors_asked_for_or_found():
    """There are 256 places for 3 anchors."""
    index = np.zeros((1, 256), np.int32)
    index[0, :3] = [1, 0, 2]
    place = np.arange(256)[None]
    outputs = {
        "objectness": [np.zeros((1, 3), np.float32)],
        "anchor_deltas": [np.zeros((1, 3, 4), np.float32)],
        "sampled_anchors": {
            "index": index,
            "positive": place < 1,
            "valid": place < 3,
            "box_targets": np.zeros((1, 256, 4), np.float32),
        },
    }
    fixed, sampled = (
        DetectionLoss(rpn_normalizer=name).rpn_terms(outputs)["objectness"]
        for name in ("fixed", "sampled")
    )
    # Each anchor at logit 0 has a loss of log 2: one positive, two negatives.
    assert sampled == pytest.approx(np.log(2), rel=1e-5)
    assert fixed == pytest.approx(3 * np.log(2) / 256, rel=1e-5)
