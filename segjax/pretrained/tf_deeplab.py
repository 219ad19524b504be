"""TensorFlow DeepLab's checkpoints,
https://github.com/tensorflow/models/tree/master/research/deeplab.

Follows its code (model.py, core/xception.py, slim's mobilenet_v2.py) and, for MobileNetV2, a
trained network. `read_weights` reads the checkpoints in its archives (model.ckpt-….index). Batch
norms may be present ("BatchNorm/gamma" ...) or folded into weights and "biases", as in inference
graphs, whose constants a .npz may hold. A folded norm becomes one whose statistics change nothing;
it must stay frozen in training.
"""

import functools
from collections.abc import Mapping

import numpy as np

from segjax.inference.coverings import WholeImage
from segjax.inference.resizing import LongSide
from segjax.models.backbones.mobilenet_v2 import MobileNetV2
from segjax.models.backbones.xception import Xception, xception65
from segjax.models.deeplab_v3 import DeepLabV3
from segjax.models.deeplab_v3plus import DeepLabV3Plus
from segjax.models.normalization import BatchNorm
from segjax.pretrained.converted import Conversion, class_names
from segjax.pretrained.mapping import Constant, Source, Table, classifier, length_of, within
from segjax.pretrained.preprocess import MINUS_ONE_TO_ONE
from segjax.tasks.semantic import SemanticTask

Arrays = Mapping[str, np.ndarray]

# Norms of the backbones (core/feature_extractor.py) and of the heads (model.py).
BACKBONE_EPSILON, HEAD_EPSILON, MOMENTUM = 1e-3, 1e-5, 0.9997
backbone_norm = functools.partial(BatchNorm, epsilon=BACKBONE_EPSILON, momentum=MOMENTUM)
head_norm = functools.partial(BatchNorm, epsilon=HEAD_EPSILON, momentum=MOMENTUM)

# Ignored: variables of the training, and the backbones' ImageNet classifiers.
OTHERS = (
    r"^global_step$|/(Momentum|Adam|Adam_1|ExponentialMovingAverage)$"
    r"|^MobilenetV2/(Conv_1|Logits|Predictions)/|^xception_\d+/logits/"
)


def convert_deeplabv3_mobilenetv2(
    state_dict: Arrays,
    *,
    name: str,
    output_stride: int = 8,
    input_side: int = 513,
    classes: tuple[str, ...] | None = None,
) -> Conversion:
    """Converts DeepLab v3 on MobileNetV2 of any width, with image pooling, without atrous branches.

    Prediction resizes the longer side to `input_side` pixels and pads to a square with the mean.

    Args:
      output_stride: 8 or 16; the weights fit both.
      input_side: a side of the form 16k + 1; the side of the training crops is best.
      classes: names of the classes; VOC's by default if there are 21. A head with one output has
        two classes, of which the first is the background.
    """
    outputs = length_of(state_dict, "logits/semantic/weights", 3, otherwise=21)
    classes = class_names(outputs, classes)
    backbone = _mobilenet_v2(state_dict)
    model = DeepLabV3(
        len(classes),
        backbone=backbone,
        output_stride=output_stride,
        multi_grid=None,
        atrous_rates=(),
        aspp_features=length_of(state_dict, "aspp0/weights", 3, otherwise=256),
        norm=head_norm,
    )
    table = within("backbone", mobilenet_v2_table(state_dict, backbone))
    table |= _aspp_table(state_dict, rates=0, features=model.aspp_features, outputs=outputs)
    return _segmenter(model, table, state_dict, input_side=input_side, classes=classes)


