"""Configurations: frozen dataclasses in, typed flags over them, plain JSON out."""

import dataclasses
import json
import shlex
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tyro

from segjax.messages.hints import did_you_mean
from segjax.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class TrainConfig:
    """How long to train and what to do along the way. Steps count optimiser updates."""

    num_steps: int = 1000
    batch_size: int = 1
    """Examples per update, over all devices and processes."""
    micro_batches: int = 1
    """Parts a device cuts its share of the batch into, to fit its memory."""
    log_every: int = 20
    eval_every: int | None = None
    """None evaluates at the end only, when all splits are scored."""
    eval_splits: tuple[str, ...] = ()
    """Splits scored along the way; none named takes the experiment's first. The first of them
    ranks the checkpoints."""
    eval_batch_size: int = 4
    """Tiles or images per device at a time."""
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    ema_decay: float | None = None
    """Evaluate an exponential moving average of the parameters, which keeps this share a step."""
    num_workers: int | None = None
    """Processes that read and augment; None takes one per two cores, none below four cores."""


@dataclass(frozen=True)
class DistributedConfig:
    """Several processes. On a cluster that JAX knows (SLURM, TPU pods), `auto` is enough."""

    auto: bool = False
    coordinator_address: str | None = None
    """host:port of process 0."""
    num_processes: int | None = None
    process_id: int | None = None


@dataclass(frozen=True)
class ExperimentConfig:
    """What every experiment takes."""

    workdir: Path
    """The run directory: created, or resumed if it holds this run already."""
    data_dir: Path = Path("data")
    """Where `segjax data prepare` puts its data sets."""
    variant: str = ""
    """Row of the paper's tables; the experiment file lists them."""
    seed: int = 0
    accept_changes: bool = False
    """Resume although the configuration is not the one that the run began with."""
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    distributed: DistributedConfig = DistributedConfig()


# What may differ between the start of a run and its resumption without changing its numbers.
FREE_KEYS = (
    "workdir",
    "data_dir",
    "accept_changes",
    "distributed",
    "train.log_every",
    "train.eval_batch_size",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.num_workers",
)


def parse(
    config_class,
    arguments: list[str] | None = None,
    *,
    variants: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Any:
    """Reads a configuration from the command line; unknown flags name the nearest known one.

    Args:
      arguments: None takes the process's own.
      variants: named rows of a paper's tables: what differs from the defaults, by field. The row
        is asked for by `--variant NAME`; further flags act on top of it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    name = _asked_variant(arguments)
    if name and name not in variants:
        known = ", ".join(variants) or "none"
        hint = did_you_mean(name, variants) or "."
        sys.exit(f"error: no variant is named {name!r}{hint} This experiment has: {known}")
    description = config_class.__doc__
    if variants:
        description += f"\n\nVariants (--variant NAME): {', '.join(variants)}."
    return tyro.cli(
        config_class,
        args=arguments,
        default=variant_config(config_class, name, variants) if name else None,
        description=description,
        # Comments above fields explain defaults to readers of the code, not settings to users.
        config=(
            tyro.conf.FlagConversionOff,
            tyro.conf.AvoidSubcommands,
            tyro.conf.HelptextFromCommentsOff,
        ),
    )


def variant_config(config_class, name: str, variants: Mapping, **fields):
    """Returns the configuration of a named variant.

    Args:
      fields: those without a default, which the command line asks for where they are absent.
    """
    required = [f.name for f in dataclasses.fields(config_class) if not _has_default(f)]
    missing = dict.fromkeys(required, tyro.MISSING)
    return config_class(**(missing | {"variant": name} | dict(variants[name]) | fields))


def _has_default(field) -> bool:
    return not (
        field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )


def _asked_variant(arguments: list[str]) -> str:
    """The value of `--variant`, which decides about the defaults of all other flags."""
    name = ""
    for place, argument in enumerate(arguments):
        if argument == "--variant" and place + 1 < len(arguments):
            name = arguments[place + 1]
        elif argument.startswith("--variant="):
            name = argument.partition("=")[2]
    return name


def to_dict(config) -> dict:
    """Returns a configuration as JSON values."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def from_dict(config_class, values: dict, *, where: str = "config"):
    """Rebuilds a configuration from what `to_dict` returned.

    Raises:
      ValueError: a key is unknown (the message names the nearest) or missing, or a value is of a
        wrong type or refused by its dataclass.
    """
    hints = typing.get_type_hints(config_class)
    fields = {f.name for f in dataclasses.fields(config_class)}
    if not isinstance(values, dict):
        raise ValueError(f"{where}={values!r}; expected an object with keys of {sorted(fields)}")
    for key in values:
        if key not in fields:
            hint = did_you_mean(key, fields) or f"; known: {sorted(fields)}"
            raise ValueError(f"{where}: unknown key {key!r}{hint}")
    arguments = {k: _from_json(hints[k], v, f"{where}.{k}") for k, v in values.items()}
    try:
        return config_class(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _from_json(hint, value, where):
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _from_union([option for option in options if option is not type(None)], value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where=where)
    if origin is tuple:
        if not isinstance(value, list) or (options[-1] is not ... and len(value) != len(options)):
            count = "" if options[-1] is ... else f" of {len(options)}"
            raise ValueError(f"{where}={value!r}; expected a list{count}")
        inner = options[:1] * len(value) if options[-1] is ... else options
        return tuple(
            _from_json(o, v, f"{where}[{place}]")
            for place, (o, v) in enumerate(zip(inner, value, strict=True))
        )
    if origin is typing.Literal:
        if value not in options:
            raise ValueError(f"{where}={value!r}; expected one of {options}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{where}={value!r}; expected {hint.__name__}")
    return value


def _from_union(options, value, where):
    """Reads a value as the first option of a union that takes it.

    Among dataclasses, the one whose keys are nearest to the value's comes first.
    """
    if isinstance(value, dict):

        def strangers(option):
            fields = [f.name for f in dataclasses.fields(option)]
            return len({*fields} ^ {*value})

        dataclass_options = [o for o in options if dataclasses.is_dataclass(o)]
        options = sorted(dataclass_options, key=strangers) or options
    errors = []
    for option in options:
        try:
            return _from_json(option, value, where)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def with_value(values: dict, name: str, value) -> dict:
    """Returns a nested dict with another value for "train.num_steps"; new keys are let in."""
    key, _, rest = name.partition(".")
    if rest:
        inner = values.get(key)
        value = with_value(inner if isinstance(inner, dict) else {}, rest, value)
    return values | {key: value}


def flatten(values: dict, prefix: str = "") -> dict:
    """Returns {"train.num_steps": 1000, ...} for a nested dict."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def differences(old: dict, new: dict) -> list[str]:
    """Returns a line for each entry that differs and that matters to the run's numbers."""
    old, new = flatten(old), flatten(new)
    missing = "(absent)"
    return [
        f"{key}: {old.get(key, missing)} -> {new.get(key, missing)}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key, missing) != new.get(key, missing)
        and not any(key == free or key.startswith(free + ".") for free in FREE_KEYS)
    ]


def describe(values: dict) -> str:
    """Returns the resolved configuration as text, one entry a line."""
    flat = flatten(values)
    width = max(map(len, flat))
    return "\n".join(f"  {key:{width}}  {json.dumps(value)}" for key, value in flat.items())


def command_line() -> str:
    """Returns the command that started this process, as it would be typed."""
    return shlex.join(["python", *sys.argv])
