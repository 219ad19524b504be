"""Semantic segmentation: whole images from tiles, training, and errors."""

import dataclasses
from functools import partial

import chex
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.data.augmentation.semantic import Standardize
from segjax.data.instances import label_components
from segjax.evaluation.metrics import NegativeLogLikelihood
from segjax.inference.tiling import Tiling
from segjax.inference.views import rotations_and_flips
from segjax.losses import SemanticLoss
from segjax.models import UNet
from segjax.models.unet import input_size_for
from segjax.ops.devices import AXIS_NAME
from segjax.tasks import SemanticTask
from segjax.training.state import TrainState
from segjax.training.step import make_train_step
from tests.variables import random_variables

TILE = 12
MARGIN = {"VALID": 8, "SAME": 12}  # context of a tile in a U-Net of depth 1


def make_task(padding="VALID", *, depth=1, features=2, norm=None, **options):
    side = TILE + 2 * MARGIN[padding]
    return SemanticTask(
        model=UNet(
            num_classes=2,
            features=features,
            depth=depth,
            padding=padding,
            norm=norm,
            dropout_rate=0.0,
        ),
        classes=("ground", "cell"),
        channels=1,
        covering=Tiling((side, side), (TILE, TILE), multiple=2),
        preprocess=Standardize(),
        **options,
    )


def variables_of(task):
    """Returns random variables for the task's tiles."""
    images = jax.ShapeDtypeStruct((1, *task.covering.input_size, 1), np.float32)
    return {"batch_stats": {}} | random_variables(task, {"image": images})


def photograph(height, width):
    rng = np.random.default_rng(height * width)
    return {"id": "a", "image": rng.integers(0, 255, (height, width, 1)).astype(np.uint8)}


def predict(task, run, example):
    """Predicts an example from its tiles; `run` is the compiled `task.predict`."""
    tiles = task.inputs(example)
    outputs = (run({"image": tile["image"][None]})["probabilities"][0] for tile in tiles)
    return task.merge(example, ({"probabilities": np.asarray(tile)} for tile in outputs))


