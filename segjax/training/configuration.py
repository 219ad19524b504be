"""Configurations: frozen dataclasses, overridden by typed flags and stored as plain JSON."""

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

import tyro

from segjax.files.nested import flatten, with_value
from segjax.messages.hints import did_you_mean
from segjax.training.distributed import DistributedConfig
from segjax.training.optimizer import OptimizerConfig, check_least
from segjax.training.precision import MatmulPrecision
from segjax.training.ranking import read_best_metric
from segjax.training.strategies import ParallelConfig


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, and when to log, evaluate and save. A step is one optimiser update."""

    num_steps: int = 1000
    batch_size: int = 1
    """Examples per update, over all devices and processes."""
    micro_batches: int = 1
    """Number of parts into which each device cuts its share of the batch, to fit its memory."""
    log_every: int = 20
    eval_every: int | None = None
    """Steps between evaluations; None evaluates only at the end. The end scores all splits."""
    eval_splits: tuple[str, ...] = ()
    """Splits scored during training; none means the experiment's first split. The first one named
    ranks the checkpoints."""
    best_metric: str | None = None
    """Metric that ranks the checkpoints, such as mean_dice_per_image; None takes the experiment's
    own. Larger is better, unless its name has loss, error, distance, negative or std in it. Write
    NAME:min or NAME:max where that is wrong."""
    stop_after: int | None = None
    """Ends training once this many evaluations in a row were not better by the best metric than the
    best one before. None trains all steps."""
    eval_batch_size: int = 4
    """Tiles or images in an evaluation batch, per device."""
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    """Newest checkpoints to keep, besides the best one."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the parameters, which is then evaluated in their
    place. None keeps no average."""
    num_workers: int | None = None
    """Processes that read and augment. None starts one per two cores, and none on machines with
    fewer than four cores."""
    part_only: bool = False
    """Each process trains on its own contiguous part of the training examples only, and so needs
    only the files of its parts; see experiments/cluster/input.md."""

    def __post_init__(self):
        check_least(self, 0, "num_steps", "num_workers", "ema_decay")
        check_least(
            self,
            1,
            "batch_size",
            "micro_batches",
            "log_every",
            "eval_every",
            "stop_after",
            "eval_batch_size",
            "checkpoint_every",
            "keep_checkpoints",
        )
        if self.ema_decay is not None and not self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}; expected a number below 1")
        if self.best_metric is not None:
            read_best_metric(self.best_metric)


@dataclass(frozen=True)
class ExperimentConfig:
    """The settings that every experiment has."""

    workdir: Path
    """The run directory. It is created, or resumed if it already holds this run."""
    data_dir: Path = Path("data")
    """The folder of the data sets that `segjax data prepare` writes."""
    variant: str = ""
    """The row of the paper's tables to run; the experiment file lists them."""
    seed: int = 0
    matmul_precision: MatmulPrecision = "default"
    """Precision of float32 products. default: the fastest, which rounds factors to TF32 on GPUs and
    to bfloat16 on TPUs; high: TF32 on GPUs, three bfloat16 products for one on TPUs; highest:
    float32, as CPUs always compute."""
    accept_changes: bool = False
    """Resume even if the configuration has changed since the run began."""
    track: Literal["wandb", "mlflow", "trackio"] | None = None
    """Also sends metrics and pictures to W&B, MLflow or trackio, which are extras of segjax. Their
    own environment variables say where to. None keeps them in the run directory."""
    track_project: str | None = None
    """W&B's or trackio's project, or MLflow's experiment. None takes WANDB_PROJECT or
    MLFLOW_EXPERIMENT_NAME from the environment, or else segjax."""
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    distributed: DistributedConfig = DistributedConfig()
    parallel: ParallelConfig = ParallelConfig()

    def resolved(self, given: Collection[str] = ()) -> Self:
        """Returns the configuration with the settings that follow from others filled in.

        `parse` calls this; for a configuration that is made in Python, call it yourself.

        Args:
          given: dotted names of the settings on the command line, which stay as they are.

        Raises:
          ValueError: settings contradict each other.
        """
        del given
        return self


