"""The U-Net protocol: sizes that fit the network, exact tiles, cells from probabilities."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.data.instances import separate_touching
from segjax.evaluation.metrics import NegativeLogLikelihood, RocAuc
from segjax.inference.views import View
from segjax.losses import SemanticLoss
from segjax.recipes.unet import (
    CellInstances,
    UNetAugmentConfig,
    UNetConfig,
    UNetPredictionConfig,
    WeightMapConfig,
    segmentation_task,
    training_transforms,
)
from segjax.training.experiment import load_module
from tests.variables import random_variables

EXPERIMENTS = [
    Path(__file__).parents[2] / "experiments" / name
    for name in (
        "quickstart.py",
        *("unet/isbi2012.py", "unet/dic_hela.py", "unet/u373.py"),
        *("unet/drive.py", "unet/chasedb1.py"),
    )
]

UNETS = [
    UNetConfig(features=2, depth=depth, padding=padding, tile=tile)
    for padding, depth, tile in (
        *[("VALID", 0, 9), ("VALID", 1, 12), ("VALID", 2, 20), ("VALID", 3, 12)],
        *[("SAME", 0, 9), ("SAME", 1, 12), ("SAME", 2, 16), ("SAME", 3, 16)],
    )
]


# A tile as large as the example, and no change of it.
WHOLE = UNetConfig(padding="SAME", depth=1, tile=80)
STILL = UNetAugmentConfig(
    rotation=0, flip=False, elastic_sigma=0, brightness=0, contrast=0, gamma=0
)


def name_of(unet):
    return f"{unet.padding} {unet.depth}"


def cells(height=90, width=80):
    """An example with two touching cells and one apart."""
    instances = np.zeros((height, width), np.int32)
    instances[20:50, 10:30], instances[20:50, 30:55], instances[60:80, 20:40] = 1, 2, 3
    labels = (instances > 0).astype(np.uint8)
    labels[:, -5:] = 255
    noise = np.random.default_rng(0).integers(0, 40, labels.shape)
    image = (100 * (instances > 0) + noise).astype(np.uint8)[..., None]
    return {"id": "cells", "image": image, "labels": labels, "instances": instances}


def transformed(transforms, example, seed=0):
    rng = np.random.default_rng(seed)
    for transform in transforms:
        example = transform(example, rng)
    return example


def random_network(unet):
    """A task and random variables, with which the deepest level weighs as much as the first."""
    task = segmentation_task(
        unet, ("background", "cell"), 1, prediction=UNetPredictionConfig(), loss=SemanticLoss()
    )
    side, _ = unet.training_sides
    images = jax.ShapeDtypeStruct((1, side, side, 1), np.float32)
    return task, random_variables(task, {"image": images}, seed=3)


def predict(task, variables, example):
    """One example by way of its tiles."""
    run = jax.jit(partial(task.predict, variables))
    outputs = (
        {"probabilities": run({"image": x["image"][None]})["probabilities"][0]}
        for x in task.inputs(example)
    )
    return task.merge(example, outputs)


@pytest.mark.parametrize("unet", UNETS, ids=name_of)
@pytest.mark.parametrize("weights", [None, WeightMapConfig()], ids=["plain", "weighted"])
def test_transforms_give_tiles_and_labels_of_the_sizes_between_which_the_network_maps(
    unet, weights
):
    found = transformed(training_transforms(unet, UNetAugmentConfig(), weights), cells())
    side, tile = found["image"].shape[0], unet.tile
    assert found["image"].shape == (side, side, 1)
    assert found["image"].dtype == np.float32
    assert found["labels"].shape == (tile, tile)
    assert ("weights" in found) == (weights is not None)
    assert weights is None or found["weights"].shape == (tile, tile)
    assert "instances" not in found
    model, images = unet.model(2), jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    outputs, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), images
    )
    assert outputs["logits"].shape == (1, tile, tile, 2)


def test_the_papers_tile_is_572_by_388():
    assert UNetConfig().training_sides == (572, 388)
    assert UNetConfig().tiling.input_size == (572, 572)


def test_without_augmentation_labels_and_weights_lie_over_the_middle_of_the_image():
    unet = UNetConfig(depth=1, tile=32)
    example = {**cells(), "labels": (cells()["image"][..., 0] > 70).astype(np.uint8)}
    found = transformed(training_transforms(unet, STILL, WeightMapConfig(gap=0)), example)
    margin = (found["image"].shape[0] - 32) // 2
    middle = found["image"][margin:-margin, margin:-margin, 0]
    assert 0 < found["labels"].mean() < 1
    assert middle[found["labels"] == 1].min() > middle[found["labels"] == 0].max()
    assert np.all(found["weights"][found["labels"] == 1] == 1)
    assert np.all(found["weights"][found["labels"] == 0] >= 1)


def test_touching_cells_are_separated_and_their_gap_weighs_most():
    example = cells(80)
    found = transformed(training_transforms(WHOLE, STILL, WeightMapConfig(gap=2)), example)
    expected = separate_touching(example["instances"], width=2)
    counted = example["labels"] != 255
    np.testing.assert_array_equal(found["labels"][counted], expected[counted])
    np.testing.assert_array_equal(found["weights"] == 0, ~counted)
    gap = (example["instances"] > 0) & (expected == 0)
    assert gap.sum() == 60
    assert found["weights"][gap].min() > 9
    assert found["weights"][gap].min() >= found["weights"][~gap].max()
    closed = training_transforms(WHOLE, STILL, WeightMapConfig(gap=0))
    np.testing.assert_array_equal(transformed(closed, example)["labels"], example["labels"])


def test_class_weights_are_ones_unless_given_or_balanced_by_tile():
    weights = WeightMapConfig(w0=0.0, class_weights=None)
    found = transformed(training_transforms(WHOLE, STILL, weights), cells(80))
    cell, ground = (found["weights"][found["labels"] == label] for label in (1, 0))
    assert cell.size < ground.size
    np.testing.assert_allclose(cell.sum(dtype=np.float64), ground.sum(dtype=np.float64), rtol=1e-5)
    plain = transformed(training_transforms(WHOLE, STILL, WeightMapConfig(w0=0.0)), cells(80))
    assert set(np.unique(plain["weights"])) == {0, 1}
    given = WeightMapConfig(w0=0.0, class_weights=(0.5, 2.0))
    found = transformed(training_transforms(WHOLE, STILL, given), cells(80))
    for label, weight in ((0, 0.5), (1, 2.0), (255, 0)):
        assert set(found["weights"][found["labels"] == label].tolist()) <= {weight}


def test_without_augmentation_a_tile_of_the_images_size_is_the_standardised_image():
    found = transformed(training_transforms(WHOLE, STILL), cells(80))
    image = cells(80)["image"].astype(np.float64)
    np.testing.assert_allclose(found["image"], (image - image.mean()) / image.std(), atol=1e-5)
    np.testing.assert_array_equal(found["labels"], cells(80)["labels"])


@pytest.mark.parametrize(
    "option",
    [
        {"rotation": 180.0},
        {"scale": (1.5, 2.0)},
        {"elastic_sigma": 10.0},
        {"brightness": 0.1},
        {"contrast": 0.2},
        {"gamma": 0.2},
        {"noise": 0.1},
    ],
    ids=lambda option: next(iter(option)),
)
def test_each_augmentation_changes_the_image_and_only_movements_the_labels(option):
    still, changed = (
        transformed(training_transforms(WHOLE, augment), cells(80))
        for augment in (STILL, dataclasses.replace(STILL, **option))
    )
    assert np.abs(changed["image"] - still["image"]).mean() > 0.01
    moves = {"rotation", "scale", "elastic_sigma"} & set(option)
    assert np.array_equal(changed["labels"], still["labels"]) != bool(moves)


def test_flips_are_along_both_axes():
    transforms = training_transforms(WHOLE, dataclasses.replace(STILL, flip=True))
    found = {transformed(transforms, cells(80), seed)["labels"].tobytes() for seed in range(30)}
    labels = cells(80)["labels"]
    assert found == {
        np.ascontiguousarray(seen).tobytes()
        for seen in (labels, labels[::-1], labels[:, ::-1], labels[::-1, ::-1])
    }


@pytest.mark.parametrize("unet", UNETS, ids=name_of)
def test_tiles_equal_one_pass_over_the_whole_image(unet):
    task, variables = random_network(unet)
    example = cells(2 * unet.tile + 3, unet.tile + 5)
    whole = dataclasses.replace(task, covering=unet.tiling.single(example["image"].shape))
    found, expected = (predict(t, variables, example)["probabilities"] for t in (task, whole))
    assert len(list(whole.inputs(example))) == 1 < len(list(task.inputs(example)))
    assert expected.std() > 0.04
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        (UNetConfig(tile=390), "depth 4 with VALID padding has no output of 390 pixels.* is 404"),
        (UNetConfig(tile=60, padding="SAME", depth=3), "depth 3 with SAME padding .* is 64"),
    ],
)
def test_a_tile_that_the_network_does_not_have_is_refused_with_the_next(unet, message):
    for call in (lambda: unet.tiling, lambda: training_transforms(unet, UNetAugmentConfig())):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_network_is_that_of_the_configuration():
    unet = UNetConfig(features=3, depth=2, padding="SAME", norm="group", bfloat16=True, tile=16)
    model = unet.model(5)
    assert (model.num_classes, model.features, model.depth) == (5, 3, 2)
    assert (model.padding, model.norm, model.dropout_rate) == ("SAME", "group", 0.5)
    assert model.dtype == jnp.bfloat16
    assert UNetConfig().model(2).dtype is None


def test_the_task_has_the_given_classes_channels_metrics_and_views():
    task = segmentation_task(
        UNETS[1],
        ("background", "vessel"),
        3,
        prediction=UNetPredictionConfig(average_over="eight"),
        loss=SemanticLoss(dice=1.0),
        metrics=(RocAuc(),),
    )
    assert (task.classes, task.channels) == (("background", "vessel"), 3)
    assert task.model.num_classes == 2
    assert task.metrics == (NegativeLogLikelihood(), RocAuc())
    assert task.loss_function == SemanticLoss(dice=1.0)
    assert len(set(task.views)) == 8


def test_the_papers_seven_versions_are_all_but_the_image_as_it_stands():
    one, seven, eight = (
        UNetPredictionConfig(average_over=number).views for number in ("one", "seven", "eight")
    )
    assert one == (View(),)
    assert {*seven} == {*eight} - {View()}
    assert len(seven) == 7


def probabilities_of(cell_map):
    cell = np.where(cell_map, 0.9, 0.2).astype(np.float32)
    return np.stack([1 - cell, cell], axis=-1)


def test_cells_parted_by_a_strip_come_out_whole_and_apart():
    truth = np.zeros((30, 40), np.int32)
    truth[5:25, 4:18], truth[5:25, 18:35] = 1, 2
    separated = separate_touching(truth, width=4)
    found = CellInstances(gap=4, min_size=10)(probabilities_of(separated))
    np.testing.assert_array_equal(found["instances"], truth)
    np.testing.assert_array_equal(found["labels"], truth > 0)
    assert found["labels"].dtype == np.uint8
    assert found["instances"].dtype == np.int32


def test_without_a_gap_the_cells_stay_as_they_are_predicted():
    cell_map = np.zeros((12, 12), bool)
    cell_map[1:5, 1:11], cell_map[7:11, 1:11] = True, True
    found = CellInstances(gap=0, min_size=0)(probabilities_of(cell_map))
    np.testing.assert_array_equal(found["labels"], cell_map)
    assert found["instances"][2, 2] != found["instances"][8, 2]


def test_small_cells_are_dropped_before_gaps_are_filled():
    cell_map = np.zeros((20, 20), bool)
    cell_map[2:12, 2:12] = True  # 100 pixels
    cell_map[5:8, 14:17] = True  # 9 pixels, two columns away
    found = CellInstances(gap=2, min_size=10)(probabilities_of(cell_map))
    assert found["labels"].sum() == 100
    assert found["instances"].max() == 1
    kept = CellInstances(gap=2, min_size=9)(probabilities_of(cell_map))
    assert kept["instances"].max() == 2
    assert kept["labels"].sum() > 109


def test_an_image_without_cells_has_none():
    found = CellInstances(gap=2, min_size=1)(probabilities_of(np.zeros((8, 9), bool)))
    assert not found["instances"].any()
    assert not found["labels"].any()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_metric_by_which_an_experiment_keeps_checkpoints_is_one_that_it_computes(path):
    module = load_module(path)
    experiment = module.build(module.Config(workdir=Path("unused")))
    probabilities = probabilities_of(cells()["instances"] == 2)
    prediction = {"probabilities": probabilities, "labels": probabilities.argmax(axis=-1)}
    if experiment.task.decode:
        prediction |= experiment.task.decode(probabilities)
    evaluator = experiment.task.evaluator()
    example = {**cells(), "labels": (cells()["instances"] > 0).astype(np.uint8)}
    assert np.isfinite(evaluator.update(example, prediction))
    assert np.isfinite(evaluator.result()[experiment.best_metric])
