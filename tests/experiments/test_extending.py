"""The experiments that extend segjax, against answers computed by hand."""

import dataclasses
import itertools
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.cli import main
from segjax.commands.launch import run
from segjax.data.loading.loader import training_batches
from segjax.models import EncoderUNet, MaskRCNN, UNet
from segjax.models.backbones.registry import BACKBONES
from segjax.recipes.unet import UNetConfig
from segjax.training.configuration import parse
from segjax.training.experiment import load_experiment, load_module
from tests.models.mask_rcnn_tiny import (
    compiled_loss,
    packed_example,
    stack,
    tiny_model,
    tiny_task,
    variables_of,
)
from tests.variables import random_variables

EXTENDING = Path(__file__).resolve().parents[2] / "experiments" / "extending"
(
    lovasz,
    distillation,
    mask_scoring,
    optimizer_and_schedule,
    convnext,
    attention,
    own_data,
    own_augmentation,
) = (
    load_module(EXTENDING / f"{name}.py")
    for name in (
        "lovasz",
        "distillation",
        "mask_scoring_rcnn",
        "optimizer_and_schedule",
        "convnext_backbone",
        "attention_unet",
        "own_data",
        "own_augmentation",
    )
)
SHORT = [
    *("--train.num-steps", "1", "--train.batch-size", "4", "--train.num-workers", "0"),
    *("--network.features", "2", "--network.depth", "1", "--network.tile", "64"),
]


def test_the_lovasz_softmax_of_hard_predictions_is_one_minus_the_mean_iou():
    labels = np.array([[[0, 0, 1, 1], [2, 2, 2, 255]], [[0, 0, 0, 0], [0, 0, 0, 255]]], np.int32)
    predicted = np.array([[[0, 1, 1, 1], [2, 0, 2, 2]], [[0, 0, 0, 0], [1, 0, 0, 2]]], np.int32)
    logits = 60.0 * np.eye(3, dtype=np.float32)[predicted]
    loss = partial(lovasz.lovasz_softmax, weight=2.0)
    found = jax.jit(loss)({"logits": logits}, {"labels": labels}, {})
    # IoU 1/3, 2/3 and 2/3 in the first image, and 6/7 of the second image's only class.
    expected = ((2 / 3 + 1 / 3 + 1 / 3) / 3 + 1 / 7) / 2
    np.testing.assert_allclose(found, 2 * expected, rtol=1e-5)


def test_the_lovasz_softmax_has_a_finite_gradient_with_and_without_labels():
    logits = np.random.default_rng(0).normal(size=(2, 3, 4, 3)).astype(np.float32)
    labels = np.full((2, 3, 4), 255, np.int32)
    labels[0] = 1
    loss = jax.jit(jax.value_and_grad(partial(lovasz.lovasz_softmax, weight=1.0)))
    value, gradient = loss({"logits": logits}, {"labels": labels}, {})
    assert value > 0
    assert np.isfinite(gradient["logits"]).all()
    assert gradient["logits"][0].any()
    assert not gradient["logits"][1].any()


def test_a_student_that_is_its_teacher_has_no_distillation_loss():
    model = UNet(num_classes=2, features=2, depth=1, padding="SAME", dropout_rate=0.0)
    images = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    own, other = (jax.jit(model.init)(jax.random.key(seed), images) for seed in (0, 1))
    outputs = jax.jit(model.apply)(own, images)
    labels = np.zeros((1, 8, 8), np.int32)
    labels[0, 0] = 255
    batch = {"image": images, "labels": labels, "normalizer": np.full(1, 56, np.float32)}
    loss = jax.jit(
        partial(distillation.distillation_loss, teacher=model, temperature=2.0, weight=0.5)
    )
    same = loss(outputs, batch, {**own, "frozen": {"teacher": own}})
    np.testing.assert_allclose(same, 0.0, atol=1e-6)
    found = loss(outputs, batch, {**own, "frozen": {"teacher": other}})
    averaged = loss(outputs, batch, {**own, "batch_stats": {}, "ema_params": other["params"]})
    theirs = jax.jit(model.apply)(other, images)["logits"]
    p, q = (np.asarray(jax.nn.softmax(x / 2), np.float64) for x in (theirs, outputs["logits"]))
    expected = 0.5 * 4 * (p * np.log(p / q)).sum(axis=-1)[:, 1:].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(averaged, found, rtol=1e-6)