# Settings that may change when a run is resumed, because they do not affect its numbers.
FREE_KEYS = (
    "workdir",
    "data_dir",
    "accept_changes",
    "track",
    "track_project",
    "distributed",
    "parallel",
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
    """Reads a configuration from the command line; an unknown flag's error names the nearest flag.

    Args:
      arguments: the command line; None takes the process's own.
      variants: the rows of a paper's tables by name, each with the fields that differ from the
        defaults. `--variant NAME` selects a row, and further flags override it.
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
    config: Any = tyro.cli(
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
    flags = (each[2:].partition("=")[0] for each in arguments if each.startswith("--"))
    try:
        return config.resolved({flag.replace("-", "_") for flag in flags})
    except ValueError as error:
        sys.exit(f"error: {error}")


def variant_config(config_class, name: str, variants: Mapping, **fields):
    """Returns the configuration of a named variant.

    Args:
      fields: values of the fields without a default; the command line requires those left out.
    """
    required = [f.name for f in dataclasses.fields(config_class) if not _has_default(f)]
    missing = dict.fromkeys(required, tyro.MISSING)
    return config_class(**(missing | {"variant": name} | dict(variants[name]) | fields))


def _has_default(field) -> bool:
    return not (
        field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )


def _asked_variant(arguments: list[str]) -> str:
    """Returns the value of `--variant`, which sets the defaults of all other flags."""
    name = ""
    for place, argument in enumerate(arguments):
        if argument == "--variant" and place + 1 < len(arguments):
            name = arguments[place + 1]
        elif argument.startswith("--variant="):
            name = argument.partition("=")[2]
    return name


def to_dict(config) -> dict[str, Any]:
    """Returns a configuration as JSON values."""
    return {f.name: _to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _to_json(value):
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_to_json(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def with_absolute_paths(values: dict, config) -> dict:
    """Makes relative paths among JSON values absolute.

    Args:
      values: values in the form of `to_dict`.
      config: the configuration, whose own values tell which of them are paths.
    """
    flat = flatten(values)
    for name in ("workdir", *paths(config)):
        if isinstance(value := flat.get(name), str):
            values = with_value(values, name, str(Path(value).expanduser().absolute()))
    return values


def paths(config) -> list[str]:
    """Returns the dotted names of the settings that are paths, except the run directory's."""
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found += [f"{field.name}.{name}" for name in paths(value)]
        elif isinstance(value, Path) and field.name != "workdir":
            found.append(field.name)
    return found


class UnknownSetting(ValueError):
    """A configuration has no setting of this name."""


def from_dict(config_class, values: dict, *, where: str = "config"):
    """Rebuilds a configuration from the output of `to_dict`.

    Raises:
      ValueError: a key is unknown (the message names the nearest) or missing, or a value has the
        wrong type or is rejected by its dataclass.
    """
    hints = typing.get_type_hints(config_class)
    fields = {f.name for f in dataclasses.fields(config_class)}
    if not isinstance(values, dict):
        raise ValueError(f"{where}={values!r}; expected an object with keys of {sorted(fields)}")
    for key in values:
        if key not in fields:
            hint = did_you_mean(key, fields) or f"; known: {sorted(fields)}"
            raise UnknownSetting(f"{where}: unknown key {key!r}{hint}")
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
    """Reads a value as the first type of a union that accepts it.

    Dataclasses are tried in the order of how many keys differ from the value's.
    """
    if isinstance(value, dict):

        def differing_keys(option):
            fields = [f.name for f in dataclasses.fields(option)]
            return len({*fields} ^ {*value})

        dataclass_options = [o for o in options if dataclasses.is_dataclass(o)]
        options = sorted(dataclass_options, key=differing_keys) or options
    errors = []
    for option in options:
        try:
            return _from_json(option, value, where)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def differences(old: dict, new: dict) -> list[str]:
    """Returns a line for each entry that differs, except those of `FREE_KEYS`."""
    old, new = flatten(old), flatten(new)
    missing = "(absent)"
    return [
        f"{key}: {old.get(key, missing)} -> {new.get(key, missing)}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key, missing) != new.get(key, missing)
        and not any(key == free or key.startswith(free + ".") for free in FREE_KEYS)
    ]


def describe(values: dict) -> str:
    """Returns the resolved configuration as text, one entry per line."""
    flat = flatten(values)
    width = max(map(len, flat))
    return "\n".join(f"  {key:{width}}  {json.dumps(value)}" for key, value in flat.items())
