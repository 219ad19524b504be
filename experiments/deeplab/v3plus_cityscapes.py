"""DeepLab v3+ on Cityscapes, finely annotated images only.

Paper     Chen et al., arXiv:1802.02611, mean IoU on val, by --variant:
            xception65-no-decoder    77.33   ASPP and image-level features
            xception65               78.79   with the decoder
            xception65-no-pooling    79.14   without image-level features
            (default)                79.55   the same with Xception-71
          On test, with the coarse annotations, 82.1.
Published detectron2 (projects/DeepLab): --variant detectron2, ResNet-101, 78.1 (80.0 with the 3×3×3
          stem). mmsegmentation, ResNet-101, 80k steps at output stride 8: --variant mmsegmentation
          80.97 (512 × 1024 crops), --variant mmsegmentation-769 80.98 (769 × 769 crops, sliding
          windows).
Protocol  16 crops of 769² a step, 90,000 steps, learning rate 0.007 × (1 − t)^0.9, batch norm
          trained, whole images of 1025 × 2049. The other variants as in v3_cityscapes.py.
Cost      not yet measured.
Data      segjax data prepare cityscapes --source DIR
Command   python experiments/deeplab/v3plus_cityscapes.py --workdir runs/v3plus_cityscapes
          --variant detectron2 --initial.name torchvision/resnet101
          --initial.weights resnet101-63fe2227.pth
"""

from dataclasses import dataclass, replace

from segjax.commands.launch import run
from segjax.recipes.deeplab import (
    DETECTRON2,
    CityscapesConfig,
    cityscapes_experiment,
    mmsegmentation,
)
from segjax.recipes.deeplab_networks import BatchNormConfig, DeepLabV3PlusConfig
from segjax.training.optimizer import OptimizerConfig

XCEPTION_65 = DeepLabV3PlusConfig()
XCEPTION_71 = DeepLabV3PlusConfig(backbone="xception71", image_pooling=False)


@dataclass(frozen=True, kw_only=True)
class Config(CityscapesConfig):
    """DeepLab v3+ on Cityscapes."""

    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=0.007,
        reference_batch_size=16,
        weight_decay=4e-5,
        decayed=r"(?<!depthwise)/kernel$",
        multipliers=(("bias$", 2.0),),
    )
    network: DeepLabV3PlusConfig = XCEPTION_71


def mmsegmentation_network(*, align_corners: bool = False) -> DeepLabV3PlusConfig:
    return DeepLabV3PlusConfig(
        backbone="resnet101",
        pixels="imagenet",
        output_stride=8,
        aspp_features=512,
        decoder_features=512,
        auxiliary_head=True,
        align_corners=align_corners,
        batch_norm=BatchNormConfig(momentum=0.9),
    )


VARIANTS = {
    "xception65-no-decoder": {"network": replace(XCEPTION_65, low_level_features=None)},
    "xception65": {"network": XCEPTION_65},
    "xception65-no-pooling": {"network": replace(XCEPTION_65, image_pooling=False)},
    "detectron2": {
        "network": DeepLabV3PlusConfig(
            backbone="resnet101",
            pixels="imagenet",
            multi_grid=(1, 2, 4),
            image_pooling=(32, 64),
            separable=False,
            align_corners=False,
            batch_norm=BatchNormConfig(momentum=0.9),
        ),
        **DETECTRON2,
    },
    "mmsegmentation": {"network": mmsegmentation_network(), **mmsegmentation()},
    "mmsegmentation-769": {
        "network": mmsegmentation_network(align_corners=True),
        **mmsegmentation(crop=(769, 769), window_stride=(513, 513)),
    },
}

build = cityscapes_experiment

if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
