"""The network settings that belong to trained weights.

Weights compute what they were trained for only in a network with their strides, anchors, epsilons
and normalisation of pixels. `settings_of` names these settings as a configuration does, `take_over`
puts them in place of a configuration's defaults, and `contradictions` lists those that differ.
"""

import dataclasses
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import flax.linen as nn

from segjax.models.backbones.registry import BACKBONES, make_backbone
from segjax.models.normalization import BatchNorm, Norm, NormName
from segjax.models.rpn import Anchors
from segjax.pretrained.converted import Conversion, Pretrained
from segjax.pretrained.preprocess import NORMALIZATIONS
from segjax.recipes.network_config import NEVER, BackboneNetworkConfig

# Settings that a training may choose: the same arrays fit. They are taken over, but may differ.
FREE = (
    "output_stride",
    "dropout_rate",
    "auxiliary_head",
    "auxiliary_dropout_rate",
    "proposals",
    "detections",
    "pooling.sampling_ratio",
)
# Settings that the file decides, not the name of the weights.
SIZES = ("width_multiplier", "aspp_features", "head_features", "decoder_features")
# Attributes of a backbone that do not decide its name.
NOT_NAMED = (*NEVER, "width", "width_multiplier", "divisor", "num_stages")

Network = TypeVar("Network", bound=BackboneNetworkConfig)


def settings_of(
    weights: Conversion | Pretrained, network: BackboneNetworkConfig, *, backbone_only: bool = False
) -> dict[str, Any]:
    """Returns the settings of a network that belong to weights, by dotted name.

    Args:
      weights: the weights.
      network: the configuration of a network that starts from them. The settings of heads belong
        to the weights only if these are of a network of the same kind.
      backbone_only: leave out the heads.
    """
    settings = _backbone_settings(weights.model)
    settings["pixels"] = next(
        pixels for pixels, normalize in NORMALIZATIONS.items() if normalize == weights.preprocess
    )
    if not backbone_only and isinstance(network.model(2), type(weights.model)):
        settings |= _head_settings(weights.model)
    known = _flat(vars(network))
    if known.get("norm") != "frozen" and not known.get("batch_norm.frozen"):
        # An epsilon of 0 (torchvision's) is safe with trained statistics only: a batch's may be 0.
        settings = {k: v for k, v in settings.items() if not (k.endswith("epsilon") and v == 0)}
    return {name: value for name, value in settings.items() if name in known}


def take_over(
    network: Network,
    weights: Conversion,
    *,
    given: Collection[str] = (),
    backbone_only: bool = False,
) -> Network:
    """Returns the network with the settings of weights in place of its defaults.

    Args:
      network: the configuration. A setting that differs from its class's default stays.
      weights: the weights.
      given: dotted names of other settings that stay.
      backbone_only: leave out the heads.
    """
    defaults = _flat({field.name: field.default for field in dataclasses.fields(network)})
    ours, stay = _flat(vars(network)), {*given, *weights.either_way}
    for name, theirs in settings_of(weights, network, backbone_only=backbone_only).items():
        is_default = name not in stay and ours[name] == defaults.get(name)
        if is_default and _takes(network, name, theirs):
            network = _with(network, name, theirs)
    return network


def contradictions(
    network: BackboneNetworkConfig, weights: Conversion | Pretrained, *, backbone_only: bool = False
) -> list[str]:
    """Lists the settings that the weights need and the network does not have, with both values.

    Args:
      network: the configuration.
      weights: the weights. A `Conversion` is made by name alone: its sizes are not compared.
      backbone_only: leave out the heads.
    """
    ours, problems = _flat(vars(network)), []
    if ours.get("batch_norm.head_epsilon", 0) is None:
        ours["batch_norm.head_epsilon"] = ours["batch_norm.epsilon"]
    free = FREE + (SIZES if isinstance(weights, Conversion) else ())
    for name, theirs in settings_of(weights, network, backbone_only=backbone_only).items():
        may_differ = any(name == each or name.startswith(f"{each}.") for each in free)
        # Frozen or not, batch norm computes the same.
        same = ours[name] == theirs or {ours[name], theirs} == {"batch", "frozen"}
        if not may_differ and not same:
            problems.append(f"network.{name}={theirs!r}, not {ours[name]!r}")
    return problems


def _backbone_settings(model: Any) -> dict[str, Any]:
    """The settings of the backbone of a network, or of a backbone."""
    backbone = getattr(model, "backbone", model)
    if isinstance(backbone, str):
        backbone = make_backbone(backbone, norm=model.norm)
    settings: dict[str, Any] = {"backbone": _name_of(backbone)}
    if hasattr(backbone, "width_multiplier"):
        settings["width_multiplier"] = backbone.width_multiplier
    else:
        settings["width_multiplier"] = backbone.width / 64
    if hasattr(backbone, "norm"):
        epsilon = backbone.norm(parent=None).epsilon
        settings["norm"] = _norm_name(backbone.norm)
        settings |= {"norm_epsilon": epsilon, "batch_norm.epsilon": epsilon}
    return settings


def _head_settings(model: Any) -> dict[str, Any]:
    """The settings of a network besides those of its backbone."""
    settings = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in (*NEVER, "backbone")
    }
    anchors: Anchors | None = settings.pop("anchors", None)
    if anchors is not None:
        settings["anchor_sizes"] = tuple(size for level in anchors.sizes for size in level)
        settings["aspect_ratios"] = anchors.aspect_ratios
        settings["anchors_rounded"] = anchors.rounded
        settings["anchor_stride"] = anchors.stride
    if settings.get("head_norm") is not None:
        settings["head_norm"] = _norm_name(settings["head_norm"])
    return _flat(settings) | {"batch_norm.head_epsilon": model.norm(parent=None).epsilon}


def _name_of(backbone: nn.Module) -> str | None:
    """The name in `BACKBONES` of a backbone of any width."""

    def kind(module):
        fields = (field.name for field in dataclasses.fields(module))
        values = {name: getattr(module, name) for name in fields if name not in NOT_NAMED}
        return type(module), values

    return next((name for name in BACKBONES if kind(make_backbone(name)) == kind(backbone)), None)


def _norm_name(norm: Norm) -> NormName:
    return "frozen" if isinstance(norm(parent=None), BatchNorm) else "group"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by dotted name; those that are dataclasses are replaced by their own values."""
    flat = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            flat |= _flat(vars(value), f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _takes(network: BackboneNetworkConfig, name: str, value: Any) -> bool:
    """Whether a configuration may have this value; some take few backbones."""
    if name != "backbone":
        return True
    hint = typing.get_type_hints(type(network))[name]
    literals = [hint] if typing.get_origin(hint) is typing.Literal else typing.get_args(hint)
    return any(value in typing.get_args(literal) for literal in literals)


def _with(config: Any, name: str, value: Any) -> Any:
    """Returns a configuration with a value set by dotted name."""
    first, _, rest = name.partition(".")
    if rest:
        value = _with(getattr(config, first), rest, value)
    return dataclasses.replace(config, **{first: value})
