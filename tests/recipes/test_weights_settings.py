"""The settings that a network takes over from the weights it starts from."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from segjax import pretrained
from segjax.models.backbones.mobilenet_v2 import MobileNetV2
from segjax.models.backbones.registry import make_backbone
from segjax.models.regions import RegionPooling
from segjax.models.rpn import Anchors
from segjax.pretrained import SOURCES
from segjax.pretrained.catalog import conversion_of
from segjax.pretrained.preprocess import MINUS_ONE_TO_ONE
from segjax.recipes.deeplab_networks import (
    BatchNormConfig,
    DeepLabV1Config,
    DeepLabV2Config,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
)
from segjax.recipes.initial import InitialConfig
from segjax.recipes.mask_rcnn_networks import MaskRCNNConfig
from segjax.recipes.unet_networks import EncoderUNetConfig
from segjax.recipes.weights_settings import contradictions, take_over
from segjax.training.configuration import from_dict, parse, to_dict, variant_config
from segjax.training.experiment import load_module

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
TORCHVISION = "torchvision/maskrcnn_resnet50_fpn"
DETECTORS = [name for name in SOURCES if "mask" in name]
WHOLE = DETECTORS + [name for name in SOURCES if "deeplab" in name or "unet" in name]


def config_class(name):
    if name in DETECTORS:
        return MaskRCNNConfig
    if "unet" in name:
        return EncoderUNetConfig
    return DeepLabV3PlusConfig if "v3plus" in name else DeepLabV3Config


def described(value):
    """A module, a norm or a setting as values that can be compared."""
    if isinstance(value, str | tuple) or value is None or not callable(value):
        return value
    if isinstance(value, type) or not dataclasses.is_dataclass(value):
        value = value(parent=None)
    left_out = ("parent", "name", "dtype", "param_dtype", "num_classes", "momentum", "frozen")
    fields = [f.name for f in dataclasses.fields(value) if f.name not in left_out]
    return type(value), {name: described(getattr(value, name)) for name in fields}


@pytest.mark.parametrize("name", WHOLE)
def test_a_default_network_becomes_that_of_the_weights(name):
    weights = conversion_of(name)
    network = take_over(config_class(name)(), weights)
    theirs = weights.model
    if isinstance(theirs.backbone, str):
        theirs = theirs.clone(backbone=make_backbone(theirs.backbone, norm=theirs.norm))
    ours = network.model(theirs.num_classes).clone(
        **{attribute: getattr(theirs, attribute) for attribute in weights.either_way}
    )
    expected, found = described(theirs), described(ours)
    if name in DETECTORS:  # the norm of a backbone by name, and there is none
        del expected[1]["norm"], found[1]["norm"]
    assert found == expected
    assert network.normalize == weights.preprocess


@pytest.mark.parametrize("name", SOURCES)
def test_every_known_weights_can_start_the_networks_that_have_its_backbone(name):
    weights = conversion_of(name)
    fitting = 0
    for config in (
        *(MaskRCNNConfig(), DeepLabV1Config(), DeepLabV2Config()),
        *(DeepLabV3Config(), DeepLabV3PlusConfig(), EncoderUNetConfig()),
    ):
        network = take_over(config, weights)
        problems = contradictions(network, weights)
        if problems:  # some have few backbones
            assert isinstance(config, DeepLabV1Config | DeepLabV2Config | EncoderUNetConfig)
            assert problems[0].startswith("network.backbone='")
        else:
            fitting += 1
            assert network.normalize == weights.preprocess
        assert take_over(network, weights) == network
        assert from_dict(type(network), to_dict(network)) == network
    assert fitting >= 3


def test_torchvisions_detector_brings_its_pooling_anchors_and_epsilon():
    network = take_over(MaskRCNNConfig(), conversion_of(TORCHVISION))
    assert (network.backbone, network.pixels) == ("resnet50", "imagenet")
    assert network.pooling == RegionPooling(aligned=False, level_rule="torchvision")
    model = network.model(90)
    assert model.anchors == Anchors(rounded=True, stride="image")
    assert model.backbone.norm(parent=None).epsilon == 0


def test_a_backbone_brings_no_settings_of_heads():
    weights = conversion_of(TORCHVISION)
    network = take_over(MaskRCNNConfig(), weights, backbone_only=True)
    expected = MaskRCNNConfig(backbone="resnet50", pixels="imagenet", norm_epsilon=0.0)
    assert network == expected
    assert contradictions(network, weights, backbone_only=True) == []
    assert contradictions(network, weights) != []
    assert take_over(DeepLabV3Config(), weights) == DeepLabV3Config(backbone="resnet50")


def test_an_epsilon_of_zero_is_taken_over_for_frozen_norms_alone():
    weights = conversion_of(TORCHVISION)
    frozen = DeepLabV3Config(batch_norm=BatchNormConfig(frozen=True))
    assert take_over(frozen, weights).batch_norm.epsilon == 0
    trained = take_over(MaskRCNNConfig(norm="batch"), weights)
    assert trained.norm_epsilon == 1e-5
    assert contradictions(trained, weights) == []


def test_what_fine_tuning_may_choose_is_no_contradiction():
    for name in (TORCHVISION, "torchvision/deeplabv3_resnet101"):
        weights = conversion_of(name)
        network = take_over(config_class(name)(), weights)
        chosen = (
            {
                "norm": "batch",
                "norm_epsilon": 1e-5,
                "detections": dataclasses.replace(network.detections, min_size=1.0),
            }
            if name == TORCHVISION
            else {"output_stride": 16, "dropout_rate": 0.0, "auxiliary_head": True}
        )
        assert contradictions(dataclasses.replace(network, **chosen), weights) == []


def test_a_size_that_only_the_file_tells_is_compared_with_the_file():
    file = SimpleNamespace(model=MobileNetV2(width_multiplier=0.5), preprocess=MINUS_ONE_TO_ONE)
    network = DeepLabV3Config(backbone="mobilenet_v2", pixels="tensorflow")
    assert contradictions(network, file) == ["network.width_multiplier=0.5, not 1.0"]
    half = dataclasses.replace(network, width_multiplier=0.5)
    assert contradictions(half, file) == []


def initial_flags(name):
    return ["--initial.name", name, "--initial.weights", "weights.pth"]


@pytest.fixture(scope="module")
def files():
    return load_module(EXPERIMENTS / "mask_rcnn" / "coco_files.py")


def test_the_command_line_needs_the_name_of_the_weights_alone(files):
    arguments = ["--workdir", "run", *initial_flags(TORCHVISION)]
    config = parse(files.Config, arguments)
    assert config.network == take_over(MaskRCNNConfig(), conversion_of(TORCHVISION))
    # The stored configuration is resolved, and the same command resolves to it again.
    assert from_dict(files.Config, to_dict(config)) == config
    assert parse(files.Config, arguments) == config
    chosen = parse(files.Config, [*arguments, "--network.detections.max-detections", "7"])
    assert chosen.network.detections.max_detections == 7
    assert chosen.network.pixels == "imagenet"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        # The first is the default: on the command line it was chosen.
        (["--network.pixels", "msra"], "network.pixels='imagenet', not 'msra'"),
        (["--network.pixels=caffe"], "network.pixels='imagenet', not 'caffe'"),
        (["--network.pooling.aligned", "True"], "network.pooling.aligned=False, not True"),
        (["--network.norm", "group"], "network.norm='frozen', not 'group'"),
        (["--network.anchors-rounded", "False"], "network.anchors_rounded=True, not False"),
    ],
)
def test_a_setting_that_contradicts_the_weights_is_refused(files, flags, message):
    with pytest.raises(SystemExit) as error:
        parse(files.Config, ["--workdir", "run", *initial_flags(TORCHVISION), *flags])
    assert str(error.value) == (
        f"error: the weights {TORCHVISION} need {message}; "
        "a setting that is left out follows the weights"
    )


def test_a_configuration_made_in_python_takes_over_when_it_is_resolved(files):
    initial = InitialConfig(name=TORCHVISION, weights=Path("weights.pth"))
    config = files.Config(workdir=Path("run"), initial=initial)
    assert config.resolved().network == take_over(MaskRCNNConfig(), conversion_of(TORCHVISION))
    plain = files.Config(workdir=Path("run"))
    assert plain.resolved() == plain
    coco = load_module(EXPERIMENTS / "mask_rcnn" / "coco_r50_fpn.py")
    options = {"workdir": Path("run"), "initial": initial}
    config = variant_config(coco.Config, "torchvision", coco.VARIANTS, **options)
    assert config.resolved().network == take_over(MaskRCNNConfig(), conversion_of(TORCHVISION))
    with pytest.raises(ValueError, match=r"need network.backbone='resnet50', not 'resnet101_msra'"):
        variant_config(coco.Config, "r101-3x", coco.VARIANTS, **options).resolved()


@pytest.mark.parametrize(
    ("path", "variant", "name"),
    [
        ("deeplab/camvid.py", "", "tf/deeplabv3_mobilenetv2"),
        ("deeplab/camvid.py", "v1-large-fov", "keras/vgg16"),
        ("deeplab/v1_voc2012.py", "", "torchvision/vgg16"),
        ("deeplab/v2_voc2012.py", "", "detectron2/resnet101"),
        ("deeplab/v3_voc2012.py", "mg-1-2-4", "torchvision/resnet101"),
        ("deeplab/v3plus_voc2012.py", "resnet101", "torchvision/resnet101"),
        ("deeplab/v3plus_cityscapes.py", "detectron2", "torchvision/resnet101"),
        ("mask_rcnn/coco_r50_fpn.py", "c4-1x", "detectron2/resnet50"),
        ("mask_rcnn/coco_r50_fpn.py", "torchvision", "torchvision/resnet50"),
        ("mask_rcnn/coco_paper_tables.py", "x101-fpn", "detectron2/resnext101"),
        ("mask_rcnn/cityscapes.py", "", "detectron2/mask_rcnn_R_50_FPN"),
    ],
)
def test_the_weights_of_the_experiments_fit_their_networks(path, variant, name):
    module = load_module(EXPERIMENTS / path)
    flags = ["--variant", variant] if variant else []
    arguments = ["--workdir", "run", *flags]
    variants = getattr(module, "VARIANTS", {})
    without = parse(module.Config, arguments, variants=variants).network
    network = parse(module.Config, [*arguments, *initial_flags(name)], variants=variants).network
    assert network.model(3).backbone is not None
    if name == "torchvision/vgg16":
        assert (without.pixels, network.pixels) == ("caffe", "imagenet")
    elif name.startswith("tf/"):
        assert network.output_stride == without.output_stride == 16
        assert network.model(3).norm(parent=None).epsilon == 1e-5
    elif "mask_rcnn" not in name:
        assert network == without


def test_the_real_weights_of_camvids_network_need_its_width(real_data):
    path = real_data / "weights" / "deeplabv3_mobilenetv2_dm05_voc.npz"
    initial = InitialConfig(name="tf/deeplabv3_mobilenetv2", weights=path)
    camvid = load_module(EXPERIMENTS / "deeplab" / "camvid.py")
    network = take_over(camvid.Config.network, conversion_of(initial.name))
    initial.check(network, pretrained.load(initial.name, path))
    wide = dataclasses.replace(network, width_multiplier=1.0)
    with pytest.raises(ValueError, match=r"need network.width_multiplier=0.5, not 1.0; a setting"):
        initial.initialize({}, network=wide)
