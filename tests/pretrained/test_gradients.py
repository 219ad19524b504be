"""One training step's gradients equal PyTorch's, for DeepLab v3 with the auxiliary head.

The step uses batch statistics, no dropout, cross-entropy over the pixels that are not 255 and half
the auxiliary loss. In float32, rounding flips a few of the millions of ReLUs close to zero. Each
gradient vector is then a percent or two off, PyTorch's own as well (the record says by how much),
and its norm 0.7 % at most. In float64 rounding plays no part.
"""

import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.models.normalization import BatchNorm
from segjax.ops.resize import resize_bilinear
from segjax.pretrained import SOURCES
from tests.fixtures.reference_weights import load_record, training_batch

NAME = "torchvision/deeplabv3_resnet50"


@pytest.fixture(scope="module")
def reference():
    """Returns the record, the converted model and the table of its arrays' sources."""
    record, state = load_record("torchvision_deeplabv3_resnet50_gradients")
    conversion = SOURCES[NAME](state, name=NAME)
    return record, conversion.converted(NAME), conversion.table


def gradients(converted, dtype):
    """Returns the two losses, and the gradients by path."""
    norm = functools.partial(BatchNorm, param_dtype=dtype)  # Flax computes in at most this dtype
    model = converted.model.clone(norm=norm)
    images, labels = training_batch()
    valid = labels != 255

    def without_dropout(call, arguments, options, context):
        is_dropout = isinstance(context.module, nn.Dropout)
        return arguments[0] if is_dropout else call(*arguments, **options)

    def cross_entropy(logits):
        targets = jnp.where(valid, labels, 0).astype(jnp.int32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.mean(losses, where=valid)

    def loss(params, batch_stats, images):
        with nn.intercept_methods(without_dropout):
            outputs, _ = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
        (auxiliary,) = outputs["auxiliary_logits"]
        auxiliary = resize_bilinear(auxiliary, images.shape[1:3], align_corners=False)
        losses = cross_entropy(outputs["logits"]), cross_entropy(auxiliary)
        return losses[0] + 0.5 * losses[1], losses

    with jax.enable_x64(dtype == jnp.float64):
        variables = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), dtype), converted.variables)
        found, losses = jax.jit(jax.grad(loss, has_aux=True))(
            variables["params"], variables["batch_stats"], jnp.asarray(images, dtype)
        )
    found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
    return losses, flax.traverse_util.flatten_dict(found, sep="/")


def compare(reference, dtype):
    """Returns the errors of norms and recorded entries by name, relative to PyTorch's."""
    record, converted, table = reference
    losses, found = gradients(converted, dtype)
    np.testing.assert_allclose(losses, [record["loss_out"], record["loss_aux"]], rtol=1e-5)
    norms, samples = {}, {}
    for path, gradient in found.items():
        source = table[f"params/{path}"]
        if source.axes:
            gradient = gradient.transpose(np.argsort(source.axes))
        flat, expected = gradient.ravel(), record[f"gradient_sample/{source.name}"]
        entries = flat[np.linspace(0, flat.size - 1, len(expected)).astype(np.int64)]
        error = np.linalg.norm(entries - expected)
        samples[source.name] = error / np.linalg.norm(expected)
        norm = record[f"gradient_norm/{source.name}"]
        norms[source.name] = abs(np.linalg.norm(flat) / norm - 1)
    recorded = {key.partition("/")[2] for key in record if key.startswith("gradient_norm/")}
    assert norms.keys() == recorded
    return norms, samples


def worst(errors):
    return max(errors.items(), key=lambda item: item[1])


def test_gradients_are_those_of_pytorch_in_float64(reference):
    with jax.numpy_dtype_promotion("standard"):  # Flax's norm promotes to at least float32
        norms, samples = compare(reference, jnp.float64)
    assert worst(norms)[1] < 1e-5, worst(norms)
    assert worst(samples)[1] < 1e-5, worst(samples)


@pytest.mark.slow
def test_norms_of_gradients_in_float32_are_within_a_percent(reference):
    norms, _ = compare(reference, jnp.float32)
    assert worst(norms)[1] < 0.01, worst(norms)
