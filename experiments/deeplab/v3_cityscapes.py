"""DeepLab v3 on Cityscapes, finely annotated images only.

Paper     Chen et al., arXiv:1706.05587, ResNet-101, mean IoU on val: 77.23 at output
          stride 16 and, by `segjax evaluate RUN --set`:
            prediction.output_stride=8                                      77.82
            ... prediction.scales=[0.75,1,1.25]                             79.06
            ... prediction.flip=true                                        79.30
          On test, with the coarse annotations, 81.3.
Published detectron2 (projects/DeepLab): --variant detectron2 76.7, with the 3×3×3 stem 78.5.
          mmsegmentation, 80k steps at output stride 8: --variant mmsegmentation 80.20 (512 × 1024
          crops), --variant mmsegmentation-769 79.67 (769 × 769 crops, sliding windows).
Protocol  16 crops of 769² a step, 90,000 steps, learning rate 0.007 × (1 − t)^0.9, batch norm
          trained, whole images of 1025 × 2049. "detectron2": 512 × 1024 crops, warm-up, 20 %
          hardest pixels, fixed image pooling without norm. "mmsegmentation": 8 crops a step,
          learning rate 0.01, photometric distortion, crops with at most 75 % of one class, an
          auxiliary loss; the 769 variant slides windows of 769² in steps of 513. Its networks have
          a deeper stem and a 3×3 projection after ASPP, which these variants have not. The paper's
          scales here are 0.75, 1 and 1.25.
Cost      not yet measured.
Data      segjax data prepare cityscapes --source DIR
Command   python experiments/deeplab/v3_cityscapes.py --workdir runs/v3_cityscapes
          --initial.name torchvision/resnet101 --initial.weights resnet101-63fe2227.pth
"""

from dataclasses import dataclass

from segjax.commands.launch import run
from segjax.recipes.deeplab import (
    DETECTRON2,
    CityscapesConfig,
    cityscapes_experiment,
    mmsegmentation,
)
from segjax.recipes.deeplab_networks import BatchNormConfig, DeepLabV3Config
from segjax.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Config(CityscapesConfig):
    """DeepLab v3 on Cityscapes."""

    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=0.007,
        reference_batch_size=16,
        weight_decay=1e-4,
        multipliers=(("bias$", 2.0),),
    )
    network: DeepLabV3Config = DeepLabV3Config()


def mmsegmentation_network(*, align_corners: bool = False) -> DeepLabV3Config:
    return DeepLabV3Config(
        output_stride=8,
        multi_grid=None,
        aspp_features=512,
        auxiliary_head=True,
        align_corners=align_corners,
        batch_norm=BatchNormConfig(momentum=0.9),
    )


VARIANTS = {
    "detectron2": {
        "network": DeepLabV3Config(
            image_pooling=(32, 64),
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
