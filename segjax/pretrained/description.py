"""Describes a task as JSON values and rebuilds it: segjax's own parts by name, and no code.

====================================================  ============================================
JSON                                                  value
====================================================  ============================================
a number, a string, true, false, null                 itself
[...]                                                 a tuple
{"class": "segjax.models.unet.UNet", "depth": 4, …}   a dataclass or Linen module with its fields
{"function": "segjax.models.normalization.BatchNorm"} a function, or a class to call
{"partial": "segjax…", "arguments": […], "keywords":  `functools.partial` of a function or class
{…}}
{"mapping": {…}}                                      a dict with strings as keys
{"dtype": "bfloat16"}                                 a type of numbers
{"number": "inf"}                                     a number that JSON lacks
====================================================  ============================================

Only names in `ROOMS` and `NAMES` are resolved. Their functions compute on arrays and write no
files, so that a description from anywhere is safe to rebuild.
"""

import dataclasses
import functools
import importlib
import math
import re
import types
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

# Packages and modules whose classes and functions a description may name.
ROOMS = (
    *("segjax.models", "segjax.tasks", "segjax.inference", "segjax.evaluation", "segjax.losses"),
    *("segjax.ops", "segjax.data.augmentation"),
)
# Single names beside them.
NAMES = ("segjax.recipes.unet.CellInstances", "segjax.pretrained.torchvision_detection.Resize")
# A class or function that moves or is renamed keeps its old name here: old name → new name.
MOVED: dict[str, str] = {}

_DOTTED = re.compile(r"segjax(\.[A-Za-z][A-Za-z0-9_]*)+")
_LINEN = ("parent", "name")  # fields of every Linen module
_DTYPES = ("float32", "bfloat16", "float16", "float64")


class NotOfSegjax(ValueError):
    """A value has code that is not segjax's, or is nothing that a description can hold."""


def describe(value: Any, place: str, *, without: Collection[str] = ()) -> Any:
    """Returns a value as JSON values.

    Args:
      value: a tree of dataclasses, Linen modules, tuples, mappings, numbers, strings, types of
        numbers, functions and partials.
      place: what the value is, such as "task", for errors.
      without: fields of the outermost dataclass to leave out.

    Raises:
      NotOfSegjax: a part is not segjax's own; the message names it and its place.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"number": str(value)}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return [describe(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"mapping": {key: describe(value[key], f"{place}.{key}") for key in value}}
    if (dtype := _dtype_name(value)) is not None:
        return {"dtype": dtype}
    if isinstance(value, type | types.FunctionType):
        return {"function": _name_of(value, place)}
    if isinstance(value, functools.partial):
        described: dict[str, Any] = {"partial": _name_of(value.func, place)}
        if value.args:
            described["arguments"] = describe(value.args, place)
        if value.keywords:
            keywords = value.keywords
            described["keywords"] = {
                key: describe(keywords[key], f"{place}.{key}") for key in keywords
            }
        return described
    if dataclasses.is_dataclass(value):
        fields = [name for name in _fields(type(value)) if name not in without]
        return {"class": _name_of(type(value), place)} | {
            name: describe(getattr(value, name), f"{place}.{name}") for name in fields
        }
    raise NotOfSegjax(f"{place} is {_origin(value)}, which has no description in JSON")


def rebuild(description: Any, place: str) -> Any:
    """Returns the value that `describe` described; lists become tuples.

    Args:
      description: JSON values.
      place: what they describe, for errors.

    Raises:
      ValueError: a name or a field is unknown to this version of segjax, or a value does not fit.
    """
    if isinstance(description, list):
        return tuple(rebuild(each, f"{place}[{i}]") for i, each in enumerate(description))
    if not isinstance(description, dict):
        return description
    if "class" in description:
        return _rebuild_class(description, place)
    if description.keys() == {"mapping"} and isinstance(description["mapping"], dict):
        inner = description["mapping"]
        return {key: rebuild(inner[key], f"{place}.{key}") for key in inner}
    if description.keys() == {"dtype"} and description["dtype"] in _DTYPES:
        return getattr(jnp, description["dtype"])
    if description.keys() == {"number"} and description["number"] in ("inf", "-inf", "nan"):
        return float(description["number"])
    if description.keys() == {"function"}:
        return _resolve(description["function"], place)
    if "partial" in description and description.keys() <= {"partial", "arguments", "keywords"}:
        function = _resolve(description["partial"], place)
        arguments = rebuild(description.get("arguments", []), place)
        keywords = rebuild({"mapping": description.get("keywords", {})}, place)
        return functools.partial(function, *arguments, **keywords)
    raise ValueError(f"{place}: no such kind of value: {{{', '.join(map(str, description))}}}")


def _rebuild_class(description: dict, place: str) -> Any:
    name = description["class"]
    found = _resolve(name, place)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"{place}: {name} is no class with fields")
    given = {key: each for key, each in description.items() if key != "class"}
    if unknown := [key for key in given if key not in _fields(found)]:
        raise ValueError(f"{place}: {name} has no field {', '.join(unknown)}")
    values = {key: rebuild(each, f"{place}.{key}") for key, each in given.items()}
    try:
        return found(**values)
    except (TypeError, ValueError) as error:  # a missing field, or a value that it refuses
        raise ValueError(f"{place}: {name}: {error}") from error


def _resolve(name: Any, place: str) -> Any:
    """Returns the class or function of a name that descriptions may hold."""
    if not isinstance(name, str):
        raise ValueError(f"{place}: expected the name of a class or function, found {name!r}")
    name = MOVED.get(name, name)
    if not _may_name(name):
        raise ValueError(f"{place}: {name} is no name of a network or a step of segjax")
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{place}: there is no {name}") from error
    # Not what a module imports from elsewhere.
    if not isinstance(found, type | types.FunctionType) or _full_name(found) != name:
        raise ValueError(f"{place}: {name} is no class or function of segjax")
    return found


def _name_of(value: Any, place: str) -> str:
    name = _full_name(value)
    if not _may_name(name):
        raise NotOfSegjax(f"{place} is {_origin(value)}, which is not a part of segjax")
    return name


def _may_name(name: str) -> bool:
    inside = any(name.startswith(f"{room}.") for room in ROOMS)
    return _DOTTED.fullmatch(name) is not None and (inside or name in NAMES)


def _full_name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


def _origin(value: Any) -> str:
    """Names a value for an error: its class or function, and where that is defined."""
    named = value if hasattr(value, "__qualname__") else type(value)
    module = named.__module__ or ""
    return f"{named.__qualname__} of {module.rpartition('segjax_experiment_')[2]}"


def _fields(kind: type) -> list[str]:
    """The names of the fields that the constructor of a dataclass takes."""
    left_out = _LINEN if issubclass(kind, nn.Module) else ()
    return [f.name for f in dataclasses.fields(kind) if f.init and f.name not in left_out]


def _dtype_name(value: Any) -> str | None:
    """The name of a type of numbers in NumPy's or JAX's form; None for anything else."""
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        name = np.dtype(value).name
        return name if name in _DTYPES else None
    return next((name for name in _DTYPES if value is getattr(jnp, name)), None)
