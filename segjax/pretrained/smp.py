"""segmentation-models-pytorch's Unet and DeepLabV3Plus,
https://github.com/qubvel-org/segmentation_models.pytorch.

Follows version 0.6 with the models' default arguments. The package does not resize images; nor does
prediction here, which pads the right and the bottom to sides that the encoder divides. The encoders
alone have torchvision's names; see `segjax.pretrained.torchvision`.
"""

from collections.abc import Mapping
from typing import cast

import numpy as np

from segjax.inference.coverings import WholeImage
from segjax.models.backbones.registry import BackboneName
from segjax.models.backbones.resnet import ResNet
from segjax.models.deeplab_v3plus import DeepLabV3Plus
from segjax.models.encoder_unet import EncoderUNet
from segjax.pretrained.converted import Conversion, class_names
from segjax.pretrained.mapping import (
    Table,
    classifier,
    length_of,
    torch_convolution,
    torch_layer,
    torch_norm,
    within,
)
from segjax.pretrained.preprocess import IMAGENET
from segjax.pretrained.torchvision import COUNTERS, RESNETS, mobilenet_v2_table, resnet_table
from segjax.tasks.semantic import SemanticTask

HEAD = "segmentation_head.0"


def convert_unet(
    state_dict: Mapping[str, np.ndarray], *, name: str, classes: tuple[str, ...] | None = None
) -> Conversion:
    """Converts a `Unet` with a ResNet or MobileNetV2 encoder and five decoder blocks of any widths.

    Args:
      classes: names of the classes; VOC's by default if there are 21. A head with one output has
        two classes, of which the first is the background.
    """
    backbone = cast(BackboneName, name.removeprefix("smp/unet_"))
    outputs = length_of(state_dict, f"{HEAD}.weight", 0, otherwise=1)
    classes = class_names(outputs, classes)
    blocks = [f"decoder.blocks.{i}" for i in range(5)]
    a, b, c, d, e = (
        length_of(state_dict, f"{block}.conv1.0.weight", 0, otherwise=256 >> i)
        for i, block in enumerate(blocks)
    )
    is_resnet = backbone in RESNETS
    model = EncoderUNet(
        len(classes),
        backbone=backbone,
        top_features=None if is_resnet else 1280,
        decoder_features=(a, b, c, d, e),
    )
    table = _resnet(RESNETS[backbone]()) if is_resnet else _mobilenet_v2("top")
    for i, block in enumerate(blocks, 1):
        for conv in ("conv1", "conv2"):
            table |= torch_layer(
                f"decoder_block{i}/{conv}", f"{block}.{conv}.0", f"{block}.{conv}.1"
            )
    table |= classifier(torch_convolution("logits", HEAD, bias=True), outputs)
    return _segmenter(model, table, state_dict, classes=classes, multiple=32)


def convert_deeplabv3plus(
    state_dict: Mapping[str, np.ndarray],
    *,
    name: str,
    output_stride: int = 16,
    atrous_rates: tuple[int, int, int] = (12, 24, 36),
    classes: tuple[str, ...] | None = None,
) -> Conversion:
    """Converts a `DeepLabV3Plus` with a ResNet or MobileNetV2 encoder.

    Args:
      output_stride, atrous_rates: `encoder_output_stride` and `decoder_atrous_rates` of the
        trained model, which its state dict does not hold. Unlike the paper, the package does not
        halve the rates at output stride 16. Models trained at 8 are refused: there the package
        gives all blocks of stage 3 the larger rate, and our backbones all but the first.
      classes: names of the classes; VOC's by default if there are 21. A head with one output has
        two classes, of which the first is the background.

    Raises:
      ValueError: `output_stride` is not 16.
    """
    if output_stride != 16:
        raise ValueError(
            f"output_stride={output_stride}: expected 16; at 8, stage 3 of the package's encoders "
            "is dilated otherwise than ours, and the logits would differ"
        )
    encoder = name.removeprefix("smp/deeplabv3plus_")
    resnet = RESNETS[encoder]() if encoder in RESNETS else None
    outputs = length_of(state_dict, f"{HEAD}.weight", 0, otherwise=1)
    classes = class_names(outputs, classes)
    features = length_of(state_dict, f"{HEAD}.weight", 1, otherwise=256)
    model = DeepLabV3Plus(
        len(classes),
        backbone="mobilenet_v2_1280" if resnet is None else cast(BackboneName, encoder),
        output_stride=output_stride,
        # A stage without its stride has the larger rate in all blocks, the first included.
        multi_grid=(1,) * (4 if resnet is None else resnet.stage_sizes[3]),
        atrous_rates=atrous_rates,
        aspp_features=features,
        head_features=features,
        decoder_features=features,
        decoder_convolutions=1,
        normalize_depthwise=False,
        dropout_rate=0.5,
    )
    aspp = "decoder.aspp.0"
    table = _mobilenet_v2("backbone/top") if resnet is None else _resnet(resnet)
    table |= torch_layer("aspp/pointwise", f"{aspp}.convs.0.0", f"{aspp}.convs.0.1")
    for i in (1, 2, 3):
        table |= _separable(f"aspp/atrous{i}", f"{aspp}.convs.{i}.0", f"{aspp}.convs.{i}.1")
    table |= torch_layer("aspp/image_pooling", f"{aspp}.convs.4.1", f"{aspp}.convs.4.2")
    table |= torch_layer("aspp/projection", f"{aspp}.project.0", f"{aspp}.project.1")
    table |= _separable("head", "decoder.aspp.1", "decoder.aspp.2")
    table |= torch_layer("decoder/low_level", "decoder.block1.0", "decoder.block1.1")
    table |= _separable("decoder/conv1", "decoder.block2.0", "decoder.block2.1")
    table |= classifier(torch_convolution("logits", HEAD, bias=True), outputs)
    return _segmenter(model, table, state_dict, classes=classes, multiple=output_stride)


def _resnet(resnet: ResNet) -> Table:
    return within("backbone", resnet_table(resnet, prefix="encoder."))


def _mobilenet_v2(top: str) -> Table:
    """Returns the entries of a MobileNetV2 whose last 1×1 convolution has the path `top`."""
    table = within("backbone", mobilenet_v2_table(prefix="encoder."))
    return table | torch_layer(top, "encoder.features.18.0", "encoder.features.18.1")


def _separable(path: str, convolutions: str, norm: str) -> Table:
    """Returns the entries of a `SeparableConvolution` without a norm between its parts."""
    return (
        torch_convolution(f"{path}/depthwise", f"{convolutions}.0")
        | torch_convolution(f"{path}/pointwise/convolution", f"{convolutions}.1")
        | torch_norm(f"{path}/pointwise/norm", norm)
    )


def _segmenter(model, table, state_dict, *, classes, multiple) -> Conversion:
    task = SemanticTask(
        model=model,
        classes=classes,
        channels=3,
        covering=WholeImage(size=(multiple, multiple), multiple=multiple),
        preprocess=IMAGENET,
    )
    return Conversion(model, table, state_dict, COUNTERS, IMAGENET, task)