def one_pass(task, variables, example):
    """Computes the probabilities of one pass over the whole image, padded by reflection."""
    padding, margin = task.model.padding, MARGIN[task.model.padding]
    image = Standardize()(example, None)["image"]
    pads = []
    for length in image.shape[:2]:
        side = input_size_for(length + length % 2, depth=1, padding=padding)
        side += 2 * margin if padding == "SAME" else 0
        pads.append((margin, side - margin - length))
    mirrored = np.pad(image, (*pads, (0, 0)), mode="reflect")
    logits = np.asarray(jax.jit(task.model.apply)(variables, mirrored[None])["logits"][0])
    top = margin if padding == "SAME" else 0
    exponentials = np.exp(logits[top:, top:][: image.shape[0], : image.shape[1]])
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def squares(side, output, count=2):
    """Returns a batch of bright squares on dark ground."""
    rng = np.random.default_rng(0)
    labels = np.zeros((count, output, output), np.int32)
    for label in labels:
        top, left = rng.integers(1, output // 2, 2)
        label[top : top + output // 2, left : left + output // 2] = 1
    margin = (side - output) // 2
    wide = np.pad(labels, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    images = wide[..., None] + rng.normal(0, 0.5, (*wide.shape, 1))
    return {"image": images.astype(np.float32), "labels": labels}


def train(task, batch, *, learning_rate, num_steps):
    """Trains; returns the losses and the last state."""
    optimizer = optax.sgd(learning_rate, momentum=0.9)
    variables = variables_of(task)
    state = TrainState(step=np.int32(0), opt_state=optimizer.init(variables["params"]), **variables)
    schedule = optax.constant_schedule(learning_rate)
    step = jax.jit(make_train_step(task, optimizer, schedule, seed=0))
    losses = []
    for _ in range(num_steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_tiles_merged_equal_one_pass_over_an_image_of_any_size(padding):
    task = make_task(padding)
    variables = variables_of(task)
    run = jax.jit(partial(task.predict, variables))
    for size in ((17, 31), (5, 40)):
        example = photograph(*size)
        found = predict(task, run, example)
        expected = one_pass(task, variables, example)
        assert found["probabilities"].dtype == np.float32
        assert found["probabilities"].std() > 0.01
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
        assert found["labels"].dtype == np.uint8
        np.testing.assert_array_equal(found["labels"], found["probabilities"].argmax(-1))


def test_the_prediction_over_views_is_the_mean_of_those_of_each_view():
    task = make_task(views=rotations_and_flips())
    run = jax.jit(partial(task.predict, variables_of(task)))
    example = photograph(13, 30)
    found = predict(task, run, example)["probabilities"]
    of_views = [
        predict(dataclasses.replace(task, views=(view,)), run, example)["probabilities"]
        for view in task.views
    ]
    assert np.std(of_views, axis=0).max() > 0.01
    np.testing.assert_allclose(found, np.mean(of_views, axis=0), atol=1e-6)
    turned = {**example, "image": np.rot90(example["image"])}
    np.testing.assert_allclose(
        predict(task, run, turned)["probabilities"], np.rot90(found), atol=1e-5
    )


@pytest.mark.parametrize("norm", [None, "batch", "group"])
def test_a_prediction_does_not_depend_on_the_rest_of_its_batch(norm):
    task = make_task("SAME", depth=0, norm=norm)
    run = jax.jit(partial(task.predict, variables_of(task)))
    images = np.random.default_rng(0).normal(size=(3, 36, 36, 1)).astype(np.float32)
    found = run({"image": images})["probabilities"]
    changed = np.concatenate([images[:1], 3 * images[1:] + 1])
    others = run({"image": changed})["probabilities"]
    assert not np.allclose(found[1:], others[1:], atol=1e-3)
    np.testing.assert_allclose(found[0], others[0], atol=1e-6)


def test_decode_adds_to_the_prediction_and_may_replace_the_labels():
    def decode(probabilities):
        instances = label_components(probabilities[..., 1] > 0.3)
        return {"instances": instances, "labels": (instances > 0).astype(np.uint8)}

    task = make_task(decode=decode)
    cell = np.random.default_rng(0).uniform(size=(TILE, TILE)).astype(np.float32)
    tile = {"probabilities": np.stack([1 - cell, cell], axis=-1)}
    found = task.merge(photograph(TILE, TILE), iter([tile]))
    assert set(found) == {"probabilities", "labels", "instances"}
    np.testing.assert_array_equal(found["labels"], cell > 0.3)


def test_a_refinement_changes_the_labels_and_both_are_scored():
    def swap(probabilities, image):
        assert image.dtype == np.uint8
        return probabilities[..., ::-1]

    task = make_task(refine=swap)
    cell = np.random.default_rng(0).uniform(size=(TILE, TILE)).astype(np.float32)
    tile = {"probabilities": np.stack([1 - cell, cell], axis=-1)}
    example = photograph(TILE, TILE) | {"labels": (cell <= 0.5).astype(np.uint8)}
    found = task.merge(example, iter([tile]))
    np.testing.assert_array_equal(found["labels"], cell <= 0.5)
    np.testing.assert_array_equal(found["unrefined_labels"], cell > 0.5)
    evaluator = task.evaluator()
    evaluator.update({"id": "a", **example}, found)
    scores = evaluator.result()
    assert (scores["mean_iou"], scores["unrefined_mean_iou"]) == (1, 0)
    assert (scores["pixel_accuracy"], scores["unrefined_pixel_accuracy"]) == (1, 0)


def test_another_model_predicts_with_the_same_variables():
    task = make_task()
    zero = dataclasses.replace(task.model, features=3)
    found = dataclasses.replace(task, evaluation_model=zero)
    variables = variables_of(dataclasses.replace(task, model=zero))
    batch = {"image": np.ones((1, *task.covering.input_size, 1), np.float32)}
    expected = dataclasses.replace(task, model=zero).predict(variables, batch)
    chex.assert_trees_all_equal(found.predict(variables, batch), expected)
    with pytest.raises(flax.errors.ScopeParamShapeError):
        task.predict(variables, batch)


def test_images_are_resized_for_the_network_and_predictions_back():
    """A network of one 1×1 convolution predicts a flat map for a flat image of any size."""
    seen = []

    def double(size):
        return 2 * size[0], 2 * size[1]

    task = make_task("SAME", depth=0, input_size=double)
    run = jax.jit(partial(task.predict, variables_of(task)))
    example = {"id": "flat", "image": np.full((10, 14, 1), 7, np.uint8)}
    for tile in task.inputs(example):
        seen.append(tile["image"].shape)
    assert len(seen) == len(task.covering.positions((20, 28))) > 1
    found = predict(task, run, example)["probabilities"]
    assert found.shape == (10, 14, 2)
    np.testing.assert_allclose(found, np.broadcast_to(found[5, 5], found.shape), atol=0.05)


def test_pictures_colour_class_0_where_it_is_no_background():
    example = {**photograph(20, 24), "labels": np.zeros((20, 24), np.uint8)}
    prediction = {"labels": np.zeros((20, 24), np.uint8)}
    task = make_task()
    plain, coloured = (
        dataclasses.replace(task, background=background).picture(example, prediction, 1.0)
        for background in ("ground", "background")
    )
    # Without a class to colour, a grey picture stays grey, except for the small map of errors.
    assert np.ptp(coloured.astype(int), axis=2).sum() > 2 * np.ptp(plain.astype(int), axis=2).sum()


def test_the_dice_loss_of_a_task_leaves_out_its_background_alone():
    losses = []
    for background in ("ground", "cell", "background"):
        task = make_task("SAME", depth=0, background=background)
        task = dataclasses.replace(task, loss_function=SemanticLoss(cross_entropy=0, dice=1.0))
        loss, _ = task.loss(variables_of(task), squares(12, 12), jax.random.key(0), train=False)
        losses.append(float(loss))
    ground, cell, both = losses
    assert ground != pytest.approx(cell)
    assert both == pytest.approx((ground + cell) / 2)


def test_classes_of_the_same_name_are_refused():
    with pytest.raises(ValueError, match="two classes are named 'cell'"):
        dataclasses.replace(make_task(), classes=("cell", "cell"))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0)])
def test_class_weights_that_are_not_one_for_each_class_are_refused(weights):
    expected = rf"loss.class_weights has {len(weights)} numbers; expected 2, one .*\(ground, cell\)"
    with pytest.raises(ValueError, match=expected):
        make_task(loss_function=SemanticLoss(class_weights=weights))
    make_task(loss_function=SemanticLoss(class_weights=(1.0, 2.0)))
    with pytest.raises(ValueError, match=r"root is computed from masks in folders.*2 numbers here"):
        make_task(loss_function=SemanticLoss(class_weights="root"))


def test_labels_of_another_size_than_the_logits_are_refused():
    task = make_task()
    batch = squares(28, 28)
    with pytest.raises(ValueError, match=r"logits for \(12, 12\) pixels .* labels for \(28, 28\)"):
        jax.eval_shape(lambda: task.loss(variables_of(task), batch, jax.random.key(0), train=True))


def test_a_tiling_that_keeps_more_than_the_network_gives_is_refused():
    task = dataclasses.replace(make_task(), covering=Tiling((28, 28), (28, 28), multiple=2))
    images = np.zeros((1, 28, 28, 1), np.float32)
    with pytest.raises(ValueError, match=r"\(12, 12\) pixels of an input of \(28, 28\).*keeps"):
        jax.eval_shape(lambda: task.predict(variables_of(make_task()), {"image": images}))


def test_a_unet_overfits_one_batch():
    losses, _ = train(make_task(features=4), squares(28, 12), learning_rate=0.1, num_steps=60)
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("label", [0, 255], ids=["no foreground", "all ignored"])
def test_images_without_foreground_or_labels_train_without_nan(norm, label):
    loss = SemanticLoss(cross_entropy=1.0, dice=1.0)
    task = make_task("SAME", depth=0, norm=norm, loss_function=loss)
    batch = squares(16, 16)
    batch["labels"][:] = label
    batch["image"][0] = 0  # an image without contrast
    losses, state = train(task, batch, learning_rate=0.1, num_steps=3)
    assert np.all(np.isfinite(losses))
    chex.assert_tree_all_finite((state.params, state.batch_stats))
    if label == 255:
        np.testing.assert_allclose(losses, 0, atol=1e-6)
        chex.assert_trees_all_equal(state.params, variables_of(task)["params"])
    else:
        assert losses[-1] < losses[0]


def test_metrics_are_the_accuracy_over_valid_pixels_and_the_terms_where_there_are_several():
    task = make_task("SAME", depth=0)
    variables = variables_of(task)
    batch = squares(16, 16)
    logits = jax.jit(task.model.apply)(variables, batch["image"])["logits"]
    best = np.array(logits).argmax(-1)
    # The batch has three valid pixels, all in the second image; one of them is wrong.
    batch["labels"][:] = 255
    batch["labels"][1, 0, :3] = best[1, 0, :3]
    batch["labels"][1, 0, 1] = 1 - best[1, 0, 1]

    def metrics(task, batch):
        compiled = jax.jit(task.loss, static_argnames="train")
        return compiled(variables, task.prepare(batch), jax.random.key(0), train=False)[1][
            "metrics"
        ]

    found = metrics(task, batch)
    assert set(found) == {"pixel_accuracy"}
    np.testing.assert_allclose(found["pixel_accuracy"], 2 / 3, rtol=1e-6)
    both = dataclasses.replace(task, loss_function=SemanticLoss(dice=1.0))
    assert set(metrics(both, batch)) == {"pixel_accuracy", "cross_entropy", "dice"}
    batch["labels"][1, 0, :2] = 255  # half a valid pixel per image
    np.testing.assert_allclose(metrics(task, batch)["pixel_accuracy"], 1, rtol=1e-6)


def test_extra_terms_are_added_and_logged_by_name():
    batch = squares(TILE + 2 * MARGIN["SAME"], TILE + 2 * MARGIN["SAME"])

    def size(outputs, batch, variables):
        assert set(variables) == {"params", "batch_stats"}
        assert batch["normalizer"].shape == (2,)
        return 0.25 * jnp.mean(outputs["logits"] ** 2)

    plain = make_task("SAME")
    task = dataclasses.replace(plain, extra_losses={"size": size})
    variables = variables_of(task)

    @partial(jax.jit, static_argnums=0)
    def loss_of(extended):
        used = task if extended else plain
        loss, aux = used.loss(variables, used.prepare(batch), jax.random.key(0), True)
        return loss, aux["metrics"]

    (loss, metrics), (expected, _) = loss_of(True), loss_of(False)
    logits = jax.jit(plain.model.apply)(variables, batch["image"])["logits"]
    np.testing.assert_allclose(metrics["size"], 0.25 * np.mean(np.square(logits)), rtol=1e-5)
    np.testing.assert_allclose(metrics["cross_entropy"], expected, rtol=1e-6)
    np.testing.assert_allclose(loss, expected + metrics["size"], rtol=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "pixel_accuracy", "loss"])
