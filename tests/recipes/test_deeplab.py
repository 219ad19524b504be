"""The DeepLab protocol: crops, networks, and what variables begin as."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest

from segjax import pretrained
from segjax.data.augmentation.photometric import PhotometricDistortion
from segjax.data.sources.splits import prepared_splits
from segjax.inference.coverings import SlidingWindow, WholeImage
from segjax.inference.views import View
from segjax.models.backbones.resnet import resnet50
from segjax.pretrained import preprocess
from segjax.recipes.deeplab import (
    DeepLabAugmentConfig,
    DeepLabExperimentConfig,
    DeepLabPredictionConfig,
    deeplab_experiment,
    deeplab_task,
    training_transforms,
)
from segjax.recipes.deeplab_networks import (
    BatchNormConfig,
    DeepLabV1Config,
    DeepLabV2Config,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
)
from segjax.recipes.initial import InitialConfig
from segjax.training.configuration import variant_config
from segjax.training.experiment import load_module
from segjax.training.loop import train
from tests.training import tiny

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments" / "deeplab"
CLASSES = ("sky", "road")
MSRA = DeepLabV3Config(backbone="resnet50_msra", pixels="msra")
NETWORKS = (DeepLabV1Config(), DeepLabV2Config(), DeepLabV3Config(), DeepLabV3PlusConfig())


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_around_a_small_image_there_is_the_mean_and_no_label(network):
    normalize = network.normalize
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    example = {"image": image, "labels": np.full((20, 30), 7, np.uint8)}
    augment = DeepLabAugmentConfig(crop=(64, 80), scale=(1.0, 1.0), scale_step=None, flip=False)
    for transform in training_transforms(augment, normalize):
        example = transform(example, np.random.default_rng(0))
    inside = example["labels"] == 7
    assert inside.sum() == 20 * 30
    assert set(np.unique(example["labels"])) == {7, 255}
    half_a_grey_level = 0.501 / np.min(normalize.std)  # the fill is rounded
    np.testing.assert_allclose(example["image"][~inside], 0, atol=half_a_grey_level)
    expected = normalize({"image": image}, None)["image"].reshape(-1, 3)
    np.testing.assert_allclose(example["image"][inside], expected, atol=1e-5)


def config_of(network, **options):
    return DeepLabExperimentConfig(workdir=Path("run"), network=network, **options)


def variable_shapes(model):
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return jax.tree.map(lambda x: x.shape, variables)


def test_the_evaluation_may_have_another_output_stride_for_the_same_variables():
    network = DeepLabV3Config(
        backbone="vgg16", multi_grid=None, width_multiplier=0.1, aspp_features=4
    )
    task = deeplab_task(
        config_of(network, prediction=DeepLabPredictionConfig(output_stride=8)), CLASSES, 3
    )
    assert (task.model.output_stride, task.evaluation_model.output_stride) == (16, 8)
    assert variable_shapes(task.evaluation_model) == variable_shapes(task.model)
    same = deeplab_task(config_of(network), CLASSES, 3)
    assert same.evaluation_model is None


def test_prediction_is_of_whole_images_or_windows_over_scales_and_flips():
    whole = DeepLabPredictionConfig(size=(65, 97), scales=(0.5, 1.0), flip=True)
    assert whole.covering == WholeImage((65, 97), multiple=16)
    assert whole.views == tuple(View(flip=f, scale=s) for s in (0.5, 1.0) for f in (False, True))
    windows = DeepLabPredictionConfig(size=(64, 64), window_stride=(42, 42))
    assert windows.covering == SlidingWindow((64, 64), (42, 42))


def test_boundaries_are_scored_when_asked_for():
    network = DeepLabV3Config(backbone="vgg16", multi_grid=None)
    scores = {}
    for boundaries in (False, True):
        prediction = DeepLabPredictionConfig(boundaries=boundaries)
        evaluator = deeplab_task(config_of(network, prediction=prediction), CLASSES, 3).evaluator()
        columns = np.tile(np.arange(61), (40, 1))
        truth = np.where(columns < 30, 0, 1).astype(np.uint8)
        truth[:, 30] = 255  # as VOC marks the contours of objects
        predicted = np.where(columns < 34, 0, 1).astype(np.uint8)
        evaluator.update({"id": "a", "labels": truth}, {"labels": predicted})
        scores[boundaries] = evaluator.result()
    added = scores[True].keys() - scores[False].keys()
    assert {"mean_boundary_iou", "trimap_mean_iou_1", "trimap_mean_iou_32"} <= added
    assert scores[True]["mean_iou"] == scores[False]["mean_iou"]
    # Column 29 is right, column 31 is taken for class 0: IoU 1/2 and 0.
    assert scores[True]["trimap_mean_iou_1"] == 0.25
    # Columns 31 to 33 of 1 to 60 are wrong.
    assert scores[True]["trimap_mean_iou_32"] == pytest.approx((30 / 33 + 27 / 30) / 2)


@pytest.mark.parametrize(("dataset", "has_background"), [("camvid", False), ("voc2012", True)])
def test_scores_without_background_are_those_of_data_that_have_one(
    dataset, has_background, tmp_path
):
    network = DeepLabV3Config(backbone="vgg16", multi_grid=None)
    splits = prepared_splits(dataset, data_dir=tmp_path)
    evaluator = deeplab_experiment(config_of(network), splits).task.evaluator()
    truth, predicted = (np.array([[0, 0, 1, 2]]), np.array([[0, 1, 1, 2]]))
    evaluator.update({"id": "a", "labels": truth}, {"labels": predicted})
    result = evaluator.result()
    assert result["mean_iou"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert ("mean_iou_without_background" in result) == has_background
    if has_background:
        assert result["mean_iou_without_background"] == pytest.approx((1 / 2 + 1) / 2)


@pytest.mark.parametrize("version", ["v3", "v3plus"])
def test_mmsegmentations_protocol_distorts_colours_and_limits_the_share_of_a_class(version):
    module = load_module(EXPERIMENTS / f"{version}_cityscapes.py")
    for name, crop in (("mmsegmentation", (512, 1024)), ("mmsegmentation-769", (769, 769))):
        config = variant_config(module.Config, name, module.VARIANTS, workdir=Path("run"))
        distortion, warp, normalize = module.build(config).transforms
        assert distortion == PhotometricDistortion()
        assert (warp.size, warp.scale, warp.scale_step) == (crop, (0.5, 2.0), None)
        assert warp.cat_max_ratio == 0.75
        assert normalize == preprocess.IMAGENET
    # The last of these slides windows of the size of its crops.
    assert module.build(config).task.covering == SlidingWindow((769, 769), (513, 513))


def test_batch_norm_may_be_frozen():
    network = DeepLabV3Config(batch_norm=BatchNormConfig(momentum=0.5, frozen=True))
    for norm in (network.model(3).norm, network.model(3).backbone.norm):
        layer = norm(name="norm")
        assert (layer.momentum, layer.frozen) == (0.5, True)


def fresh_and_trained():
    rng = np.random.default_rng(0)

    def draw(classes):
        kernel = rng.normal(size=(1, 1, 4, classes)).astype(np.float32)
        backbone = {"stem": {"kernel": rng.normal(size=(3, 3, 3, 4)).astype(np.float32)}}
        return {"params": {"backbone": backbone, "logits": {"kernel": kernel}}, "batch_stats": {}}

    return draw(2), draw(5)


@pytest.fixture
def weights(monkeypatch):
    """A file of weights that are those of `fresh_and_trained`, of MSRA's kind."""
    _, trained = fresh_and_trained()
    model = resnet50(stride_in="1x1")
    found = SimpleNamespace(variables=trained, model=model, preprocess=preprocess.MSRA)
    monkeypatch.setattr(pretrained, "load", lambda name, path: found)
    return InitialConfig(name="detectron2/resnet50", weights=Path("R-50.pkl"))


