"""detectron2's ImageNet ResNets, https://github.com/facebookresearch/detectron2: MSRA's weights for
BGR images, with the stride in the first 1×1 convolution.

Follows version 0.6: its ResNet (modeling/backbone/resnet.py) and its renaming of Caffe2's arrays
(checkpoint/c2_model_loading.py). Its pickles from MSRA have Caffe2's names and no running
statistics: their norms are a scale and a bias.
"""

from collections.abc import Mapping

import numpy as np

from segjax.models.backbones.resnet import ResNet, resnet50, resnet101, resnext101
from segjax.pretrained.converted import Conversion
from segjax.pretrained.mapping import (
    OIHW,
    Constant,
    Source,
    Table,
    reading_rgb,
    torch_layer,
)
from segjax.pretrained.preprocess import FACEBOOK, MSRA

EPSILON = 1e-5
BOTTLENECK = ("conv1", "conv2", "conv3", "shortcut")  # only a stage's first block has a shortcut

# Backbone, the convolution with the stride, and pixel normalisation.
RESNETS = {
    "resnet50": (resnet50, "1x1", MSRA),
    "resnet101": (resnet101, "1x1", MSRA),
    "resnext101": (resnext101, "3x3", FACEBOOK),
}
# Ignored: classifiers, counters of batches, and the state of Caffe2's optimiser.
OTHERS = r"\.num_batches_tracked$|_momentum$|^(fc1000|pred)_[wb]$|^(stem\.)?fc\.|^linear\."


def convert_resnet(state_dict: Mapping[str, np.ndarray], *, name: str) -> Conversion:
    """Converts an ImageNet ResNet to a backbone, without its classifier.

    Names may be Caffe2's ("res2_0_branch2a_w") or detectron2's ("res2.0.conv1.weight").
    """
    make, stride_in, preprocess = RESNETS[name.removeprefix("detectron2/")]
    resnet = make(stride_in=stride_in)
    is_caffe2 = not any(key.startswith("stem.") for key in state_dict)
    table = caffe2_table(resnet, state_dict) if is_caffe2 else detectron2_table(resnet, prefix="")
    table = reading_rgb(table, "params/stem/convolution/kernel")
    return Conversion(resnet, table, state_dict, OTHERS, preprocess)


def detectron2_table(resnet: ResNet, *, prefix: str) -> Table:
    """Returns the entries of a ResNet by detectron2's names, each with this prefix."""
    table = torch_layer("stem", f"{prefix}stem.conv1", f"{prefix}stem.conv1.norm")
    for stage, blocks in enumerate(resnet.stage_sizes[: resnet.num_stages], 1):
        table |= residual_table(blocks, f"stage{stage}_block{{}}", f"{prefix}res{stage + 1}.")
    return table


def residual_table(blocks: int, ours: str, prefix: str) -> Table:
    """Returns the entries of a stage's bottlenecks by detectron2's names.

    Args:
      blocks: number of bottlenecks.
      ours: our path of a block, with {} for its number, from 1.
      prefix: their path of the stage, followed by the number of the block, from 0.
    """
    table = {}
    for block in range(blocks):
        for conv in BOTTLENECK[: 4 if block == 0 else 3]:
            theirs = f"{prefix}{block}.{conv}"
            table |= torch_layer(f"{ours.format(block + 1)}/{conv}", theirs, f"{theirs}.norm")
    return table


def caffe2_table(resnet: ResNet, state_dict: Mapping[str, np.ndarray]) -> Table:
    """Returns the entries of a ResNet by Caffe2's names."""
    branches = {
        "conv1": "branch2a",
        "conv2": "branch2b",
        "conv3": "branch2c",
        "shortcut": "branch1",
    }
    table = _caffe2_layer("stem", "conv1", "res_conv1_bn", state_dict)
    for stage, size in enumerate(resnet.stage_sizes, 1):
        for block in range(size):
            for conv in BOTTLENECK[: 4 if block == 0 else 3]:
                ours, theirs = f"stage{stage}_block{block + 1}/{conv}", f"res{stage + 1}_{block}"
                theirs = f"{theirs}_{branches[conv]}"
                table |= _caffe2_layer(ours, theirs, f"{theirs}_bn", state_dict)
    return table


def _caffe2_layer(path: str, convolution: str, norm: str, state_dict) -> Table:
    table: Table = {
        f"params/{path}/convolution/kernel": Source(f"{convolution}_w", OIHW),
        f"params/{path}/norm/scale": Source(f"{norm}_s"),
        f"params/{path}/norm/bias": Source(f"{norm}_b"),
    }
    if f"{norm}_rm" in state_dict:
        return table | {
            f"batch_stats/{path}/norm/mean": Source(f"{norm}_rm"),
            f"batch_stats/{path}/norm/var": Source(f"{norm}_riv"),
        }
    return table | {
        f"batch_stats/{path}/norm/mean": Constant(0.0),
        f"batch_stats/{path}/norm/var": Constant(1.0 - EPSILON),
    }
