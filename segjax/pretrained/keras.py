"""Keras's VGG-16 for BGR images, by the names of its layers: {"block1_conv1/kernel": ...}.

The arrays are those of Simonyan and Zisserman's release for Caffe.
"""

from collections.abc import Mapping

import numpy as np

from segjax.models.backbones.vgg import VGG16
from segjax.pretrained.converted import Conversion
from segjax.pretrained.mapping import Source, Table, reading_rgb
from segjax.pretrained.preprocess import CAFFE


def convert_vgg16(state_dict: Mapping[str, np.ndarray], *, name: str) -> Conversion:
    """Converts the ImageNet VGG-16 to a backbone, without its fully connected layers."""
    vgg = VGG16()
    table: Table = {
        f"params/block{block}_conv{i}/{array}": Source(f"block{block}_conv{i}/{array}")
        for block, size in enumerate(vgg.stage_sizes, 1)
        for i in range(1, size + 1)
        for array in ("kernel", "bias")
    }
    table = reading_rgb(table, "params/block1_conv1/kernel")
    return Conversion(vgg, table, state_dict, r"^(fc\d|predictions)/", CAFFE)