def test_weights_from_a_file_replace_the_drawn_ones_but_for_a_classifier_of_other_classes(
    weights, capsys
):
    fresh, trained = fresh_and_trained()
    merged = weights.initialize(fresh, network=MSRA)
    chex.assert_trees_all_equal(merged["params"]["backbone"], trained["params"]["backbone"])
    chex.assert_trees_all_equal(merged["params"]["logits"], fresh["params"]["logits"])
    assert "R-50.pkl: 1 arrays taken (backbone: 1), 1 new (logits: 1)" in capsys.readouterr().out


def test_the_backbone_alone_is_taken_where_the_head_would_fit(weights, capsys):
    _, trained = fresh_and_trained()
    fresh = jax.tree.map(np.zeros_like, trained)
    initial = dataclasses.replace(weights, backbone_only=True)
    merged = initial.initialize(fresh, network=MSRA)
    chex.assert_trees_all_equal(merged["params"]["backbone"], trained["params"]["backbone"])
    chex.assert_trees_all_equal(merged["params"]["logits"], fresh["params"]["logits"])
    assert "1 arrays taken (backbone: 1), 1 new (logits: 1)" in capsys.readouterr().out


def test_weights_for_other_pixels_or_strides_are_refused(weights):
    fresh, _ = fresh_and_trained()
    with pytest.raises(ValueError, match=r"network.pixels='msra', not 'imagenet'; a setting"):
        weights.initialize(fresh, network=dataclasses.replace(MSRA, pixels="imagenet"))
    with pytest.raises(ValueError, match=r"network.backbone='resnet50_msra', not 'resnet50'; a"):
        weights.initialize(fresh, network=dataclasses.replace(MSRA, backbone="resnet50"))


def test_a_next_phase_begins_with_the_last_variables_of_a_run(tmp_path):
    config = tiny.Config(workdir=tmp_path, norm="batch")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=1))
    train(tiny.build(config), config, experiment_file=tiny.__file__)
    batch = {"image": np.zeros((1, tiny.SIDE, tiny.SIDE, 1), np.float32)}
    fresh = jax.device_get(jax.jit(tiny.make_task(config).init)(jax.random.key(9), batch))
    initial = InitialConfig(run=tmp_path)
    merged = initial.initialize(fresh, network=MSRA)
    assert jax.tree.structure(merged) == jax.tree.structure(fresh)
    assert not np.array_equal(
        merged["params"]["Conv_0"]["kernel"], fresh["params"]["Conv_0"]["kernel"]
    )
    assert not np.all(merged["batch_stats"]["BatchNorm_0"]["mean"] == 0)
    with pytest.raises(FileNotFoundError, match=r"initial.run: .*nowhere has no checkpoints"):
        InitialConfig(run=tmp_path / "nowhere").initialize(fresh, network=MSRA)


def test_initial_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"initial.weights needs initial.name"):
        InitialConfig(weights=Path("a"))
    with pytest.raises(ValueError, match=r"initial.name without initial.weights: keras/vgg16: no"):
        InitialConfig(name="keras/vgg16")
    with pytest.raises(ValueError, match="either a file of weights or a run"):
        InitialConfig(name="torchvision/vgg16", weights=Path("a"), run=Path("b"))
