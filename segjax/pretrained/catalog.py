"""The names of the weights that can be converted, and their converters."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from segjax.messages.hints import did_you_mean
from segjax.pretrained import (
    detectron2,
    detectron2_detection,
    keras,
    mmdet,
    mmseg,
    smp,
    tf_deeplab,
    torchvision,
    torchvision_detection,
)
from segjax.pretrained.converted import Conversion, Pretrained
from segjax.pretrained.files import read_weights
from segjax.pretrained.mapping import Source
from segjax.pretrained.state_dict import without_prefixes

SOURCES: dict[str, Callable[..., Conversion]] = {
    "torchvision/deeplabv3_resnet50": torchvision.convert_deeplabv3,
    "torchvision/deeplabv3_resnet101": torchvision.convert_deeplabv3,
    "torchvision/maskrcnn_resnet50_fpn": torchvision_detection.convert_maskrcnn,
    "torchvision/maskrcnn_resnet50_fpn_v2": torchvision_detection.convert_maskrcnn,
    "torchvision/resnet18": torchvision.convert_resnet,
    "torchvision/resnet34": torchvision.convert_resnet,
    "torchvision/resnet50": torchvision.convert_resnet,
    "torchvision/resnet101": torchvision.convert_resnet,
    "torchvision/mobilenet_v2": torchvision.convert_mobilenet_v2,
    "torchvision/vgg16": torchvision.convert_vgg16,
    "smp/resnet18": torchvision.convert_resnet,
    "smp/resnet34": torchvision.convert_resnet,
    "smp/resnet50": torchvision.convert_resnet,
    "smp/resnet101": torchvision.convert_resnet,
    "smp/mobilenet_v2": torchvision.convert_mobilenet_v2,
    "smp/unet_resnet18": smp.convert_unet,
    "smp/unet_resnet34": smp.convert_unet,
    "smp/unet_resnet50": smp.convert_unet,
    "smp/unet_resnet101": smp.convert_unet,
    "smp/unet_mobilenet_v2": smp.convert_unet,
    "smp/deeplabv3plus_resnet18": smp.convert_deeplabv3plus,
    "smp/deeplabv3plus_resnet34": smp.convert_deeplabv3plus,
    "smp/deeplabv3plus_resnet50": smp.convert_deeplabv3plus,
    "smp/deeplabv3plus_resnet101": smp.convert_deeplabv3plus,
    "smp/deeplabv3plus_mobilenet_v2": smp.convert_deeplabv3plus,
    "tf/deeplabv3_mobilenetv2": tf_deeplab.convert_deeplabv3_mobilenetv2,
    "tf/deeplabv3plus_xception65": tf_deeplab.convert_deeplabv3plus_xception65,
    "tf/mobilenet_v2": tf_deeplab.convert_mobilenet_v2,
    "tf/xception65": tf_deeplab.convert_xception65,
    "detectron2/mask_rcnn_R_50_FPN": detectron2_detection.convert_mask_rcnn,
    "detectron2/mask_rcnn_R_101_FPN": detectron2_detection.convert_mask_rcnn,
    "detectron2/mask_rcnn_X_101_32x8d_FPN": detectron2_detection.convert_mask_rcnn,
    "detectron2/mask_rcnn_R_50_C4": detectron2_detection.convert_mask_rcnn,
    "detectron2/mask_rcnn_R_101_C4": detectron2_detection.convert_mask_rcnn,
    "detectron2/mask_rcnn_R_50_DC5": detectron2_detection.convert_mask_rcnn,
    "detectron2/mask_rcnn_R_101_DC5": detectron2_detection.convert_mask_rcnn,
    "detectron2/resnet50": detectron2.convert_resnet,
    "detectron2/resnet101": detectron2.convert_resnet,
    "detectron2/resnext101": detectron2.convert_resnet,
    "mmseg/deeplabv3_r50-d8": mmseg.convert_deeplab,
    "mmseg/deeplabv3_r101-d8": mmseg.convert_deeplab,
    "mmseg/deeplabv3_r50-d8_769x769": mmseg.convert_deeplab,
    "mmseg/deeplabv3_r101-d8_769x769": mmseg.convert_deeplab,
    "mmseg/deeplabv3plus_r50-d8": mmseg.convert_deeplab,
    "mmseg/deeplabv3plus_r101-d8": mmseg.convert_deeplab,
    "mmseg/deeplabv3plus_r50-d8_769x769": mmseg.convert_deeplab,
    "mmseg/deeplabv3plus_r101-d8_769x769": mmseg.convert_deeplab,
    "mmdet/mask-rcnn_r50_fpn": mmdet.convert_mask_rcnn,
    "mmdet/mask-rcnn_r101_fpn": mmdet.convert_mask_rcnn,
    "mmdet/mask-rcnn_r50-caffe_fpn": mmdet.convert_mask_rcnn,
    "mmdet/mask-rcnn_r101-caffe_fpn": mmdet.convert_mask_rcnn,
    "mmdet/mask-rcnn_x101-32x8d_fpn": mmdet.convert_mask_rcnn,
    "keras/vgg16": keras.convert_vgg16,
}


def convert(name: str, state_dict: Mapping[str, np.ndarray], **options) -> Pretrained:
    """Makes a segjax model with the weights of another package.

    Args:
      name: source and model, one of `SOURCES`.
      state_dict: arrays by the package's names, in its layout and of any float type. Prefixes that
        all names have, such as "model." or "_orig_mod.", are removed if the names fit better
        without; see `segjax.pretrained.state_dict`. The arrays decide
        the number of classes and channels, and whether the model has an auxiliary head. A semantic
        head with a single output, a sigmoid, becomes one of two classes with the same
        probabilities: background and foreground, unless `classes` names them.
      options: options of the converter, such as `classes`, or `output_stride` for TensorFlow's
        models; see `segjax.pretrained.{torchvision,torchvision_detection,smp,tf_deeplab,detectron2,
        detectron2_detection,mmseg,mmdet,keras}`.

    Raises:
      ValueError: there is no such name, or arrays are missing, unknown or wrongly shaped; the
        message lists all of them.
      TypeError: the converter has no such option.
    """
    check_name(name)
    best = max(without_prefixes(state_dict), key=lambda arrays: _count_known(name, arrays))
    return SOURCES[name](best, name=name, **options).converted(name)


def _count_known(name: str, state_dict: Mapping[str, np.ndarray]) -> int:
    """The number of arrays that the weights of this name have."""
    conversion = SOURCES[name](state_dict, name=name)
    sources = (source for source in conversion.table.values() if isinstance(source, Source))
    return sum(source.name in conversion.state_dict for source in sources)


def conversion_of(name: str) -> Conversion:
    """Returns the conversion of weights by name alone, with the sizes that they usually have.

    Raises:
      ValueError: there is no such name.
    """
    check_name(name)
    return SOURCES[name]({}, name=name)


def load(name: str, path: str | Path, **options) -> Pretrained:
    """Converts the weights in a file; see `convert` and `segjax.pretrained.read_weights`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file cannot be read, or as in `convert`; the message names the file.
      TypeError: the converter has no such option.
    """
    check_name(name)
    state_dict = read_weights(path)
    try:
        return convert(name, state_dict, **options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_name(name: str) -> None:
    """Raises ValueError for an unknown name of weights, with the nearest known name."""
    if name not in SOURCES:
        hint = did_you_mean(name, SOURCES, cutoff=0.4) or "."
        raise ValueError(f"no pretrained weights {name!r}{hint} There are {', '.join(SOURCES)}")
