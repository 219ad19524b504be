"""Derives the configuration of a network from its module, so that each setting is stated once.

A configuration class declares only the settings that the command line takes in another form than
the module, such as a backbone by name. `configures` adds the module's other fields with their
types, defaults and documentation::

    @configures(DeepLabV3, without=("aspp",))
    class DeepLabV3Config(BackboneNetworkConfig):
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

# Fields that no configuration copies: `parent` and `name` are Linen's, the number of classes comes
# from the data, and norm and dtype are a module and a type, which configurations set by name.
NEVER = ("parent", "name", "num_classes", "norm", "dtype")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Settings common to all networks.

    A subclass has a method `model(num_classes) -> nn.Module`. An experiment with its own network
    needs no more than such a class.
    """

    bfloat16: bool = False
    """Compute in bfloat16; parameters, boxes and losses stay float32."""

    if TYPE_CHECKING:  # for the fields that `configures` adds

        def __init__(self, **settings: Any): ...

        def __getattr__(self, name: str) -> Any: ...

    @property
    def dtype(self) -> Any:
        """The dtype of the computation; None is float32."""
        return jnp.bfloat16 if self.bfloat16 else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneNetworkConfig(NetworkConfig):
    """Settings common to the networks with a backbone; `model(...)` has it as a module."""

    pixels: Pixels = "imagenet"
    """Pixel normalisation of the backbone's weights: ImageNet's mean and deviation (torchvision;
    Facebook's ResNeXt with its own deviation), the mean alone (MSRA's ResNets, Caffe's VGG), or the
    range −1 to 1 (TensorFlow)."""
    pixel_range: tuple[float, float] | None = None
    """Values that become 0 and 255 in images of 16 bits (0 65535 for all of them); values outside
    are clipped. Images of 8 bits stay as they are. None refuses images of 16 bits."""
    width_multiplier: float = 1.0
    """Factor of the backbone's channels."""

    if TYPE_CHECKING:

        def __init__(self, **settings: Any): ...

    @property
    def normalize(self) -> Normalize:
        """The transform that normalises images in training and prediction."""
        return NORMALIZATIONS[self.pixels]

    def backbone_module(self, name: str, norm: Norm = BatchNorm) -> nn.Module:
        """Makes the backbone of this name with the configured width and dtype."""
        return make_backbone(
            name, norm=norm, dtype=self.dtype, width_multiplier=self.width_multiplier
        )


def configures(module: type[nn.Module], *, without: tuple[str, ...] = ()) -> Callable:
    """Returns a decorator that makes a frozen dataclass with the fields of a Linen module.

    Fields that the class declares itself keep their type, default and documentation.

    Args:
      module: the class of the network.
      without: fields of the module to leave out.

    Raises:
      TypeError: the module has no field of a name in `without`, or a field has no default.
    """

    def decorate(undecorated):
        config_class = dataclasses.dataclass(frozen=True, kw_only=True)(undecorated)
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
            lines.append(f"  {name}: {documented[name][:1].upper()}{documented[name][1:]}")
        doc = (inspect.getdoc(config_class) or "") + "\n\nAttributes:\n" + "\n".join(lines)
        derived = dataclasses.make_dataclass(
            config_class.__name__, added, bases=(config_class,), frozen=True, kw_only=True
        )
        derived.__doc__, derived.__module__ = doc, config_class.__module__
        return derived

    return decorate


def module_of(config: Any, module: type[nn.Module], num_classes: int, **fixed: Any) -> Any:
    """Makes a module with the fields of its configuration; `fixed` holds the others."""
    names = [f.name for f in dataclasses.fields(module) if f.name not in (*NEVER, *fixed)]
    settings = {name: getattr(config, name) for name in names if hasattr(config, name)}
    return module(num_classes, **settings, **fixed)


def attribute_docs(module: type) -> dict[str, str]:
    """Reads the documentation of each attribute from the docstring of a class."""
    parsed = docstring_parser.parse(inspect.getdoc(module) or "")
    return {
        name.strip(): " ".join((entry.description or "").split())
        for entry in parsed.params
        for name in entry.arg_name.split(",")
    }
