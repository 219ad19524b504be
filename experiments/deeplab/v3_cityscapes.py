"""DeepLab v3 on Cityscapes, trained on the finely annotated images only.

Paper     Chen et al., arXiv:1706.05587, ResNet-101, mean IoU on val: 77.23 at output
          stride 16 and, by `segjax evaluate RUN --set`:
            prediction.output_stride=8                                      77.82
            ... prediction.scales=[0.75,1,1.25]                             79.06
            ... prediction.flip=true                                        79.30
          On test, with the coarse annotations, 81.3.
Published detectron2 (projects/DeepLab): --variant detectron2 76.7, with the 3×3×3 stem 78.5.
          mmsegmentation, 80k steps of 512 × 1024 crops at output stride 8: 80.20.
Protocol  16 crops of 769² a step, 90,000 steps, learning rate 0.007 × (1 − t)^0.9, batch norm
          trained, evaluated on whole images of 1025 × 2049. "detectron2" uses 512 × 1024 crops,
          warm-up, the hardest 20 % of the pixels, and image pooling of a fixed size without norm.
          The paper's scales on Cityscapes are 0.75, 1 and 1.25.
Cost      not yet measured.
Data      segjax data prepare cityscapes --source DIR
Command   python experiments/deeplab/v3_cityscapes.py --workdir runs/v3_cityscapes
          --initial.name torchvision/resnet101 --initial.weights resnet101-63fe2227.pth
"""

from dataclasses import dataclass

from segjax.commands.launch import run
from segjax.losses import SemanticLoss
from segjax.recipes.deeplab import (
    DETECTRON2_AUGMENT,
    CityscapesConfig,
    cityscapes_experiment,
    detectron2_optimizer,
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


VARIANTS = {
    "detectron2": {
        "network": DeepLabV3Config(
            image_pooling=(32, 64),
            align_corners=False,
            batch_norm=BatchNormConfig(momentum=0.9),
        ),
        "optimizer": detectron2_optimizer(),
        "augment": DETECTRON2_AUGMENT,
        "loss": SemanticLoss(hard_pixels=0.2),
    },
}

build = cityscapes_experiment

if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
