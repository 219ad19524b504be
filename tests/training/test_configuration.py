"""Configurations from files and from the command line, and differences between them."""

import dataclasses
import json
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from segjax.training.configuration import (
    FREE_KEYS,
    ExperimentConfig,
    TrainConfig,
    describe,
    differences,
    flatten,
    from_dict,
    parse,
    to_dict,
)
from segjax.training.experiment import load_module
from segjax.training.optimizer import OptimizerConfig
from tests.training import tiny

pytestmark = pytest.mark.quick
EXPERIMENTS = sorted(
    path
    for path in (Path(__file__).parents[2] / "experiments").rglob("*.py")
    if "class Config(" in path.read_text()
)


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """A configuration with fields of all kinds."""

    scale: tuple[float, float] = (1.0, 2.0)
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Other:
    """Another option of a union."""

    width: int = 1


@dataclass(frozen=True)
class Unions(ExperimentConfig):
    """A configuration whose fields take values of several types."""

    backbone: Literal["resnet50", "vgg16"] | Literal["convnext"] = "resnet50"
    size: int | tuple[int, int] | None = None
    head: OptimizerConfig | Other = Other()


@pytest.mark.parametrize(
    "changes",
    [{"backbone": "convnext"}, {"size": 3}, {"size": (3, 4)}, {"head": OptimizerConfig()}],
)
def test_every_option_of_a_union_loads_again(changes):
    config = Unions(workdir=Path("run"), **changes)
    assert from_dict(Unions, json.loads(json.dumps(to_dict(config)))) == config


def test_a_value_that_no_option_of_a_union_takes_is_refused_by_name():
    values = to_dict(Unions(workdir=Path("run"))) | {"backbone": "alexnet"}
    with pytest.raises(ValueError, match=r"config\.backbone='alexnet'; expected one of"):
        from_dict(Unions, values)


def parsed(*arguments, config_class=Config):
    return parse(config_class, ["--workdir", "run", *arguments])


def said(arguments, capsys):
    """Returns the error of a rejected command line, without the box around it."""
    with pytest.raises(SystemExit):
        parsed(*arguments)
    output = capsys.readouterr()
    return re.sub(r"[│\s]+", " ", output.out + output.err)


# Those on folders of one's own need the folders; tests/experiments/test_folders.py has them.
ALONE = [path for path in EXPERIMENTS if path.stem != "folder"]


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
def test_the_configuration_of_every_experiment_survives_json_and_the_command_line(path):
    config_class = load_module(path).Config
    config = parse(config_class, ["--workdir", "elsewhere", "--train.eval-every", "7"])
    assert config.workdir == Path("elsewhere")
    assert config == config_class(
        workdir=Path("elsewhere"), train=dataclasses.replace(config.train, eval_every=7)
    )
    values = json.loads(json.dumps(to_dict(config)))
    assert from_dict(config_class, values) == config
    assert differences(values, to_dict(config)) == []


def test_every_experiment_is_found():
    assert {path.stem for path in EXPERIMENTS} >= {"quickstart", "isbi2012", "dic_hela", "drive"}