def test_an_extra_term_has_a_name_of_its_own(name):
    task = make_task("SAME", extra_losses={name: lambda *_: jnp.zeros(())})
    batch = squares(TILE + 2 * MARGIN["SAME"], TILE + 2 * MARGIN["SAME"])
    with pytest.raises(ValueError, match=f"extra loss term is named '{name}'"):
        jax.eval_shape(
            lambda variables: task.loss(variables, batch, jax.random.key(0), True),
            variables_of(task),
        )


def test_prepare_adds_the_mean_of_the_valid_pixels_over_all_devices():
    task = make_task()
    labels = np.zeros((2, 1, 4, 4), np.int32)
    labels[1, 0, 0] = 255
    found = jax.pmap(task.prepare, axis_name=AXIS_NAME, devices=jax.devices()[:2])(
        {"labels": labels}
    )
    np.testing.assert_array_equal(found["normalizer"], [[14], [14]])
    np.testing.assert_array_equal(found["labels"], labels)


def test_the_evaluator_counts_the_confusion_and_what_the_task_asks_for():
    evaluator = make_task(metrics=(NegativeLogLikelihood(),)).evaluator()
    labels = np.array([[0, 1], [1, 255]], np.uint8)
    probabilities = np.full((2, 2, 2), 0.5, np.float32)
    score = evaluator.update(
        {"id": "a", "labels": labels},
        {"labels": np.ones_like(labels), "probabilities": probabilities},
    )
    assert score == pytest.approx((0 + 2 / 3) / 2)
    result = evaluator.result()
    assert result["confusion_matrix"] == [[0, 1], [0, 2]]
    assert result["negative_log_likelihood"] == pytest.approx(np.log(2))


@pytest.mark.parametrize("instances", [False, True])
def test_pictures_show_examples_with_and_without_instances(instances):
    example = {**photograph(20, 24), "labels": np.eye(20, 24, dtype=np.uint8)}
    prediction = {"labels": np.eye(20, 24, 2, dtype=np.uint8)}
    if instances:
        example["instances"] = example["labels"].astype(np.int32)
        prediction["instances"] = prediction["labels"].astype(np.int32)
    task = make_task()
    picture = task.picture(example, prediction, 0.25)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    other = task.picture(example, {**prediction, "labels": example["labels"]}, 0.25)
    assert picture.shape != other.shape or np.any(picture != other)
