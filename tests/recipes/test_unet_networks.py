"""The U-Net with a pretrained encoder: normalisation, tiles, and the weights it starts from."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
import pytest

from segjax import load_run, pretrained
from segjax.data.augmentation.photometric import GreyValues
from segjax.data.sources.splits import Splits
from segjax.losses import SemanticLoss
from segjax.pretrained.catalog import conversion_of
from segjax.pretrained.preprocess import NORMALIZATIONS
from segjax.recipes.initial import InitialConfig
from segjax.recipes.unet import (
    CellExperimentConfig,
    InitialUNetExperimentConfig,
    UNetAugmentConfig,
    UNetPredictionConfig,
    cell_experiment,
    segmentation_task,
    training_transforms,
)
from segjax.recipes.unet_networks import EncoderUNetConfig, UNetConfig
from segjax.recipes.weights_settings import take_over
from segjax.training.configuration import TrainConfig, from_dict, parse, to_dict
from segjax.training.loop import train
from segjax.training.optimizer import OptimizerConfig
from tests.fixtures.reference_weights import load_record
from tests.variables import random_variables

STILL = UNetAugmentConfig(
    rotation=0, flip=False, elastic_sigma=0, brightness=0, contrast=0, gamma=0
)
NARROW = EncoderUNetConfig(
    backbone="resnet18", width_multiplier=1 / 16, decoder_features=(8, 8, 4, 4, 4), tile=64
)
CLASSES = ("background", "square")


@dataclass(frozen=True)
class Squares:
    """Bright squares on dark ground, 80 × 70 pixels."""

    size: int
    channels: int = 3

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        labels = np.zeros((80, 70), np.uint8)
        top, left = rng.integers(0, 30, 2)
        labels[top : top + 35, left : left + 30] = 1
        image = 120 * labels[..., None] + rng.integers(0, 60, (80, 70, self.channels))
        instances = labels.astype(np.int32)
        image = image.astype(np.uint8)
        return {"image": image, "labels": labels, "instances": instances, "id": f"squares_{index}"}


def splits(channels=3):
    return Splits(
        classes=CLASSES,
        channels=channels,
        train=partial(Squares, 4, channels),
        evaluation={"val": partial(Squares, 2, channels)},
    )


@dataclass(frozen=True, kw_only=True)
class Config(InitialUNetExperimentConfig, CellExperimentConfig):
    """An experiment whose network may have an encoder."""

    workdir: Path = Path("run")
    train: TrainConfig = TrainConfig(
        num_steps=2, batch_size=4, log_every=1, checkpoint_every=2, num_workers=0
    )
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=0.01)
    network: UNetConfig | EncoderUNetConfig = UNetConfig(features=2, depth=1, tile=32)
    augment: UNetAugmentConfig = STILL


VARIANTS = {"encoder": {"network": EncoderUNetConfig(tile=64)}}


def build(config: Config):
    return cell_experiment(config, splits())


def transformed(transforms, example, seed=0):
    rng = np.random.default_rng(seed)
    for transform in transforms:
        example = transform(example, rng)
    return example


def task_of(network, channels=3):
    return segmentation_task(
        network, CLASSES, channels, prediction=UNetPredictionConfig(), loss=SemanticLoss()
    )


@pytest.mark.parametrize("pixels", NORMALIZATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_are_normalised_as_the_weights_expect_in_training_and_prediction(pixels, channels):
    network = dataclasses.replace(NARROW, pixels=pixels)
    example = Squares(1, channels)[0]
    example = {key: x[:64, :64] for key, x in example.items() if key != "id"}
    normalize = NORMALIZATIONS[pixels]
    expected = (example["image"] - np.float64(normalize.mean)) / np.float64(normalize.std)
    assert expected.shape == (64, 64, 3)
    found = transformed(training_transforms(network, STILL), example)
    np.testing.assert_allclose(found["image"], expected, atol=1e-4)
    np.testing.assert_array_equal(found["labels"], example["labels"])
    assert found["image"].dtype == np.float32
    # The only tile of an image of its size, with its margin cut off.
    (window,) = task_of(network, channels).inputs(example)
    margin = network.margin
    inside = window["image"][margin:-margin, margin:-margin]
    np.testing.assert_allclose(inside, expected, atol=1e-4)


def test_grey_values_vary_before_the_channels_are_normalised():
    example = Squares(1)[0]
    augment = dataclasses.replace(STILL, brightness=0.2)
    steps = training_transforms(NARROW, augment)
    assert next(step for step in steps if isinstance(step, GreyValues)).brightness == 0.2
    # One shift for all channels, in grey levels.
    still, moved = (
        transformed(training_transforms(NARROW, each), example)["image"]
        * np.float32(NARROW.normalize.std)
        for each in (STILL, augment)
    )
    shift = (moved - still).mean()
    assert abs(shift) > 1
    np.testing.assert_allclose(moved - still, shift, atol=1e-2)


def predict(task, variables, example):
    run = jax.jit(partial(task.predict, variables))
    outputs = (
        {"probabilities": run({"image": x["image"][None]})["probabilities"][0]}
        for x in task.inputs(example)
    )
    return task.merge(example, outputs)["probabilities"]


def test_with_a_margin_as_wide_as_the_network_sees_tiles_equal_one_pass():
    network = dataclasses.replace(NARROW, margin=320, tile=32)
    task, narrow = task_of(network), task_of(dataclasses.replace(network, margin=32))
    images = jax.ShapeDtypeStruct((1, 96, 96, 3), np.float32)
    variables = random_variables(task, {"image": images}, seed=3)
    example = {"image": np.random.default_rng(0).integers(0, 256, (30, 50, 3)).astype(np.uint8)}
    whole = dataclasses.replace(task, covering=network.tiling.single((30, 50)))
    found, expected, seams = (predict(each, variables, example) for each in (task, whole, narrow))
    assert len(list(task.inputs(example))) == 2
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(seams - expected).max() > 1e-3


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (EncoderUNetConfig(tile=250), r"network.tile=250; expected a multiple of 32, .* is 256$"),
        (EncoderUNetConfig(tile=0), r"network.tile=0; expected a multiple of 32, .* is 32$"),
        (EncoderUNetConfig(margin=-1), r"network.margin=-1; expected 0 or more pixels$"),
    ],
)
def test_a_tile_that_does_not_fit_is_refused(network, message):
    with pytest.raises(ValueError, match=message):
        task_of(network)


def test_images_of_five_bands_have_the_normalisation_of_r_g_and_b_in_turn():
    example = {key: x[:64, :64] for key, x in Squares(1, 5)[0].items() if key != "id"}
    found = transformed(training_transforms(NARROW, STILL), example)["image"]
    normalize = NARROW.normalize
    mean, std = (np.float64(x)[[0, 1, 2, 0, 1]] for x in (normalize.mean, normalize.std))
    np.testing.assert_allclose(found, (example["image"] - mean) / std, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        *((f"torchvision/{each}", each) for each in ("resnet18", "resnet50", "mobilenet_v2")),
        ("tf/mobilenet_v2", "mobilenet_v2"),
        ("smp/unet_resnet101", "resnet101"),
        ("torchvision/deeplabv3_resnet50", "resnet50"),
    ],
)
def test_the_encoder_follows_from_the_name_of_the_weights(name, backbone):
    flags = ["--variant", "encoder", "--initial.name", name, "--initial.weights", "w.pth"]
    config = parse(Config, flags, variants=VARIANTS)
    assert (config.network.backbone, config.network.tile) == (backbone, 64)
    assert config.network == take_over(EncoderUNetConfig(tile=64), conversion_of(name))
    assert config.network.normalize == conversion_of(name).preprocess
    assert from_dict(Config, to_dict(config)) == config
    assert parse(Config, flags, variants=VARIANTS) == config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--variant", "encoder", "--network.backbone", "resnet50"],
            "the weights smp/unet_resnet34 need network.backbone='resnet34', not 'resnet50'; "
            "a setting that is left out follows the weights",
        ),
        (
            [],
            "initial.name=smp/unet_resnet34: UNetConfig takes no weights of other packages; "
            "expected a network with a backbone, such as EncoderUNetConfig",
        ),
    ],
)
def test_weights_that_do_not_fit_the_network_are_refused(flags, message):
    initial = ["--initial.name", "smp/unet_resnet34", "--initial.weights", "w.pth"]
    with pytest.raises(SystemExit) as error:
        parse(Config, [*flags, *initial], variants=VARIANTS)
    assert str(error.value) == f"error: {message}"


def test_without_named_weights_every_network_is_as_configured():
    assert isinstance(parse(Config, []).network, UNetConfig)
    assert parse(Config, []) == Config()
    assert parse(Config, ["--variant", "encoder"], variants=VARIANTS).network == (
        EncoderUNetConfig(tile=64)
    )


@pytest.fixture(scope="module")
def smp_file(tmp_path_factory):
    """A file with all arrays of smp's `Unet("mobilenet_v2", classes=3)`."""
    path = tmp_path_factory.mktemp("weights") / "smp.npz"
    np.savez(path, **load_record("smp_unet_mobilenet_v2")[1])
    return path