def test_a_student_learns_from_the_run_of_a_teacher(few_cells, tmp_path):
    quickstart = distillation.quickstart
    teacher = ["--workdir", str(tmp_path / "teacher"), "--data-dir", str(tmp_path), *SHORT]
    arguments = ["--workdir", str(tmp_path / "student"), "--data-dir", str(tmp_path), *SHORT]
    arguments += ["--teacher-run", str(tmp_path / "teacher"), "--teacher.features", "2"]
    arguments += ["--teacher.depth", "1", "--teacher.tile", "64"]
    with jax.numpy_dtype_promotion("standard"):  # Optax's AdamW itself mixes dtypes
        run(quickstart.Config, quickstart.build, quickstart.__file__, teacher)
        run(distillation.Config, distillation.build, distillation.__file__, arguments)
    expected = distillation.variables_of(tmp_path / "teacher")
    config = parse(distillation.Config, arguments)
    with distillation.Checkpoints(config.workdir / "checkpoints", read_only=True) as checkpoints:
        saved = checkpoints.read(checkpoints.latest_step)["frozen"]["teacher"]
    chex.assert_trees_all_equal(saved, expected)


def test_a_trapezoidal_schedule_rises_stays_and_falls():
    rate = partial(
        optimizer_and_schedule.trapezoid, peak=2.0, num_steps=10, warmup=0.2, cooldown=0.4
    )
    found = [float(rate(step)) for step in range(11)]
    expected = [1, 2, 2, 2, 2, 2, 2, 1.5, 1, 0.5, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_muon_steps_along_orthogonal_matrices_and_adamw_trains_the_rest():
    rng = np.random.default_rng(0)
    params = {
        "Conv_0": {"kernel": rng.normal(size=(3, 3, 4, 8)), "bias": np.ones(8)},
        "logits": {"kernel": rng.normal(size=(1, 1, 8, 2)), "bias": np.ones(2)},
    }
    params = jax.tree.map(jnp.float32, params)
    config = optimizer_and_schedule.Config(
        muon_learning_rate=0.5, adam_learning_rate=0.25, weight_decay=0.0
    )
    both = optimizer_and_schedule.muon(optax.constant_schedule(0.5), config=config)
    adam = optax.adamw(0.25, weight_decay=0.0, nesterov=True)
    with jax.numpy_dtype_promotion("standard"):  # Optax's AdamW itself mixes dtypes
        updates, expected = (
            optimizer.update(params, optimizer.init(params), params)[0]
            for optimizer in (both, adam)
        )
    # Five Newton-Schulz iterations bring all singular values near 1.
    matrix = np.reshape(updates["Conv_0"]["kernel"], (36, 8))
    singular = np.linalg.svd(matrix / 0.5, compute_uv=False)
    assert 0.6 < singular.min() < singular.max() < 1.3
    del updates["Conv_0"]["kernel"], expected["Conv_0"]["kernel"]
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_drawn_shapes_repeat_themselves_and_their_boundary_is_where_labels_change():
    shapes, others = (own_data.Shapes(3, seed=seed) for seed in (0, 1))
    chex.assert_trees_all_equal(shapes[2], shapes[2])
    assert len({source[i]["image"].tobytes() for source in (shapes, others) for i in range(3)}) == 6
    for index in range(3):
        labels, boundary = shapes[index]["labels"], shapes[index]["boundary"]
        assert set(np.unique(labels)) == {0, 1, 2}
        for axis in (0, 1):
            changes = np.diff(labels.astype(int), axis=axis) != 0
            for part in (
                (boundary[:-1], boundary[1:])
                if axis == 0
                else (
                    boundary[:, :-1],
                    boundary[:, 1:],
                )
            ):
                assert (part[changes] == 1).all()
        assert 0.1 < boundary.mean() < 0.5


def test_the_boundary_term_counts_the_errors_on_the_boundary_alone():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 4, 3)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 3, 4)).astype(np.int32)
    labels[0, 0] = 255
    boundary = rng.integers(0, 2, (2, 3, 4)).astype(np.float32)
    batch = {"labels": labels, "boundary": boundary, "normalizer": np.full(2, 10, np.float32)}
    found = jax.jit(partial(own_data.boundary_loss, weight=3.0))({"logits": logits}, batch, {})
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = -sum(
        np.log(probabilities[(*place, labels[place])])
        for place in zip(*np.nonzero((boundary > 0) & (labels != 255)), strict=True)
    )
    np.testing.assert_allclose(found, 3 * expected / (2 * 10), rtol=1e-5)