def test_paths_tuples_and_nones_are_plain_json():
    config = Config(workdir=Path("a/b"), names=("x",))
    assert to_dict(config) == json.loads(json.dumps(to_dict(config)))
    values = flatten(to_dict(config))
    assert values["workdir"] == str(Path("a/b"))
    assert values["scale"] == [1.0, 2.0]
    assert values["train.eval_every"] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sead": 1}, "config: unknown key 'sead'; did you mean 'seed'?"),
        ({"train": {"num_step": 1}}, "config.train: unknown key 'num_step'; did you mean 'num_st"),
        ({"qqq": 1}, r"config: unknown key 'qqq'; known: \['accept_changes', "),
        ({"train": {"num_steps": 1.5}}, r"config.train.num_steps=1.5; expected int"),
        ({"train": {"num_steps": True}}, r"config.train.num_steps=True; expected int"),
        ({"train": {"num_steps": None}}, r"config.train.num_steps=None; expected int"),
        ({"train": {"eval_every": "7"}}, r"config.train.eval_every='7'; expected int"),
        ({"train": 3}, r"config.train=3; expected an object with keys of \['batch_size', "),
        ({"optimizer": {"momentum": False}}, r"config.optimizer.momentum=False; expected float"),
        ({"optimizer": {"name": "sgdw"}}, r"optimizer.name='sgdw'; expected one of \('sgd', "),
        ({"accept_changes": 1}, r"config.accept_changes=1; expected bool"),
        ({"data_dir": 5}, r"config.data_dir=5; expected Path"),
        ({"scale": [1.0]}, r"config.scale=\[1.0\]; expected a list of 2"),
        ({"scale": 1.0}, r"config.scale=1.0; expected a list of 2"),
        ({"scale": [1.0, "a"]}, r"config.scale\[1\]='a'; expected float"),
        ({"names": "abc"}, r"config.names='abc'; expected a list$"),
        ({"workdir": None}, r"config.workdir=None; expected Path"),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(Config, {"workdir": "run", **values})


def test_what_a_dataclass_itself_refuses_is_named_too():
    with pytest.raises(ValueError, match=r"config.json: .*workdir"):
        from_dict(Config, {}, where="config.json")
    values = {"workdir": "run", "loss": {"cross_entropy": 0.0}}
    with pytest.raises(ValueError, match=r"config.json.loss: the loss needs a term"):
        from_dict(tiny.Config, values, where="config.json")


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("train", "num_steps", -1),
        ("train", "batch_size", 0),
        ("train", "log_every", 0),
        ("train", "eval_every", 0),
        ("train", "checkpoint_every", 0),
        ("train", "keep_checkpoints", 0),
        ("train", "ema_decay", 1.0),
        ("train", "num_workers", -1),
        ("train", "stop_after", 0),
        ("train", "best_metric", "mean_iou:smaller"),
        ("optimizer", "learning_rate", -0.1),
        ("optimizer", "learning_rate", math.nan),
        ("optimizer", "reference_batch_size", 0),
        ("optimizer", "decayed", "kernel("),
        ("optimizer", "multipliers", [["(", 2.0]]),
    ],
)
def test_numbers_and_patterns_that_mean_nothing_are_refused(part, name, value, capsys):
    with pytest.raises(ValueError, match=rf"config.json.{part}: {name}(=|: '\S+' is no regular)"):
        from_dict(Config, {"workdir": "run", part: {name: value}}, where="config.json")
    if not isinstance(value, list):
        with pytest.raises(SystemExit):
            parsed(f"--{part}.{name.replace('_', '-')}", str(value))
        assert name in capsys.readouterr().err


def test_whole_numbers_are_read_as_floats_where_floats_are_expected():
    config = from_dict(Config, {"workdir": "run", "optimizer": {"learning_rate": 1}})
    assert isinstance(config.optimizer.learning_rate, float)


def test_flags_of_every_kind():
    config = parsed(
        *shlex.split(
            "--accept-changes True --scale 0.5 3 --names a b --train.eval-every 5 "
            "--train.ema-decay 0.9 --optimizer.name adamw --optimizer.step-boundaries 0.5 0.7 0.9"
        )
    )
    assert config == Config(
        workdir=Path("run"),
        accept_changes=True,
        scale=(0.5, 3.0),
        names=("a", "b"),
        train=TrainConfig(eval_every=5, ema_decay=0.9),
        optimizer=OptimizerConfig(name="adamw", step_boundaries=(0.5, 0.7, 0.9)),
    )
    assert parsed("--train.eval-every", "None").train.eval_every is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--train.num-step", "5"], "--train.num-steps"),
        (["--train.num-steps", "many"], "--train.num-steps"),
        (["--optimizer.schedule", "linear"], "constant"),
        (["--scale", "1.0"], "--scale"),
        (["--accept-changes", "perhaps"], "--accept-changes"),
    ],
)
def test_a_command_line_that_does_not_fit_is_refused_with_the_nearest_flag(
    arguments, expected, capsys
):
    assert expected in said(arguments, capsys)