def fresh_variables(network, num_classes, channels=3):
    images = jax.ShapeDtypeStruct((1, 64, 64, channels), np.float32)
    model = network.model(num_classes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)


@pytest.mark.parametrize(("num_classes", "channels"), [(2, 5), (3, 3)])
def test_smps_weights_fill_the_network_but_for_a_classifier_of_other_classes(
    smp_file, num_classes, channels
):
    initial = InitialConfig(name="smp/unet_mobilenet_v2", weights=smp_file)
    network = initial.resolve(EncoderUNetConfig())
    assert (network.top_features, network.batch_norm.momentum) == (1280, 0.9)
    fresh = fresh_variables(network, num_classes, channels)
    merged = flax.traverse_util.flatten_dict(initial.initialize(fresh, network=network), sep="/")
    kept = {path for path, array in merged.items() if not array.any()}
    logits = {"params/logits/kernel", "params/logits/bias"}
    assert kept == (set() if num_classes == 3 else logits)


def test_a_file_of_other_sizes_is_refused(smp_file):
    initial = InitialConfig(name="smp/unet_mobilenet_v2", weights=smp_file)
    narrow = EncoderUNetConfig(decoder_features=(128, 64, 32, 16, 8))
    network = initial.resolve(narrow)
    with pytest.raises(ValueError, match=r"need network.decoder_features=\(256, 128, 64, 32, 16\)"):
        initial.initialize(fresh_variables(network, 3), network=network)
    # The encoder alone fits.
    backbone = dataclasses.replace(initial, backbone_only=True)
    network = backbone.resolve(narrow)
    assert network.decoder_features == narrow.decoder_features
    merged = backbone.initialize(fresh_variables(network, 3), network=network)
    assert merged["params"]["backbone"]["stem"]["convolution"]["kernel"].any()
    assert not merged["params"]["decoder_block1"]["conv1"]["convolution"]["kernel"].any()


def test_a_training_on_grey_images_from_a_file_keeps_its_frozen_encoder_and_predicts(
    real_data, tmp_path, capsys
):
    path = real_data / "weights" / "resnet18_imagenet_torchvision_names.npz"
    initial = InitialConfig(name="torchvision/resnet18", weights=path)
    network = EncoderUNetConfig(tile=64, margin=0, decoder_features=(8, 8, 4, 4, 4))
    config = Config(workdir=tmp_path, network=network, initial=initial).resolved()
    experiment = cell_experiment(config, splits(channels=1))
    frozen = dataclasses.replace(config.optimizer, multipliers=(("^backbone/", 0.0),))
    config = dataclasses.replace(config, optimizer=frozen)
    train(experiment, config, experiment_file=__file__)
    assert "arrays taken (backbone: 100)" in capsys.readouterr().out
    run = load_run(tmp_path)
    backbone = run.variables["params"]["backbone"]
    expected = pretrained.load("torchvision/resnet18", path).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, backbone, expected)
    for channels in (1, 3):
        found = run.predict(Squares(1, channels)[0]["image"])
        assert found["probabilities"].shape == (80, 70, 2)
        assert found["instances"].shape == (80, 70)
