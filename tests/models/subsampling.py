"""A backbone without weights, and functions that the tests of the heads share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Subsampling(nn.Module):
    """Returns the image subsampled to each map's stride, which tests heads without a backbone."""

    def __call__(self, images, *, output_stride=32, multi_grid=None, train=False):
        strides = {f"pool{i}": min(2**i, output_stride) for i in range(1, 5)}
        strides |= {"low_level": 4, "auxiliary": min(16, output_stride), "features": output_stride}
        return {name: images[:, ::stride, ::stride] for name, stride in strides.items()}


def shapes(model, size=(33, 48)):
    """Returns the shapes of parameters by path, and of outputs, without computing them."""
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    paths = jax.tree_util.tree_leaves_with_path(variables["params"])
    params = {"/".join(key.key for key in path): leaf.shape for path, leaf in paths}
    return params, jax.eval_shape(model.apply, variables, images)


def run(model, variables, images):
    """Computes the outputs at test time, compiled as a whole: faster than operator by operator."""
    return jax.jit(model.apply)(variables, images)


def run_with_dropout(model, variables, images, *, seed, train=True):
    """Computes the outputs with this seed's dropout."""

    @jax.jit
    def apply(variables, images, key):
        rngs = {"dropout": key}
        return model.apply(variables, images, train, rngs=rngs, mutable=["batch_stats"])[0]

    return apply(variables, images, jax.random.key(seed))


def num_parameters(model):
    return sum(int(np.prod(shape)) for shape in shapes(model)[0].values())
