"""Configurations that are derived from modules."""

import dataclasses
import pickle

import flax.linen as nn
import pytest
import tyro

from segjax.models import (
    DeepLabV1,
    DeepLabV2,
    DeepLabV3,
    DeepLabV3Plus,
    EncoderUNet,
    MaskRCNN,
    UNet,
)
from segjax.recipes.deeplab_networks import (
    DeepLabV1Config,
    DeepLabV2Config,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
)
from segjax.recipes.mask_rcnn_networks import MaskRCNNConfig
from segjax.recipes.network_config import NEVER, attribute_docs, configures, module_of
from segjax.recipes.unet_networks import EncoderUNetConfig, UNetConfig

CONFIGS = {
    DeepLabV1: DeepLabV1Config,
    DeepLabV2: DeepLabV2Config,
    DeepLabV3: DeepLabV3Config,
    DeepLabV3Plus: DeepLabV3PlusConfig,
    EncoderUNet: EncoderUNetConfig,
    MaskRCNN: MaskRCNNConfig,
    UNet: UNetConfig,
}
# The data or another setting decides these.
LEFT_OUT = {
    DeepLabV1: {"output_stride"},
    DeepLabV2: {"output_stride"},
    DeepLabV3: {"aspp"},
    MaskRCNN: {"fpn_norm", "anchors"},
}


class Small(nn.Module):
    """A module.

    Attributes:
      num_classes: number of classes.
      width, depth: number of channels and of layers.
      hidden: set by nobody.
    """

    num_classes: int
    width: int = 3
    depth: int = 4
    hidden: int = 5


@configures(Small, without=("hidden",))
class SmallConfig:
    """A configuration."""

    depth: int = 7
    """Number of layers here."""

    def model(self, num_classes):
        return module_of(self, Small, num_classes)


@pytest.mark.parametrize("module", CONFIGS, ids=lambda module: module.__name__)
def test_every_field_of_a_network_is_a_documented_setting_or_left_out_on_purpose(module):
    fields = {f.name for f in dataclasses.fields(module)} - {*NEVER}
    settings = {f.name for f in dataclasses.fields(CONFIGS[module])}
    assert fields - settings == LEFT_OUT.get(module, set())
    assert fields <= set(attribute_docs(module))


@pytest.mark.parametrize("module", CONFIGS, ids=lambda module: module.__name__)
def test_a_configured_network_has_the_values_of_its_configuration(module):
    config = dataclasses.replace(CONFIGS[module](), bfloat16=True)
    network = config.model(3)
    assert isinstance(network, module)
    assert network.num_classes == 3
    assert network.dtype is not None
    made_of_modules = {"backbone", "norm", "head_norm"}
    for field in dataclasses.fields(config):
        if hasattr(network, field.name) and field.name not in made_of_modules:
            assert getattr(network, field.name) == getattr(config, field.name)


def test_a_declared_field_wins_and_others_come_from_the_module():
    assert SmallConfig() == SmallConfig(width=3, depth=7)
    assert SmallConfig(width=1).model(2) == Small(2, width=1, depth=7)
    with pytest.raises(TypeError, match="hidden"):
        SmallConfig(hidden=1)


def test_the_modules_documentation_is_the_help(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(SmallConfig, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Number of channels and of layers" in shown
    assert "Number of layers here." in shown


def test_a_configuration_is_pickled():
    config = MaskRCNNConfig(neck="c4")
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_field_that_the_module_lacks_is_refused():
    with pytest.raises(TypeError, match="Small has no field heigth"):
        configures(Small, without=("heigth",))(type("C", (), {}))
