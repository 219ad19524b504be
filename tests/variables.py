"""Random variables of a network, for tests that need no initialisation of their own."""

import jax
import jax.numpy as jnp
import numpy as np


def random_variables(model, inputs, *, seed: int = 0) -> dict:
    """Draws the variables of a module or a task with NumPy; compiling `init` would take longer.

    Biases are not zero, and no norm is the identity, so that a test sees all of them.

    Args:
      model: has `init(key, inputs)`.
      inputs: what `init` takes, arrays or shapes.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            incoming = np.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 10
            values = rng.normal(0, np.sqrt(2 / incoming), leaf.shape)
        return jnp.asarray(values, jnp.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
    return jax.tree_util.tree_map_with_path(draw, shapes)
