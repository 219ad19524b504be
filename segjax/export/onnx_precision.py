"""Smaller ONNX files: weights in bfloat16, or products in 8-bit integers.

Both concern convolutions and products with a matrix of weights. Matrices that interpolate have no
negative entry, by which they are known, and keep their digits.
"""

import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from segjax.export.onnx_file import cleaned, graphs

Precision = Literal["float32", "bfloat16", "int8"]
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_ACTIVATIONS = ("Relu", "Clip")  # merged with the product before them


def fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crops the centre of an image [height, width, channels] or mirrors its edges to fill a size.

    The pixels stay as they are, and so does the size of objects.
    """
    change = [wanted - side for wanted, side in zip(size, image.shape[:2], strict=True)]
    padding = [(max(n, 0) // 2, max(n, 0) - max(n, 0) // 2) for n in change]
    image = np.pad(image, [*padding, (0, 0)], mode="symmetric")
    top, left = ((side - wanted) // 2 for side, wanted in zip(image.shape[:2], size, strict=True))
    return image[top : top + size[0], left : left + size[1]]


def with_bfloat16(proto: Any) -> Any:
    """Stores the weights of a model in bfloat16; the arithmetic stays float32.

    ONNX Runtime has no convolution in bfloat16 on CPUs. It casts the weights when it loads the
    file, so the weights take half the bytes and the speed is the same.
    """
    onnx = import_module("onnx")
    proto = _simplified(proto)
    for graph in graphs(proto.graph):
        weights = _weights(graph)
        casts = []
        for tensor in graph.initializer:
            if tensor.name not in weights:
                continue
            stored = f"{tensor.name}_bfloat16"
            casts.append(
                onnx.helper.make_node(
                    "Cast",
                    [stored],
                    [tensor.name],
                    name=f"{stored}_cast",
                    to=onnx.TensorProto.FLOAT,
                )
            )
            values = onnx.numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, stored))
        nodes = [*casts, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
    return proto


def with_int8(proto: Any, images: Sequence[np.ndarray]) -> Any:
    """Quantises the products of a model to 8-bit integers by ONNX Runtime's static quantisation.

    Weights have a scale for each output channel, activations one for each array: the range that
    they take for the given images. Products inside loops and branches stay float32.

    Args:
      proto: the model.
      images: batches of images [batch, height, width, channels] of the model's size and type.

    Raises:
      ValueError: the model has its products in loops only.
    """
    onnx = import_module("onnx")
    quantization = import_module("onnxruntime.quantization")
    proto = _simplified(proto)
    weights = _weights(proto.graph)
    products = [
        node
        for node in proto.graph.node
        if node.op_type in _PRODUCTS and not weights.isdisjoint(node.input)
    ]
    if not products:
        raise ValueError(
            "int8: this model predicts the many windows of such images in a loop, and ONNX Runtime "
            "quantises no loops; give a --size with at most 32 windows, or --precision bfloat16"
        )
    results = {name for node in products for name in node.output}
    merged = [
        node
        for node in proto.graph.node
        if node.op_type in _ACTIVATIONS and node.input[0] in results
    ]
    quantization.quant_utils.add_pre_process_metadata(proto)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.batches: Iterator[np.ndarray] = iter(images)

        def get_next(self):  # None ends the calibration
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    with tempfile.TemporaryDirectory() as folder:
        quantised = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            proto,
            quantised,
            Reader(),
            op_types_to_quantize=[*_PRODUCTS, *_ACTIVATIONS],
            nodes_to_quantize=[node.name for node in (*products, *merged)],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return cleaned(onnx.load(quantised))


def _simplified(proto: Any) -> Any:
    """Merges products with the scales and biases after them, which then share their weights."""
    onnx, runtime = import_module("onnx"), import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        # The first pass moves transpositions, the second merges what they parted.
        for number in range(2):
            options.optimized_model_filepath = str(Path(folder) / f"{number}.onnx")
            runtime.InferenceSession(
                proto.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["ConstantFolding"],  # it would store arrays of zeros
            )
            proto = onnx.load(options.optimized_model_filepath)
    for graph in graphs(proto.graph):
        zeros = {
            tensor.name
            for tensor in graph.initializer
            if not tensor.dims and not onnx.numpy_helper.to_array(tensor)
        }
        for number, node in enumerate(graph.node):
            node.name = node.name or f"{graph.name}_{node.op_type}_{number}"
            if node.op_type == "Gemm" and node.input[2:] and node.input[2] in zeros:
                del node.input[2]  # the quantisation fails on a bias without an axis
    return cleaned(proto)


def _weights(graph: Any) -> set[str]:
    """Returns the names of a graph's initializers that are weights of products."""
    onnx = import_module("onnx")
    used = {name for node in graph.node if node.op_type in _PRODUCTS for name in node.input[1:2]}
    return {
        tensor.name
        for tensor in graph.initializer
        if tensor.name in used
        and tensor.data_type == onnx.TensorProto.FLOAT
        and onnx.numpy_helper.to_array(tensor).min() < 0
    }