class AgedShapes(own_data.Shapes):
    """Shapes with a number for each picture and weights that follow from the labels."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        return {**example, "age": 0.5 * index, "weights": np.float32(1) + example["labels"]}


def test_entries_of_own_data_reach_the_loss(tmp_path):
    arguments = ["--workdir", str(tmp_path), *SHORT]
    experiment = own_data.build(parse(own_data.Config, arguments))
    batches = training_batches(
        AgedShapes(8, seed=0), experiment.transforms, batch_size=4, seed=0, num_threads=0
    )
    batch = next(batches)
    batches.close()
    assert batch["boundary"].shape == batch["labels"].shape == (4, 64, 64)
    assert batch["boundary"].any()
    np.testing.assert_array_equal(batch["weights"], 1 + batch["labels"])
    terms = {
        **experiment.task.extra_losses,
        "age": lambda outputs, batch, variables: jnp.mean(batch["age"]),
    }
    task = dataclasses.replace(experiment.task, extra_losses=terms)
    variables = jax.jit(task.init)(jax.random.key(0), batch)

    @jax.jit
    def losses(variables, batch):
        loss, aux = task.loss(variables, task.prepare(batch), jax.random.key(0), True)
        return loss, aux["metrics"]

    loss, metrics = losses(variables, batch)
    np.testing.assert_allclose(metrics["age"], batch["index"].mean() / 2)
    unweighted, without = losses(variables, batch | {"weights": np.ones_like(batch["weights"])})
    np.testing.assert_allclose(metrics["boundary"], without["boundary"], rtol=1e-6)
    assert metrics["cross_entropy"] > 1.1 * without["cross_entropy"]
    total = metrics["cross_entropy"] + metrics["boundary"] + metrics["age"]
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    assert loss > unweighted


@pytest.fixture(scope="module")
def scored():
    """Returns (model, variables) of a small Mask Scoring R-CNN."""
    model = tiny_model(network=mask_scoring.MaskScoringRCNN)
    return model, variables_of(model)


def test_scores_are_those_of_mask_rcnn_times_the_expected_iou(scored):
    model, variables = scored
    params = {k: v for k, v in variables["params"].items() if k != "mask_iou_head"}
    image = packed_example(0)["image"][None]
    plain = jax.jit(tiny_model().apply)(variables | {"params": params}, image)

    def run(variables, image):
        found = model.apply(variables, image)
        levels = model.apply(variables, image, method="pyramid")
        return found, model.apply(variables, levels, found, method="mask_outputs")["mask_iou"]

    found, expected = jax.jit(run)(variables, image)
    assert plain["valid"].any()
    factor = np.clip(mask_scoring.of_class(expected, found["classes"]), 0, 1)
    assert len(set(factor[plain["valid"]])) > 1
    np.testing.assert_allclose(found["scores"], plain["scores"] * factor, rtol=1e-4, atol=1e-6)
    for name in ("boxes", "classes", "masks", "valid"):
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-4, atol=1e-5)


def test_the_mask_iou_head_learns_and_leaves_the_other_terms_alone(scored):
    model, variables = scored
    term = partial(mask_scoring.mask_iou_loss, mask_loss="sigmoid", weight=1.0)
    task = tiny_task(model, extra_mask_losses={"mask_iou": term})
    batch = stack(packed_example(0), packed_example(1))
    (_, aux), gradients = compiled_loss(task)(variables, batch, jax.random.key(0))
    (_, plain), _ = compiled_loss(tiny_task(model))(variables, batch, jax.random.key(0))
    assert aux["metrics"]["mask_iou"] > 0
    np.testing.assert_allclose(aux["metrics"]["mask"], plain["metrics"]["mask"], rtol=1e-5)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients["mask_iou_head"]):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
        assert gradient.any(), jax.tree_util.keystr(path)


def test_the_target_of_the_mask_iou_head_counts_the_object_outside_of_the_region():
    """The region is the object's left half, and its mask the region's upper half."""
    logits = jnp.where(jnp.arange(4) < 2, 5.0, -5.0)[None, None, :, None, None]
    outputs = {
        "logits": jnp.broadcast_to(logits, (1, 1, 4, 4, 2)),
        "mask_iou": jnp.array([[[0.0, 0.75]]]),
    }
    batch = {
        "boxes": jnp.array([[[0.0, 0.0, 16.0, 8.0]]]),
        "masks": jnp.full((1, 1, 6, 6), 255, jnp.uint8),
    }
    regions = {
        "boxes": jnp.array([[[0.0, 0.0, 8.0, 8.0]]]),
        "classes": jnp.array([[2]], jnp.int32),
        "matched": jnp.array([[0]], jnp.int32),
        "mask_targets": jnp.ones((1, 1, 4, 4)),
    }
    found = mask_scoring.mask_iou_loss(outputs, batch, regions, mask_loss="sigmoid", weight=2.0)
    np.testing.assert_allclose(found, [[2 * (0.75 - 0.25) ** 2]], rtol=1e-5)


def test_convnext_t_has_the_published_number_of_parameters():
    shapes = jax.eval_shape(
        convnext.ConvNeXt().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    )
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    # torchvision's 28,589,128 without the classifier (769,000) and the norm before it (1,536), and
    # with a norm for each map.
    assert found == 28_589_128 - 769_000 - 1_536 + 2 * (96 + 192 + 384 + 768)


@pytest.fixture(scope="module")
def small_convnext():
    """(module, images of an odd and an even side, variables)"""
    model = convnext.ConvNeXt(stage_sizes=(1, 1, 2, 2), width=4)
    images = np.random.default_rng(0).normal(size=(2, 97, 112, 3)).astype(np.float32)
    return model, images, random_variables(model, images)


def test_a_dense_map_of_convnext_subsampled_is_that_of_the_larger_output_stride(small_convnext):
    model, images, variables = small_convnext
    dense, middle, coarse = (
        jax.jit(partial(model.apply, output_stride=stride))(variables, images)
        for stride in (8, 16, 32)
    )
    assert [x["features"].shape[1:3] for x in (dense, middle, coarse)] == [(13, 14), (7, 7), (4, 4)]
    assert coarse["features"].std() > 0.01
    for finer, coarser in ((dense, middle), (middle, coarse)):
        tolerance = 1e-5 * np.abs(coarser["features"]).max()
        np.testing.assert_allclose(
            finer["features"][:, ::2, ::2], coarser["features"], atol=tolerance
        )
        np.testing.assert_allclose(finer["low_level"], coarser["low_level"], rtol=1e-5, atol=1e-5)


def test_a_convnext_block_agrees_with_numpy():
    block = convnext.Block(rate=2, drop_rate=0.0)
    x = np.random.default_rng(0).normal(size=(1, 6, 5, 3)).astype(np.float32)
    variables = random_variables(block, x)
    p = jax.tree.map(np.asarray, variables["params"])
    padded = np.pad(x, ((0, 0), (6, 6), (6, 6), (0, 0)))
    kernel, y = p["Convolution_0"]["kernel"][:, :, 0], p["Convolution_0"]["bias"]
    for row, column in itertools.product(range(7), repeat=2):
        y = y + kernel[row, column] * padded[:, 2 * row : 2 * row + 6, 2 * column : 2 * column + 5]
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    y = y * p["LayerNorm_0"]["scale"] + p["LayerNorm_0"]["bias"]
    y = y @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    y = y * (1 + np.asarray(jax.scipy.special.erf(y / np.sqrt(2, dtype=np.float32)))) / 2
    y = y @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
    found = jax.jit(block.apply)(variables, x)
    np.testing.assert_allclose(found, x + p["scale"] * y, rtol=1e-4, atol=1e-4)


def test_stochastic_depth_skips_a_block_for_whole_examples_of_training_alone():
    block = convnext.Block(rate=1, drop_rate=0.5)
    x = np.random.default_rng(0).normal(size=(16, 4, 4, 2)).astype(np.float32)
    variables = random_variables(block, x)
    apply = jax.jit(block.apply, static_argnames="train")
    added = np.asarray(apply(variables, x) - x)
    in_training = apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)}) - x
    skipped = np.all(np.asarray(in_training) == 0, axis=(1, 2, 3))
    assert 0 < skipped.sum() < 16
    expected = np.where(skipped[:, None, None, None], 0, 2 * added)
    np.testing.assert_allclose(in_training, expected, rtol=1e-4, atol=1e-5)


def test_a_registered_backbone_serves_by_its_name_and_one_without_a_stem_no_encoder_unet():
    found = [
        convnext.MaskRCNNNetwork(width_multiplier=0.5).model(2),
        MaskRCNN(2, backbone="convnext"),
        convnext.DeepLabNetwork().model(2),
    ]
    # An experiment file that is loaded again has other classes of the same names.
    names = [(type(model.backbone).__name__, model.backbone.width) for model in found]
    assert names == [("ConvNeXt", 48), ("ConvNeXt", 96), ("ConvNeXt", 96)]
    model = EncoderUNet(2, backbone=convnext.ConvNeXt(width=4))
    with pytest.raises(ValueError, match="no map 'stem'; expected a ResNet or"):
        jax.eval_shape(
            model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
        )


DEEPLAB = """
from dataclasses import dataclass
from pathlib import Path

