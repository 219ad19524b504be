"""What a converter expects of a state dict, found by letting it ask."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from segjax.pretrained import SOURCES
from segjax.pretrained.mapping import Source, shapes_of


class _Asked(Exception):
    pass


def source_shapes(monkeypatch, name, hints=None, **options):
    """Returns {name in the source: shape} for a name of `SOURCES`.

    Args:
      hints: {name: shape} of arrays from whose shapes the converter reads sizes.
    """
    converter = SOURCES[name]

    def ask(model, table, *_, **__):
        shapes = shapes_of(model)
        assert shapes.keys() == table.keys(), name
        raise _Asked(
            {s.name: s.shape(shapes[path]) for path, s in table.items() if isinstance(s, Source)}
        )

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[converter.__module__], "fill", ask)
        try:
            converter(zeros(hints or {}), name=name, **options)
        except _Asked as asked:
            return asked.args[0]


def zeros(shapes):
    """Returns {name: zeros} that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def forward(model, variables, images, **options):
    """Applies a model as one compiled function."""
    return jax.jit(lambda v, x: model.apply(v, x, **options))(variables, jnp.asarray(images))
