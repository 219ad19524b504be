"""Learning-rate schedules and the Optax chains of the papers' recipes."""

from dataclasses import dataclass
from typing import Literal

import jax
import optax

from segjax.training.parameters import learning_rate_multipliers, matching


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser and its learning-rate schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    """Peak learning rate, for batches of reference_batch_size examples; it is scaled in
    proportion when the batch differs."""
    reference_batch_size: int = 1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decayed: str = r"kernel$"
    """Pattern of the paths of the parameters that decay. The default leaves out biases and
    normalisation layers; "." takes all (torchvision, mmsegmentation), r"(?<!depthwise)/kernel$"
    leaves out depthwise kernels as well (TensorFlow DeepLab)."""
    multipliers: tuple[tuple[str, float], ...] = ()
    """Patterns of parameter paths and factors of their learning rate: ("bias$", 2.0) for doubled
    biases, ("^(?!backbone/)", 10.0) for a head on a trained backbone. Where several are found,
    all multiply. Zero freezes: no gradient is computed for these."""
    schedule: Literal["constant", "poly", "step", "cosine"] = "poly"
    power: float = 0.9
    """Of the poly schedule, (1 - step / num_steps) ** power."""
    end_learning_rate: float = 0.0
    """Where poly and cosine end; scaled as learning_rate is."""
    step_boundaries: tuple[float, ...] = (2 / 3, 8 / 9)
    """Of the step schedule, as shares of num_steps."""
    step_factor: float = 0.1
    warmup_steps: int = 0
    warmup_factor: float = 0.001
    """Linear warm-up from warmup_factor to 1, multiplied with the schedule (detectron2)."""
    clip_norm: float | None = None
    """Largest global norm of the gradient."""


def learning_rate_schedule(
    config: OptimizerConfig, *, num_steps: int, batch_size: int
) -> optax.Schedule:
    """Returns step → learning rate, a pure function of the step and of the whole run's length."""
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
    """Builds clip → weight decay → update → multipliers; AdamW decouples its decay."""
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
    """Marks the parameters whose learning rate is zero at all times, a tree of bool."""
    factors = learning_rate_multipliers(params, config.multipliers)
    return jax.tree.map(lambda factor: factor == 0, factors)


def _multiply(multipliers) -> optax.GradientTransformation:
    """Scales the updates, so that momentum and weight decay are as without multipliers."""

    def update(updates, state, params):
        factors = learning_rate_multipliers(params, multipliers)
        scaled = jax.tree.map(lambda u, factor: u * factor, updates, factors)
        return scaled, state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