from segjax.data.sources.splits import generated_splits
from segjax.recipes.deeplab import DeepLabExperimentConfig, deeplab_experiment
from segjax.training.experiment import load_module

convnext = load_module(Path({file!r}))


def shallow(*, width_multiplier, norm, dtype):
    width = round(96 * width_multiplier)
    return convnext.ConvNeXt(stage_sizes=(1, 1, 1, 1), width=width, dtype=dtype)


convnext.BACKBONES["convnext"] = shallow  # all 18 blocks take a minute to compile


@dataclass(frozen=True, kw_only=True)
class Config(DeepLabExperimentConfig):
    network: convnext.DeepLabNetwork = convnext.DeepLabNetwork()


def build(config):
    splits = generated_splits(
        "synthetic_cells", data_dir=config.data_dir, train="train", evaluation={{"test": "test"}}
    )
    return deeplab_experiment(config, splits)
"""


def test_deeplab_v3_plus_on_convnext_is_trained_and_loads_again(
    few_cells, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(BACKBONES, "convnext", BACKBONES["convnext"])  # puts it back afterwards
    file = tmp_path / "deeplab.py"
    file.write_text(DEEPLAB.format(file=str(EXTENDING / "convnext_backbone.py")))
    workdir = tmp_path / "run"
    arguments = ["--workdir", str(workdir), "--data-dir", str(tmp_path), *SHORT[:6]]
    arguments += ["--network.width-multiplier", "0.05", "--network.aspp-features", "4"]
    arguments += ["--network.decoder-features", "4", "--augment.crop", "65", "65"]
    arguments += ["--prediction.size", "65", "65"]
    module = load_module(file)
    with jax.numpy_dtype_promotion("standard"):
        scores = run(module.Config, module.build, file, arguments)["test"].metrics
        main(["evaluate", str(workdir), "--split", "test"])
    table = capsys.readouterr().out.partition("evaluating ")[2]
    assert f"mean_iou {scores['mean_iou']:.4f}" in " ".join(table.split())
    experiment, config = load_experiment(workdir)
    assert config.network.backbone == "convnext"
    assert experiment.task.model.backbone.width == 5


def test_an_attention_gate_is_additive_attention():
    gate = attention.AttentionGate(features=3)
    rng = np.random.default_rng(0)
    skip, x = (rng.normal(size=(2, 3, 4, n)).astype(np.float32) for n in (2, 5))
    variables = gate.init(jax.random.key(0), skip, x)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f"), variables)
    p = variables["params"]
    q = skip @ p["skip"]["kernel"][0, 0] + x @ p["gate"]["kernel"][0, 0] + p["gate"]["bias"]
    q = np.maximum(q, 0) @ p["weight"]["kernel"][0, 0] + p["weight"]["bias"]
    found = jax.jit(gate.apply)(variables, skip, x)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-q)), rtol=1e-5)


def test_attention_unet_is_unet_where_its_gates_are_open_and_has_none_on_the_finest_skip():
    """Open gates have a weight of one."""
    config = UNetConfig(features=4, depth=3, tile=52)
    gated, plain = config.model(2, network=attention.AttentionUNet), config.model(2)
    images = np.random.default_rng(0).normal(size=(1, 140, 140, 1)).astype(np.float32)
    variables = random_variables(gated, images)
    gates = {name: p for name, p in variables["params"].items() if name.startswith("attention")}
    assert set(gates) == {"attention1", "attention2"}
    rest = {name: p for name, p in variables["params"].items() if name not in gates}
    expected = jax.jit(plain.apply)({"params": rest}, images)["logits"]
    apply = jax.jit(gated.apply)
    assert np.abs(apply(variables, images)["logits"] - expected).max() > 1e-3
    for gate in gates.values():
        gate["weight"]["bias"] = jnp.full(1, 1e6)
    found = apply({"params": rest | gates}, images)["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def drawn_example():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (24, 32)).astype(np.uint8)
    return {
        "id": "a",
        "image": (labels[..., None] * 80 + 20).astype(np.uint8),
        "labels": labels,
        "instances": labels.astype(np.int32) * 70_000,
    }


def test_albumentations_moves_maps_with_the_image_and_draws_from_the_generator_alone():
    def flip_and_shift():
        affine = own_augmentation.albumentations.Affine
        return [
            own_augmentation.albumentations.HorizontalFlip(p=1.0),
            affine(translate_px={"x": (-6, 6), "y": (-6, 6)}, interpolation=0, p=1.0),
        ]

    transform, example = own_augmentation.Albumentations(flip_and_shift), drawn_example()
    before = {name: np.copy(value) for name, value in example.items() if name != "id"}
    first, again = (transform(example, np.random.default_rng(5)) for _ in range(2))
    other = transform(example, np.random.default_rng(6))
    for name, value in before.items():
        np.testing.assert_array_equal(example[name], value)  # nothing is written in place
        np.testing.assert_array_equal(first[name], again[name])
        assert first[name].dtype == value.dtype
    assert not np.array_equal(first["image"], other["image"])
    # The image was drawn from the labels: wherever it shows something, they must agree.
    shown = first["image"][..., 0] > 0
    np.testing.assert_array_equal(first["labels"] != 255, shown)
    np.testing.assert_array_equal(first["image"][shown, 0], first["labels"][shown] * 80 + 20)
    np.testing.assert_array_equal(
        first["instances"][shown], first["labels"][shown].astype(np.int32) * 70_000
    )
    assert 0 < np.count_nonzero(~shown) < shown.size


def test_shading_is_a_ramp_and_keeps_the_mean():
    example = drawn_example() | {"image": np.full((24, 32, 1), 100, np.uint8)}
    shaded = own_augmentation.Shading(0.3)(example, np.random.default_rng(1))["image"][..., 0]
    ramp = shaded.astype(float)
    assert np.ptp(ramp) > 5
    assert abs(ramp.mean() - 100) < 1
    # A plane: second differences vanish but for rounding.
    assert np.abs(np.diff(ramp, 2, axis=0)).max() <= 2
    assert np.abs(np.diff(ramp, 2, axis=1)).max() <= 2