def convert_deeplabv3plus_xception65(
    state_dict: Arrays,
    *,
    name: str,
    output_stride: int = 16,
    input_side: int = 513,
    classes: tuple[str, ...] | None = None,
) -> Conversion:
    """Converts DeepLab v3+ on Xception-65, with ASPP and decoder.

    Prediction resizes and pads as in `convert_deeplabv3_mobilenetv2`.

    Args:
      output_stride: 8 or 16; the atrous rates follow it.
      input_side: a side of the form 16k + 1; the side of the training crops is best.
      classes: names of the classes; VOC's by default if there are 21. A head with one output has
        two classes, of which the first is the background.
    """
    outputs = length_of(state_dict, "logits/semantic/weights", 3, otherwise=21)
    classes = class_names(outputs, classes)
    backbone = xception65(norm=backbone_norm)
    model = DeepLabV3Plus(
        len(classes),
        backbone=backbone,
        output_stride=output_stride,
        norm=head_norm,
    )
    table = within("backbone", xception_table(state_dict, backbone))
    table |= _aspp_table(state_dict, rates=3, features=model.aspp_features, outputs=outputs)
    layer = functools.partial(_layer, state_dict, epsilon=HEAD_EPSILON)
    separable = functools.partial(_separable, state_dict, epsilon=HEAD_EPSILON)
    table |= layer("decoder/low_level", "decoder/feature_projection0")
    for i in range(model.decoder_convolutions):
        table |= separable(f"decoder/conv{i + 1}", f"decoder/decoder_conv{i}")
    return _segmenter(model, table, state_dict, input_side=input_side, classes=classes)


def convert_mobilenet_v2(state_dict: Arrays, *, name: str) -> Conversion:
    """Converts MobileNetV2 of any width to a backbone (epsilon 1e-3), without its classifier."""
    backbone = _mobilenet_v2(state_dict)
    table = mobilenet_v2_table(state_dict, backbone)
    return Conversion(backbone, table, state_dict, OTHERS, MINUS_ONE_TO_ONE)


def convert_xception65(state_dict: Arrays, *, name: str) -> Conversion:
    """Converts Xception-65 to a backbone (epsilon 1e-3), without its classifier."""
    backbone = xception65(norm=backbone_norm)
    table = xception_table(state_dict, backbone)
    return Conversion(backbone, table, state_dict, OTHERS, MINUS_ONE_TO_ONE)


def mobilenet_v2_table(state_dict: Arrays, backbone: MobileNetV2) -> Table:
    """Returns the entries of a `MobileNetV2`."""
    layer = functools.partial(_layer, state_dict, epsilon=BACKBONE_EPSILON)
    table = layer("stem", "MobilenetV2/Conv")
    expansions = [expansion for expansion, _, units, _ in backbone.stages for _ in range(units)]
    for i, expansion in enumerate(expansions):
        ours, theirs = f"expanded_conv_{i}", f"MobilenetV2/expanded_conv_{i}".removesuffix("_0")
        if expansion > 1:
            table |= layer(f"{ours}/expand", f"{theirs}/expand")
        table |= layer(f"{ours}/depthwise", f"{theirs}/depthwise", depthwise=True)
        table |= layer(f"{ours}/project", f"{theirs}/project")
    return table


def xception_table(state_dict: Arrays, backbone: Xception) -> Table:
    """Returns the entries of an `Xception`."""
    layer = functools.partial(_layer, state_dict, epsilon=BACKBONE_EPSILON)
    separable = functools.partial(_separable, state_dict, epsilon=BACKBONE_EPSILON)
    top = "xception_65"
    table = layer("stem1", f"{top}/entry_flow/conv1_1")
    table |= layer("stem2", f"{top}/entry_flow/conv1_2")
    entries = len(backbone.entry_features)
    blocks = {f"entry_block{i}": f"entry_flow/block{i}/unit_1" for i in range(1, entries + 1)}
    blocks |= {
        f"middle_block{i}": f"middle_flow/block1/unit_{i}"
        for i in range(1, backbone.middle_blocks + 1)
    }
    blocks |= {f"exit_block{i}": f"exit_flow/block{i}/unit_1" for i in (1, 2)}
    for ours, theirs in blocks.items():
        module = f"{top}/{theirs}/xception_module"
        for i in (1, 2, 3):
            table |= separable(f"{ours}/separable{i}", f"{module}/separable_conv{i}")
        if ours.startswith("entry") or ours == "exit_block1":
            table |= layer(f"{ours}/shortcut", f"{module}/shortcut")
    return table


