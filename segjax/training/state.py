"""The state of a training run: everything that a step reads and writes besides the batch."""

import dataclasses
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from segjax.ops.initializers import drawn_by_numpy


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
    """Initialises a `TrainState` from a seed and the shapes of one batch.

    NumPy draws the parameters of segjax's layers (see `segjax.ops.initializers`), and a compiled
    program those of other layers. The program is not optimised, as it runs once.
    """
    drawn = None

    def others(batch):
        nonlocal drawn
        with drawn_by_numpy(seed):
            variables = task.init(jax.random.key(seed), batch)
        drawn = jax.tree.map(lambda x: x if isinstance(x, np.ndarray) else None, variables)
        return jax.tree.map(lambda x: None if isinstance(x, np.ndarray) else x, variables)

    computed = _run_once(others, batch)
    variables = jax.tree.map(
        lambda by_numpy, by_jax: by_jax if by_numpy is None else by_numpy,
        drawn,
        computed,
        is_leaf=lambda x: x is None,
    )
    return _run_once(partial(_state, optimizer, ema=ema), variables)


def state_shapes(task, optimizer: optax.GradientTransformation, *, seed: int, batch, ema: bool):
    """Returns the shapes and types of what `create_state` returns, without computing it."""

    def create(batch):
        return _state(optimizer, task.init(jax.random.key(seed), batch), ema=ema)

    return jax.eval_shape(create, batch)


def _run_once(function, argument):
    """Computes a function in a program that compiles fast, where XLA can be told to."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return jax.jit(function).lower(argument).compile(compiler_options=options)(argument)


def _state(optimizer, variables, *, ema):
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        # A copy: the step donates its state, and one buffer cannot be donated twice.
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )
