"""Optimisers and learning-rate schedules of the papers' recipes, built with Optax."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import optax


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser and its learning-rate schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    """Peak learning rate for batches of reference_batch_size examples. It scales in proportion to
    the batch size."""
    reference_batch_size: int = 1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decayed: str = r"kernel$"
    """Regular expression for the paths of the parameters that decay. The default excludes biases
    and normalisation layers; "." decays everything (torchvision, mmsegmentation);
    r"(?<!depthwise)/kernel$" also excludes depthwise kernels (TensorFlow DeepLab)."""
    multipliers: tuple[tuple[str, float], ...] = ()
    """Regular expressions for parameter paths, each with a factor of the learning rate:
    ("bias$", 2.0) doubles it for biases, ("^(?!backbone/)", 10.0) raises it for a head on a trained
    backbone. If several match, their factors multiply. Zero freezes parameters: no gradient is
    computed for them."""
    schedule: Literal["constant", "poly", "step", "cosine"] = "poly"
    power: float = 0.9
    """Exponent of the poly schedule, (1 - step / num_steps) ** power."""
    end_learning_rate: float = 0.0
    """Last value of the poly and cosine schedules; it scales like learning_rate."""
    step_boundaries: tuple[float, ...] = (2 / 3, 8 / 9)
    """Where the step schedule drops, as fractions of num_steps."""
    step_factor: float = 0.1
    """Factor of the learning rate at each boundary of the step schedule."""
    warmup_steps: int = 0
    warmup_factor: float = 0.001
    """First value of the warm-up, which rises linearly to 1 and multiplies the schedule
    (detectron2)."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; larger gradients are scaled down to it."""

    def __post_init__(self):
        check_least(self, 0, "learning_rate", "end_learning_rate", "momentum", "weight_decay")
        check_least(self, 0, "warmup_steps", "warmup_factor", "step_factor", "clip_norm")
        check_least(self, 1, "reference_batch_size")
        for name, patterns in (
            ("decayed", [self.decayed]),
            ("multipliers", [pattern for pattern, _ in self.multipliers]),
        ):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(
                        f"{name}: {pattern!r} is no regular expression: {error}"
                    ) from error


def check_least(config, least: int, *names: str) -> None:
    """Raises ValueError for a number of a configuration that is below `least` or not finite."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int | float) and not least <= value < math.inf:
            raise ValueError(f"{name}={value}; expected a number from {least} on")


def learning_rate_schedule(
    config: OptimizerConfig, *, num_steps: int, batch_size: int
) -> optax.Schedule:
    """Returns the schedule, step → learning rate, of a run of `num_steps` steps."""
    num_steps = max(num_steps, 1)  # a run of no steps evaluates its first variables
    scale = batch_size / config.reference_batch_size
    peak, end = config.learning_rate * scale, config.end_learning_rate * scale
    if config.schedule == "constant":
        schedule = optax.constant_schedule(peak)
    elif config.schedule == "poly":
        schedule = optax.polynomial_schedule(peak, end, config.power, num_steps)
    elif config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(peak, num_steps, alpha=end / peak if peak else 0.0)
    elif config.schedule == "step":
        boundaries = {round(b * num_steps): config.step_factor for b in config.step_boundaries}
        schedule = optax.piecewise_constant_schedule(peak, boundaries)
    else:
        raise ValueError(
            f"optimizer.schedule={config.schedule!r}; expected constant, poly, step or cosine"
        )
    if not config.warmup_steps:
        return schedule
    warmup = optax.linear_schedule(config.warmup_factor, 1.0, config.warmup_steps)
    return lambda step: warmup(step) * schedule(step)


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Chains clipping, weight decay, the update and the multipliers; AdamW's decay is decoupled."""
    steps = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]

    def decayed(params):
        return matching(params, config.decayed, setting="optimizer.decayed")

    if config.name == "sgd":
        if config.weight_decay:
            steps.append(optax.add_decayed_weights(config.weight_decay, mask=decayed))
        momentum = config.momentum or None
        steps.append(optax.sgd(schedule, momentum=momentum, nesterov=config.nesterov))
    elif config.name == "adamw":
        steps.append(optax.adamw(schedule, weight_decay=config.weight_decay, mask=decayed))
    else:
        raise ValueError(f"optimizer.name={config.name!r}; expected sgd or adamw")
    if config.multipliers:
        steps.append(_multiply(config.multipliers))
    return optax.chain(*steps)


def frozen_parameters(config: OptimizerConfig, params):
    """Marks the parameters whose learning rate is always zero; returns a tree of bool."""
    factors = learning_rate_multipliers(params, config.multipliers)
    return jax.tree.map(lambda factor: factor == 0, factors)


def _multiply(multipliers) -> optax.GradientTransformation:
    """Scales the final updates, so that momentum and weight decay do not see the multipliers."""

    def init(params):
        del params
        return optax.EmptyState()

    def update(updates, state, params=None):
        factors = learning_rate_multipliers(params, multipliers)
        scaled = jax.tree.map(lambda u, factor: u * factor, updates, factors)
        return scaled, state

    return optax.GradientTransformation(init, update)


def path_of(path) -> str:
    """Returns the path of a leaf as text, such as "backbone/stem/convolution/kernel"."""
    return "/".join(str(getattr(key, "key", key)) for key in path)


def matching(params, pattern: str, *, setting: str):
    """Marks the parameters whose path matches a regular expression; returns a tree of bool.

    Raises:
      ValueError: no path matches, because a misspelt pattern would silently do nothing. The message
        starts with `setting` and lists some paths.
    """
    marks = jax.tree_util.tree_map_with_path(
        lambda path, _: re.search(pattern, path_of(path)) is not None, params
    )
    leaves = jax.tree.leaves(marks)
    # A tree may have no leaves: optax.contrib.muon masks those that belong to its Adam part.
    if leaves and not any(leaves):
        paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        shown = ", ".join(paths[:: math.ceil(len(paths) / 6)])
        raise ValueError(f"{setting}: {pattern!r} is in no parameter's path; some are {shown}")
    return marks


def learning_rate_multipliers(params, multipliers: Sequence[tuple[str, float]]):
    """Returns each parameter's factor: the product over the patterns that match its path."""
    factors = jax.tree.map(lambda _: 1.0, params)
    for pattern, factor in multipliers:
        marks = matching(params, pattern, setting="optimizer.multipliers")
        factors = jax.tree.map(
            lambda old, marked, factor=factor: old * factor if marked else old, factors, marks
        )
    return factors
