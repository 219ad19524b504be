"""Configurations of networks, derived from the modules: each setting is stated once, in its module.

A configuration class declares what the command line needs beside the module's fields, such as a
backbone by name, and takes over all other fields with their types, defaults and documentation::

    @configures(DeepLabV3, without=("aspp",))
    @dataclass(frozen=True, kw_only=True)
    class DeepLabV3Config(NetworkConfig):
        backbone: BackboneName = "resnet101"
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import docstring_parser
import flax.linen as nn
import jax.numpy as jnp

from segjax.data.augmentation.semantic import Normalize
from segjax.models.backbones.registry import make_backbone
from segjax.models.normalization import BatchNorm, Norm
from segjax.pretrained.preprocess import NORMALIZATIONS, Pixels

# What every configuration leaves out: `parent` and `name` are Linen's, the class count comes from
# the data, and norms and dtypes are modules and types, which have settings of their own.
NEVER = ("parent", "name", "num_classes", "norm", "dtype")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What networks with a backbone have in common.

    A subclass has `model(num_classes) -> nn.Module`, whose `backbone` is a module. An experiment
    with a network of its own needs no more than such a class.
    """

    pixels: Pixels = "imagenet"
    """How the backbone's weights expect pixels: torchvision's mean and deviation, the mean alone
    (MSRA's ResNets, Caffe's VGG), or TensorFlow's range from −1 to 1."""
    width_multiplier: float = 1.0
    """Factor of the backbone's channels."""
    bfloat16: bool = False
    """Compute in bfloat16; parameters, boxes and losses stay float32."""

    if TYPE_CHECKING:  # for the fields that `configures` adds

        def __init__(self, **settings: Any): ...

        def __getattr__(self, name: str) -> Any: ...

    @property
    def normalize(self) -> Normalize:
        return NORMALIZATIONS[self.pixels]

    @property
    def dtype(self) -> Any:
        return jnp.bfloat16 if self.bfloat16 else None

    def backbone_module(self, name: str, norm: Norm = BatchNorm) -> nn.Module:
        """Makes the backbone of this name with the configured width and dtype."""
        return make_backbone(
            name, norm=norm, dtype=self.dtype, width_multiplier=self.width_multiplier
        )


def configures(module: type[nn.Module], *, without: tuple[str, ...] = ()) -> Callable:
    """Decorates a frozen dataclass with the fields of a Linen module.

    A field that the class declares itself keeps its type, default and documentation.

    Args:
      module: the network's class.
      without: fields of the module that must not be set from outside.

    Raises:
      TypeError: `without` names a field that the module lacks, or a field has no default.
    """

    def decorate(config_class):
        fields = {f.name: f for f in dataclasses.fields(module)}
        if unknown := set(without) - set(fields):
            raise TypeError(f"{module.__name__} has no field {', '.join(sorted(unknown))}")
        declared = {f.name for f in dataclasses.fields(config_class)}
        hints, documented = typing.get_type_hints(module), attribute_docs(module)
        added, lines = [], []
        for name, field in fields.items():
            if name in declared or name in (*NEVER, *without):
                continue
            if field.default is dataclasses.MISSING:
                raise TypeError(f"{module.__name__}.{name} has no default")
            added.append((name, hints[name], dataclasses.field(default=field.default)))
            lines.append(f"  {name}: {documented[name]}")
        doc = inspect.getdoc(config_class) + "\n\nAttributes:\n" + "\n".join(lines)
        derived = dataclasses.make_dataclass(
            config_class.__name__, added, bases=(config_class,), frozen=True, kw_only=True
        )
        derived.__doc__, derived.__module__ = doc, config_class.__module__
        return derived

    return decorate


def module_of(config: Any, module: type[nn.Module], num_classes: int, **fixed: Any) -> Any:
    """Makes a configured module: fields from the configuration, but for those given here."""
    names = [f.name for f in dataclasses.fields(module) if f.name not in (*NEVER, *fixed)]
    settings = {name: getattr(config, name) for name in names if hasattr(config, name)}
    return module(num_classes, **settings, **fixed)


def attribute_docs(module: type) -> dict[str, str]:
    """Returns the documentation of each attribute from the class's docstring."""
    parsed = docstring_parser.parse(inspect.getdoc(module) or "")
    return {
        name.strip(): " ".join((entry.description or "").split())
        for entry in parsed.params
        for name in entry.arg_name.split(",")
    }
