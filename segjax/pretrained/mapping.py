"""Puts the arrays of a state dict in the places of a model's variables, by a table.

A table {path of ours: `Source`} has an entry for every array of the model, and each converter
writes it with few rules. Paths are those of the variables, "params/backbone/stem/norm/scale".
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

# Of a kernel's axes [height, width, in, out], where each is in PyTorch's.
OIHW = (2, 3, 1, 0)
# Of an up-convolution's [height, width, in, out] in a `ConvTranspose2d`, [in, out, height, width].
IOHW = (2, 3, 0, 1)
# Of a fully connected layer's [in, out].
OI = (1, 0)


@dataclass(frozen=True)
class Source:
    """Where an array of ours comes from.

    Attributes:
      name: in the state dict.
      axes: the source's axis for each of ours; None where they are the same.
      first_input: a kernel's input channel that is our first; those before it come last.
      reverse_inputs: of a kernel on BGR images, so that it reads RGB ones.
      map_size: of a fully connected layer behind a map [channels, height, width]: its height and
        width; our maps have the channels last.
      skipped_outputs: that the source has before our first: those of the background.
      background_last: whether the last of the source's outputs is our first.
    """

    name: str
    axes: tuple[int, ...] | None = None
    first_input: int = 0
    reverse_inputs: bool = False
    map_size: tuple[int, int] | None = None
    skipped_outputs: int = 0
    background_last: bool = False

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the source has for one of ours."""
        if self.axes is not None:
            ours = tuple(ours[self.axes.index(axis)] for axis in range(len(self.axes)))
        return (ours[0] + self.skipped_outputs, *ours[1:]) if self.skipped_outputs else ours

    def array(self, source: np.ndarray) -> np.ndarray:
        """Our array, in float32."""
        array = np.asarray(source, np.float32)[self.skipped_outputs :]
        if self.background_last:
            array = np.roll(array, 1, axis=0)
        if self.map_size is not None:
            array = array.reshape(len(array), -1, *self.map_size)
            array = array.transpose(0, 2, 3, 1).reshape(len(array), -1)
        if self.axes is not None:
            array = array.transpose(self.axes)
        if self.reverse_inputs:
            array = array[..., ::-1, :]
        return np.roll(array, -self.first_input, axis=-2) if self.first_input else array


@dataclass(frozen=True)
class Constant:
    """An array of ours that the source does not have: all its entries are `value`."""

    value: float


Table = dict[str, Source | Constant]


def torch_convolution(path: str, name: str, *, bias: bool = False) -> Table:
    """The entries of a `Convolution` of ours for a `Conv2d`; a depthwise one is laid out alike."""
    table: Table = {f"params/{path}/kernel": Source(f"{name}.weight", OIHW)}
    return table | ({f"params/{path}/bias": Source(f"{name}.bias")} if bias else {})


def torch_linear(path: str, name: str, **options) -> Table:
    """The entries of an `nn.Dense` for a `Linear`; the options are those of `Source`."""
    outputs = {key: value for key, value in options.items() if key != "map_size"}
    return {
        f"params/{path}/kernel": Source(f"{name}.weight", OI, **options),
        f"params/{path}/bias": Source(f"{name}.bias", **outputs),
    }


def torch_norm(path: str, name: str) -> Table:
    """The entries of a `BatchNorm` of ours for PyTorch's."""
    return {
        f"params/{path}/scale": Source(f"{name}.weight"),
        f"params/{path}/bias": Source(f"{name}.bias"),
        f"batch_stats/{path}/mean": Source(f"{name}.running_mean"),
        f"batch_stats/{path}/var": Source(f"{name}.running_var"),
    }


def torch_layer(path: str, convolution: str, norm: str) -> Table:
    """The entries of a `ConvolutionNorm` of ours."""
    return torch_convolution(f"{path}/convolution", convolution) | torch_norm(f"{path}/norm", norm)


def reading_rgb(table: Table, path: str) -> Table:
    """The table with the kernel at `path`, which reads BGR images, turned round."""
    return table | {path: replace(table[path], reverse_inputs=True)}


def within(path: str, table: Table) -> Table:
    """The table of a module that is at `path` in another model."""
    return {
        "/".join((place.partition("/")[0], path, place.partition("/")[2])): source
        for place, source in table.items()
    }


def fill(
    model, table: Table, state_dict: Mapping[str, np.ndarray], *, name: str, ignored: str
) -> dict:
    """Returns the variables of a model, its arrays taken from a state dict.

    Args:
      model: a Linen module that takes RGB images.
      table: for every array of the model.
      state_dict: the arrays by name.
      name: of the weights, for the error.
      ignored: a regular expression; names in which it is found need no place in the model.

    Raises:
      ValueError: arrays are missing, unknown or wrongly shaped; it lists all of them.
    """
    shapes = shapes_of(model)
    if shapes.keys() != table.keys():
        raise AssertionError(f"{name}: no rule for {sorted(shapes.keys() ^ table.keys())}")

    sources = {p: source for p, source in table.items() if isinstance(source, Source)}
    expected = {source.name: source.shape(shapes[path]) for path, source in sources.items()}
    problems = {
        "missing": [key for key in expected if key not in state_dict],
        "not of this model": [
            key for key in state_dict if key not in expected and not re.search(ignored, key)
        ],
        "of another shape": [
            f"{key} {list(state_dict[key].shape)}, expected {list(shape)}"
            for key, shape in expected.items()
            if key in state_dict and state_dict[key].shape != shape
        ],
    }
    if any(problems.values()):
        lines = [
            f"{len(entries)} {kind}: {', '.join(entries)}"
            for kind, entries in problems.items()
            if entries
        ]
        raise ValueError("\n  ".join([f"the weights do not fit {name}:", *lines]))
    arrays = {
        path: np.full(shapes[path], source.value, np.float32)
        if isinstance(source, Constant)
        else source.array(state_dict[source.name])
        for path, source in table.items()
    }
    return flax.traverse_util.unflatten_dict(
        {path: jnp.asarray(array) for path, array in arrays.items()}, sep="/"
    )


@functools.lru_cache(maxsize=64)  # tracing a model takes a second or more
def shapes_of(model) -> dict[str, tuple[int, ...]]:
    """The shapes of the variables of a model for RGB images, by path."""
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def length_of(state_dict: Mapping[str, np.ndarray], name: str, axis: int, *, otherwise: int) -> int:
    """The length of an array's axis; `otherwise` where the array or the axis is missing.

    So that a state dict without it comes as far as `fill`, which lists all that it lacks.
    """
    shape = state_dict[name].shape if name in state_dict else ()
    return shape[axis] if axis < len(shape) else otherwise
