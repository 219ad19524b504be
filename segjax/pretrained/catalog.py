"""The names of the weights that can be converted, and their converters."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
from segjax.pretrained.published import is_published, load_published
from segjax.pretrained.state_dict import without_prefixes
from segjax.weights.download import download as download_weights
from segjax.weights.known import KNOWN, find
from segjax.weights.places import MissingWeights, known, locate

SOURCES: dict[str, Callable[..., Conversion]] = {
    "torchvision/deeplabv3_resnet50": torchvision.convert_deeplabv3,
    "torchvision/deeplabv3_resnet101": torchvision.convert_deeplabv3,
    "torchvision/deeplabv3_mobilenet_v3_large": torchvision.convert_deeplabv3,
    "torchvision/maskrcnn_resnet50_fpn": torchvision_detection.convert_maskrcnn,
    "torchvision/maskrcnn_resnet50_fpn_v2": torchvision_detection.convert_maskrcnn,
    "torchvision/resnet18": torchvision.convert_resnet,
    "torchvision/resnet34": torchvision.convert_resnet,
    "torchvision/resnet50": torchvision.convert_resnet,
    "torchvision/resnet101": torchvision.convert_resnet,
    "torchvision/mobilenet_v2": torchvision.convert_mobilenet_v2,
    "torchvision/mobilenet_v3_large": torchvision.convert_mobilenet_v3,
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
      name: source and model, one of `SOURCES`, or the name of known weights
        (`segjax weights list`).
      state_dict: arrays by the package's names, in its layout and of any float type. Prefixes that
        all names have, such as "model." or "_orig_mod.", are removed if the names fit better
        without; see `segjax.pretrained.state_dict`. The arrays decide the number of classes and
        channels, and whether the model has an auxiliary head. A semantic head with a single output,
        a sigmoid, becomes one of two classes with the same probabilities: background and
        foreground, unless `classes` names them.
      options: options of the converter, such as `classes`, or `output_stride` for TensorFlow's
        models; see `segjax.pretrained.{torchvision,torchvision_detection,smp,tf_deeplab,detectron2,
        detectron2_detection,mmseg,mmdet,keras}`. Known weights have options of their own, which
        these replace.

    Raises:
      ValueError: there is no such name, or arrays are missing, unknown or wrongly shaped; the
        message lists all of them.
      TypeError: the converter has no such option.
    """
    source, own = _source_of(name)
    best = max(without_prefixes(state_dict), key=lambda arrays: _count_known(source, arrays))
    return SOURCES[source](best, name=source, **own | options).converted(name)


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
    source, own = _source_of(name)
    own = {key: value for key, value in own.items() if key != "classes"}  # as many as in the file
    return SOURCES[source]({}, name=source, **own)


def load(
    name: str | Path, path: str | Path | None = None, *, download: bool = False, **options
) -> Pretrained:
    """Converts the weights in a file, or loads a published folder.

    Args:
      name: one of `SOURCES`, or of `segjax weights list`; or a folder of `segjax publish`, which
        needs nothing else.
      path: the file, see `segjax.pretrained.read_weights`; None looks for the known file of this
        name, see `find_file`.
      download: download a known file that is not on this machine.
      options: as in `convert`.

    Raises:
      FileNotFoundError: there is no such file, or the known one is not on this machine.
      OSError: the download failed.
      ValueError: the file cannot be read, no file is known by this name, or as in `convert`; the
        message names the file.
      TypeError: the converter has no such option.
    """
    if path is None and not options and is_published(name):
        return load_published(name)
    name = str(name)
    check_name(name)
    path = find_file(name, download=download) if path is None else path
    state_dict = read_weights(path)
    try:
        return convert(name, state_dict, **options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find_file(name: str, *, download: bool = False) -> Path:
    """Returns the known file of a name: from this machine, or downloaded if asked to.

    Raises:
      MissingWeights: the file is not on this machine, or is damaged; a FileNotFoundError whose
        message says what the file is and how to get it.
      ValueError: no readable file is known by this name.
      OSError: the download failed.
    """
    check_has_file(name)
    try:
        return locate(name)
    except MissingWeights:
        if not download:
            raise
        return download_weights(known(name))


def check_has_file(name: str) -> None:
    """Raises ValueError for a name without a known file."""
    check_name(name)
    if find(name) is None:
        raise ValueError(f"{name}: no published file is known; name your own file of weights")


def check_name(name: str) -> None:
    """Raises ValueError for an unknown name of weights, with the nearest known name."""
    if name not in SOURCES and name not in KNOWN:
        hint = did_you_mean(name, (*SOURCES, *KNOWN), cutoff=0.4) or "."
        raise ValueError(f"no pretrained weights {name!r}{hint} There are {', '.join(SOURCES)}")


def _source_of(name: str) -> tuple[str, dict[str, Any]]:
    """Returns the entry of `SOURCES` for a name, and the options of known weights."""
    check_name(name)
    weights = KNOWN.get(name)
    own = {} if weights is None else dict(weights.options)
    return name if weights is None or name in SOURCES else weights.converter, own
