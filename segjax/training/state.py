"""The state of a training run: everything that a step reads and writes besides the batch."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """A pytree that determines the next step, together with the batch.

    Attributes:
      step: int32 scalar, the number of updates made.
      params: the trained parameters.
      batch_stats: running statistics of batch norm; empty without batch norm.
      opt_state: state of the Optax transformation.
      ema_params: exponential moving average of `params`, or None.
      frozen: variables of other networks by name, such as a teacher's. Losses may read them, and no
        step changes them. None if there are none.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any = None
    frozen: Any = None

    @property
    def variables(self):
        """The variables to evaluate, with the averaged parameters if they are kept."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, "batch_stats": self.batch_stats}

    def starting_from(self, variables) -> "TrainState":
        """Returns an initial state with these variables instead, of the same shapes."""
        averaged = None if self.ema_params is None else jax.tree.map(jnp.copy, variables["params"])
        return dataclasses.replace(
            self,
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            ema_params=averaged,
        )


def create_state(task, optimizer: optax.GradientTransformation, *, seed: int, batch, ema: bool):
    """Initialises a `TrainState` from a seed and the shapes of one batch."""
    create = _creation(task, optimizer, seed=seed, ema=ema)
    # Initialisation is hundreds of random draws that run once. Full optimisation makes it compile
    # three times as long: 40 seconds for a MobileNetV2 on CPU.
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else {}
    return jax.jit(create).lower(batch).compile(compiler_options=options)(batch)


def state_shapes(task, optimizer: optax.GradientTransformation, *, seed: int, batch, ema: bool):
    """Returns the shapes and types of what `create_state` returns, without compiling it."""
    return jax.eval_shape(_creation(task, optimizer, seed=seed, ema=ema), batch)


def _creation(task, optimizer, *, seed, ema):
    def create(batch):
        variables = task.init(jax.random.key(seed), batch)
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(params),
            # A copy: the step donates its state, and one buffer cannot be donated twice.
            ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        )

    return create