def test_a_loss_without_terms_is_refused_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        parsed("--loss.cross-entropy", "0", config_class=tiny.Config)
    output = capsys.readouterr()
    assert "needs a term" in output.out + output.err


def test_differences_are_those_of_all_but_the_free_keys():
    old = flatten(to_dict(Config(workdir=Path("a"))))
    free = {
        key for key in old if any(key == name or key.startswith(f"{name}.") for name in FREE_KEYS)
    }
    assert {name for name in FREE_KEYS if not any(key.startswith(name) for key in free)} == set()
    assert {"seed", "train.num_steps", "train.batch_size", "optimizer.momentum"} <= {*old} - free
    for key in old:
        lines = differences(old, {**old, key: "changed"})
        expected = [] if key in free else [f"{key}: {old[key]} -> changed"]
        assert lines == expected


def test_keys_that_one_side_lacks_are_differences():
    assert differences({"a": 1, "b": {"c": 2}}, {"a": 1}) == ["b.c: 2 -> (absent)"]
    assert differences({}, {"b": {"c": None}}) == ["b.c: (absent) -> None"]


def test_the_description_has_a_line_for_each_entry():
    config = Config(workdir=Path("run"), names=("a",))
    lines = dict(line.split(maxsplit=1) for line in describe(to_dict(config)).splitlines())
    assert {key: json.loads(value) for key, value in lines.items()} == flatten(to_dict(config))


VARIANTS = {
    "wide": {"scale": (0.5, 4.0), "train": TrainConfig(num_steps=7)},
    "named": {"names": ("a",)},
}


def with_variant(*arguments):
    return parse(Config, ["--workdir", "run", *arguments], variants=VARIANTS)


def test_a_variant_changes_the_defaults_and_flags_act_on_top_of_it():
    config = with_variant("--variant", "wide", "--train.batch-size", "3")
    expected = Config(
        Path("run"),
        variant="wide",
        scale=(0.5, 4.0),
        train=TrainConfig(num_steps=7, batch_size=3),
    )
    assert config == expected
    assert with_variant("--variant=wide", "--train.batch-size=3") == expected
    assert from_dict(Config, to_dict(config)) == config
    assert with_variant() == Config(Path("run"))


def test_a_variant_asks_for_what_has_no_default(capsys):
    with pytest.raises(SystemExit):
        parse(Config, ["--variant", "wide"], variants=VARIANTS)
    assert "--workdir" in capsys.readouterr().err


def test_an_unknown_variant_is_refused_with_the_nearest():
    with pytest.raises(
        SystemExit, match=r"no variant is named 'wid'; did you mean 'wide'\? .*named"
    ):
        with_variant("--variant", "wid")


@dataclass(frozen=True)
class First:
    """One of two kinds."""

    width: int = 1


@dataclass(frozen=True)
class Second:
    """The other."""

    rates: tuple[int, ...] = (1, 2)
    width: int = 2


@dataclass(frozen=True)
class EitherConfig(ExperimentConfig):
    """A field of several kinds."""

    network: First | Second = First()


def test_a_field_of_several_kinds_has_the_flags_of_its_default_and_survives_json():
    variants = {"second": {"network": Second()}}
    arguments = ["--workdir", "run", "--network.width", "5"]
    first = parse(EitherConfig, arguments, variants=variants)
    assert first.network == First(5)
    second = parse(EitherConfig, [*arguments, "--variant", "second"], variants=variants)
    assert second.network == Second(width=5)
    for config in (first, second):
        assert from_dict(EitherConfig, json.loads(json.dumps(to_dict(config)))) == config
    with pytest.raises(ValueError, match=r"config.network: unknown key 'widht'.*'width'"):
        from_dict(EitherConfig, {"workdir": "run", "network": {"widht": 1}})
