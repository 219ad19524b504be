"""ONNX files by jax2onnx, for ONNX Runtime and other programs without JAX.

jax2onnx traces with one size of images and batches. Open sizes are for StableHLO.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from segjax.export.facts import versions_of
from segjax.export.model import ImageFunction
from segjax.export.portable import portable
from segjax.files.atomic import write_bytes

PLATFORMS = ("ONNX Runtime",)
OPSET = 23
_PACKAGES = ("jax2onnx", "onnx", "onnxruntime")
_TESTED = "jax2onnx 0.17.1 with jax 0.10.2 and 0.12.0.1"


def check_packages() -> dict[str, str]:
    """Returns the versions of the packages that write ONNX files.

    Raises:
      ValueError: one of them cannot be imported; the message says what to install.
    """
    try:
        for name in _PACKAGES:
            import_module(name)
        return versions_of(*_PACKAGES)
    # A version that does not fit this jax raises AttributeError and more.
    except Exception as error:
        raise ValueError(
            f"ONNX files need the packages {', '.join(_PACKAGES)} ({_reason(error)}): "
            f"pip install 'segjax[onnx]' in an environment of its own (tested: {_TESTED}), or "
            "export to a name that ends in .stablehlo"
        ) from error


def _reason(error: Exception) -> str:
    """Returns the beginning of an error's message, as one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def to_onnx(function: ImageFunction, *, batch: int) -> Any:
    """Converts a function of images of one size to an `onnx.ModelProto`.

    Args:
      function: the function; its size is not open.
      batch: the number of images in a batch.

    Raises:
      ValueError: `check_packages` fails, or jax2onnx cannot convert the model.
    """
    if function.size is None:
        raise ValueError("an ONNX file takes images of one size: give --size HEIGHT WIDTH")
    found = check_packages()
    images = jax.ShapeDtypeStruct((batch, *function.size, function.channels), function.dtype)
    program = portable(function.call, images)
    ir, passes = import_module("onnx_ir"), import_module("onnx_ir.passes.common")
    with _quiet("jax2onnx", "onnx_ir"):
        try:
            model: Any = import_module("jax2onnx").to_onnx(
                jaxpr_as_fun(program),
                inputs=[images],
                model_name="segjax",
                opset=OPSET,
                return_mode="ir",
                input_names=["images"],
                output_names=sorted(function.outputs),  # JAX's order of a dict
            )
        # jax2onnx raises errors of many kinds for an operator that it does not convert.
        except Exception as error:
            raise ValueError(
                f"jax2onnx {found['jax2onnx']} under jax {jax.__version__} cannot convert this "
                f"model ({_reason(error)}); tested: {_TESTED}; or export to a name that ends in "
                ".stablehlo"
            ) from error
        passes.RemoveUnusedNodesPass()(model)
        proto = ir.to_proto(model)
    for graph in graphs(proto.graph):
        _transpose_constants(graph)
        _name_activations(graph)
    return cleaned(proto)


def write_onnx(proto: Any, path: Path, facts: dict[str, Any]) -> Path:
    """Writes an ONNX file with the facts as its metadata: text, or JSON for all but text."""
    proto.producer_name = "segjax"
    del proto.metadata_props[:]
    for name, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value)
        proto.metadata_props.add(key=name, value=text)
    return write_bytes(path, proto.SerializeToString())


def graphs(graph: Any) -> Iterator[Any]:
    """Yields a graph, and the graphs of its loops and branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from graphs(inner)


def _transpose_constants(graph: Any) -> None:
    """Stores constants as they are needed, so that weights are inputs of their products."""
    onnx = import_module("onnx")
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "Transpose" and node.input[0] in constants:
            array = onnx.numpy_helper.to_array(constants[node.input[0]])
            turned = np.ascontiguousarray(array.transpose(node.attribute[0].ints))
            graph.initializer.append(onnx.numpy_helper.from_array(turned, node.output[0]))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _name_activations(graph: Any) -> None:
    """Replaces max(x, 0) by Relu and min(Relu(x), limit) by Clip.

    ONNX Runtime merges these with the product before them. Otherwise, the quantisation would round
    the arrays in between.
    """
    onnx = import_module("onnx")
    scalars = {
        tensor.name: float(onnx.numpy_helper.to_array(tensor))
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and not tensor.dims
    }
    rectified: dict[str, tuple[str, str]] = {}  # the result of each Relu: its operand and the zero
    for node in graph.node:
        limits = [name for name in node.input if name in scalars]
        if node.op_type not in ("Max", "Min") or len(node.input) != 2 or len(limits) != 1:
            continue
        (operand,) = (name for name in node.input if name not in scalars)
        if node.op_type == "Max" and scalars[limits[0]] == 0:
            node.op_type = "Relu"
            node.input[:] = [operand]
            rectified[node.output[0]] = operand, limits[0]
        elif node.op_type == "Min" and operand in rectified:
            node.op_type = "Clip"
            node.input[:] = [*rectified[operand], limits[0]]
    used = {name for each in graphs(graph) for node in each.node for name in node.input}
    used |= {output.name for output in graph.output}
    kept = [node for node in graph.node if node.op_type != "Relu" or node.output[0] in used]
    del graph.node[:]
    graph.node.extend(kept)


def cleaned(proto: Any) -> Any:
    """Removes constants that nothing uses and copies of the others, and shapes of other arrays.

    ONNX Runtime would warn of unused constants whenever it loads the file, and of the shapes, some
    of which jax2onnx gets wrong.
    """
    found = [*graphs(proto.graph)]
    for graph in found:
        _share_constants(graph)
    used = {name for graph in found for node in graph.node for name in node.input}
    used |= {output.name for graph in found for output in graph.output}
    for graph in found:
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        del graph.value_info[:]
    return proto


def _share_constants(graph: Any) -> None:
    """Reads equal constants from one of them. Each window of an image has its own after merging."""
    first: dict[tuple, str] = {}
    names: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.raw_data:
            content = tensor.data_type, tuple(tensor.dims), tensor.raw_data
            names[tensor.name] = first.setdefault(content, tensor.name)
    for each in graphs(graph):
        for node in each.node:
            node.input[:] = [names.get(name, name) for name in node.input]


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silences the warnings of loggers."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
