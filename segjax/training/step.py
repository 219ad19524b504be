"""The training step: one pure function of state and batch."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from segjax.ops.devices import mean_over_devices, share_examples
from segjax.tasks.protocol import Task
from segjax.training.state import TrainState


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    micro_batches: int = 1,
    ema_decay: float | None = None,
    frozen: Callable | None = None,
) -> Callable:
    """Builds `train_step(state, batch) -> (state, metrics)`.

    The step's random key is `fold_in(key(seed), step)`, so that a step is a function of its inputs
    alone. The task folds in the device's axis index or, to be independent of the devices, the
    example's index. If the step is mapped over the axis `segjax.ops.devices.AXIS_NAME`, gradients
    and metrics are averaged over the devices. Each task defines its loss so that this average is
    the loss of the whole batch.

    Args:
      task: the task; its loss also sees the state's averaged parameters and frozen variables.
      micro_batches: number of parts into which a device cuts its batch, to fit its memory; the
        parts' gradients are averaged.
      ema_decay: decay per step of the moving average of the parameters; None keeps no average.
      frozen: params → tree of bool that marks the parameters without a gradient; None marks none.
        Layers that only feed frozen ones are skipped in the backward pass.
    """

    def loss_and_gradients(state, batch_stats, batch, key):
        others = {"ema_params": state.ema_params, "frozen": state.frozen}
        others = {name: tree for name, tree in others.items() if tree is not None}

        def loss(params):
            if frozen is not None:
                params = jax.tree.map(
                    lambda p, stop: jax.lax.stop_gradient(p) if stop else p, params, frozen(params)
                )
            variables = {"params": params, "batch_stats": batch_stats} | others
            return task.loss(variables, batch, key, train=True)

        return jax.value_and_grad(loss, has_aux=True)(state.params)

    def accumulate(state, batch, key):
        """Averages loss and gradients over the micro-batches; batch norm sees them one by one."""
        if micro_batches == 1:
            return loss_and_gradients(state, state.batch_stats, batch, key)
        parts = jax.tree.map(
            lambda x: share_examples(
                x.reshape(micro_batches, x.shape[0] // micro_batches, *x.shape[1:])
            ),
            batch,
        )

        def part(batch_stats, indexed):
            index, batch = indexed
            result = loss_and_gradients(state, batch_stats, batch, jax.random.fold_in(key, index))
            return result[0][1]["batch_stats"], result

        batch_stats, results = jax.lax.scan(
            part, state.batch_stats, (jnp.arange(micro_batches), parts)
        )
        (loss, aux), gradients = jax.tree.map(lambda x: jnp.mean(x, axis=0), results)
        return (loss, {**aux, "batch_stats": batch_stats}), gradients

    def train_step(state: TrainState, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, aux), gradients = accumulate(state, task.prepare(batch), key)
        loss, metrics, batch_stats, gradients = mean_over_devices(
            (loss, aux["metrics"], aux["batch_stats"], gradients)
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_decay is not None:
            ema_params = optax.incremental_update(params, ema_params, 1.0 - ema_decay)
        metrics = {
            "loss": loss,
            **metrics,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema_params,
        )
        return state, metrics

    return train_step
