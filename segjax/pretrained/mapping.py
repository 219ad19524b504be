"""Fills a model's variables with the arrays of a state dict, by a table.

A table {path: `Source`} has an entry for every array of the model; each converter writes it by a
few rules. Paths are those of the variables, such as "params/backbone/stem/norm/scale".
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

# PyTorch's axis for each of our axes.
OIHW = (2, 3, 1, 0)  # a `Conv2d` [out, in, height, width]; ours is [height, width, in, out]
IOHW = (2, 3, 0, 1)  # a `ConvTranspose2d` [in, out, height, width]; ours is as above
OI = (1, 0)  # a `Linear` [out, in]; ours is [in, out]


@dataclass(frozen=True)
class Source:
    """The source of one of the model's arrays.

    Attributes:
      name: the array's name in the state dict.
      axes: the source's axis for each axis of the model; None if they agree.
      first_input: the kernel's input channel that is the model's first; those before it move to the
        end.
      reverse_inputs: reverse the input channels, so that a kernel for BGR images reads RGB.
      map_size: height and width of the map [channels, height, width] before a fully connected
        layer; the model's maps have the channels last.
      skipped_outputs: number of leading outputs to drop, those of the background.
      background_last: the source's last output is the model's first.
      zero_outputs: number of outputs of zeros that the model has before the source's.
    """

    name: str
    axes: tuple[int, ...] | None = None
    first_input: int = 0
    reverse_inputs: bool = False
    map_size: tuple[int, int] | None = None
    skipped_outputs: int = 0
    background_last: bool = False
    zero_outputs: int = 0

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the source for a shape of the model's array."""
        if self.zero_outputs:
            ours = (*ours[:-1], ours[-1] - self.zero_outputs)
        if self.axes is not None:
            ours = tuple(ours[self.axes.index(axis)] for axis in range(len(self.axes)))
        return (ours[0] + self.skipped_outputs, *ours[1:]) if self.skipped_outputs else ours

    def array(self, source: np.ndarray) -> np.ndarray:
        """Converts the source to the model's layout, in float32."""
        array = np.asarray(source, np.float32)[self.skipped_outputs :]
        if self.background_last:
            array = np.roll(array, 1, axis=0)
        if self.map_size is not None:
            array = array.reshape(len(array), -1, *self.map_size)
            array = array.transpose(0, 2, 3, 1).reshape(len(array), -1)
        if self.axes is not None:
            array = array.transpose(self.axes)
        if self.zero_outputs:
            zeros = np.zeros((*array.shape[:-1], self.zero_outputs), np.float32)
            array = np.concatenate([zeros, array], axis=-1)
        if self.reverse_inputs:
            array = array[..., ::-1, :]
        return np.roll(array, -self.first_input, axis=-2) if self.first_input else array


@dataclass(frozen=True)
class Constant:
    """An array that the source does not have; all its entries are `value`."""

    value: float


Table = dict[str, Source | Constant]


def torch_convolution(path: str, name: str, *, bias: bool = False, first_input: int = 0) -> Table:
    """Returns the entries of a `Convolution` for a `Conv2d`, depthwise or not; see `Source`."""
    kernel = Source(f"{name}.weight", OIHW, first_input=first_input)
    table: Table = {f"params/{path}/kernel": kernel}
    return table | ({f"params/{path}/bias": Source(f"{name}.bias")} if bias else {})


def torch_linear(path: str, name: str, **options) -> Table:
    """Returns the entries of an `nn.Dense` for a `Linear`; the options are those of `Source`."""
    outputs = {key: value for key, value in options.items() if key != "map_size"}
    return {
        f"params/{path}/kernel": Source(f"{name}.weight", OI, **options),
        f"params/{path}/bias": Source(f"{name}.bias", **outputs),
    }


def torch_norm(path: str, name: str) -> Table:
    """Returns the entries of a `BatchNorm` for PyTorch's."""
    return {
        f"params/{path}/scale": Source(f"{name}.weight"),
        f"params/{path}/bias": Source(f"{name}.bias"),
        f"batch_stats/{path}/mean": Source(f"{name}.running_mean"),
        f"batch_stats/{path}/var": Source(f"{name}.running_var"),
    }


def torch_layer(path: str, convolution: str, norm: str) -> Table:
    """Returns the entries of a `ConvolutionNorm` for a convolution and a batch norm."""
    return torch_convolution(f"{path}/convolution", convolution) | torch_norm(f"{path}/norm", norm)


def reading_rgb(table: Table, path: str) -> Table:
    """Returns the table with the BGR kernel at `path` reversed to read RGB."""
    return table | {path: replace(table[path], reverse_inputs=True)}


def classifier(table: Table, outputs: int) -> Table:
    """Returns the entries of a classifier, with a background if it has a single output.

    A single output z is a sigmoid's. It equals the softmax over [0, z]: the model has a second
    output, of zeros, for the background.

    Args:
      table: the entries of the classifier's arrays.
      outputs: number of the source's outputs.
    """
    if outputs != 1:
        return table
    return {path: replace(source, zero_outputs=1) for path, source in table.items()}


def within(path: str, table: Table) -> Table:
    """Returns the table of a module that is at `path` in a larger model."""
    return {
        "/".join((place.partition("/")[0], path, place.partition("/")[2])): source
        for place, source in table.items()
    }


def fill(
    model, table: Table, state_dict: Mapping[str, np.ndarray], *, name: str, ignored: str
) -> dict:
    """Returns the variables of a model with the arrays of a state dict.

    Args:
      model: a Linen module that takes RGB images.
      table: the entry of every array of the model.
      state_dict: the arrays by name.
      name: name of the weights, for the error message.
      ignored: a regular expression for names in the state dict that the model does not need.

    Raises:
      ValueError: arrays are missing, unknown or wrongly shaped; the message lists all of them.
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
    """Returns the shapes of the variables of a model for RGB images, by path."""
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(variables, sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def length_of(state_dict: Mapping[str, np.ndarray], name: str, axis: int, *, otherwise: int) -> int:
    """Returns the length of an array's axis, or `otherwise` if the array or the axis is missing.

    The default lets an incomplete state dict reach `fill`, which lists everything that is missing.
    """
    shape = state_dict[name].shape if name in state_dict else ()
    return shape[axis] if axis < len(shape) else otherwise