def _mobilenet_v2(state_dict: Arrays) -> MobileNetV2:
    def channels(unit: int, otherwise: int) -> int:
        name = f"MobilenetV2/expanded_conv_{unit}/project/weights"
        return length_of(state_dict, name, 3, otherwise=otherwise)

    # 320 channels stay a multiple of 8 at every width in use, and so give the width. 24 do not (12
    # at half width), and so tell whether channels were rounded to multiples of 8.
    width = channels(16, 320) / 320
    divisor = 1 if channels(1, 24) == round(24 * width) else 8
    return MobileNetV2(width_multiplier=width, divisor=divisor, norm=backbone_norm)


def _aspp_table(state_dict: Arrays, *, rates: int, features: int, outputs: int) -> Table:
    """Returns the entries of ASPP and the classifier, the same for all models."""
    layer = functools.partial(_layer, state_dict, epsilon=HEAD_EPSILON)
    table = layer("aspp/image_pooling", "image_pooling") | layer("aspp/pointwise", "aspp0")
    for i in range(1, rates + 1):
        table |= _separable(state_dict, f"aspp/atrous{i}", f"aspp{i}", epsilon=HEAD_EPSILON)
    # Image pooling comes first in TensorFlow's concatenation, and last in ours.
    table |= layer("aspp/projection", "concat_projection", first_input=features)
    logits: Table = {
        "params/logits/kernel": Source("logits/semantic/weights"),
        "params/logits/bias": Source("logits/semantic/biases"),
    }
    return table | classifier(logits, outputs)


def _layer(
    state_dict: Arrays,
    path: str,
    name: str,
    *,
    epsilon: float,
    depthwise: bool = False,
    first_input: int = 0,
) -> Table:
    """Returns the entries of a `ConvolutionNorm`."""
    kernel = (
        Source(f"{name}/depthwise_weights", axes=(0, 1, 3, 2))
        if depthwise
        else Source(f"{name}/weights", first_input=first_input)
    )
    table: Table = {f"params/{path}/convolution/kernel": kernel}
    return table | _norm(state_dict, f"{path}/norm", name, epsilon)


def _separable(state_dict: Arrays, path: str, name: str, *, epsilon: float) -> Table:
    """Returns the entries of a `SeparableConvolution`."""
    depthwise, pointwise = f"{name}_depthwise", f"{name}_pointwise"
    table: Table = {
        f"params/{path}/depthwise/kernel": Source(
            f"{depthwise}/depthwise_weights", axes=(0, 1, 3, 2)
        )
    }
    table |= _norm(state_dict, f"{path}/depthwise_norm", depthwise, epsilon)
    return table | _layer(state_dict, f"{path}/pointwise", pointwise, epsilon=epsilon)


def _norm(state_dict: Arrays, path: str, name: str, epsilon: float) -> Table:
    if f"{name}/biases" in state_dict:
        return {
            f"params/{path}/scale": Constant(1.0),
            f"params/{path}/bias": Source(f"{name}/biases"),
            f"batch_stats/{path}/mean": Constant(0.0),
            f"batch_stats/{path}/var": Constant(1.0 - epsilon),
        }
    return {
        f"params/{path}/scale": Source(f"{name}/BatchNorm/gamma"),
        f"params/{path}/bias": Source(f"{name}/BatchNorm/beta"),
        f"batch_stats/{path}/mean": Source(f"{name}/BatchNorm/moving_mean"),
        f"batch_stats/{path}/var": Source(f"{name}/BatchNorm/moving_variance"),
    }


def _segmenter(model, table, state_dict, *, input_side, classes) -> Conversion:
    task = SemanticTask(
        model=model,
        classes=classes,
        channels=3,
        covering=WholeImage(size=(input_side, input_side), multiple=16),
        preprocess=MINUS_ONE_TO_ONE,
        input_size=LongSide(input_side),
    )
    return Conversion(
        model, table, state_dict, OTHERS, MINUS_ONE_TO_ONE, task, either_way=("output_stride",)
    )
