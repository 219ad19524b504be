"""Learning-rate schedules and the Optax chains of the papers' recipes."""

from dataclasses import dataclass
from typing import Literal

import jax
import optax


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
    """On kernels only: neither biases nor normalisation layers decay."""
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


def kernels_only(params):
    """Marks the arrays that weight decay acts on: those named "kernel"."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Builds clip → weight decay → update; AdamW decouples its decay from the gradient."""
    steps = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if config.name == "sgd":
        if config.weight_decay:
            steps.append(optax.add_decayed_weights(config.weight_decay, mask=kernels_only))
        momentum = config.momentum or None
        steps.append(optax.sgd(schedule, momentum=momentum, nesterov=config.nesterov))
    elif config.name == "adamw":
        steps.append(optax.adamw(schedule, weight_decay=config.weight_decay, mask=kernels_only))
    else:
        raise ValueError(f"optimizer.name={config.name!r}; expected sgd or adamw")
    return optax.chain(*steps)
