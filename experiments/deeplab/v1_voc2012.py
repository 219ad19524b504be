"""DeepLab v1 (VGG-16, atrous, fully connected CRF) on PASCAL VOC 2012.

Paper     Chen et al., arXiv:1412.7062, table 1, mean IoU on val (trained on train_aug), without
          and with the CRF, by --variant:
            deeplab                 59.80   63.74   4×4 at rate 4
            msc                     61.30   65.21   and multi-scale features
            7x7                     64.38   67.64   7×7 at rate 4
            4x4                       -     67.14   4×4 at rate 8 (table 2)
            (default)               62.25   67.64   LargeFOV, 3×3 at rate 12
            msc-large-fov           64.21   68.70
          On test (trained on trainval): LargeFOV with CRF 70.3, with multi-scale features 71.6.
Protocol  20 crops of 321² a step, 6,000 steps, learning rate 0.001 (0.01 for the classifier,
          doubled for biases), × 0.1 every 2,000 steps; labels subsampled to the coarse scores;
          initialised from an ImageNet VGG-16. A run reports both columns: "unrefined_mean_iou"
          before the CRF, "mean_iou" after it. To search the CRF's w1, σα and σβ on 100 images:
          segjax crf RUN --images 100
Cost      not yet measured.
Data      segjax data prepare voc2012 --source DIR
Command   python experiments/deeplab/v1_voc2012.py --workdir runs/v1
          --initial.name torchvision/vgg16 --initial.weights vgg16-397923af.pth
"""

from dataclasses import dataclass, replace

from segjax.commands.launch import run
from segjax.losses import SemanticLoss
from segjax.ops.dense_crf import CrfConfig
from segjax.recipes.deeplab import (
    DeepLabAugmentConfig,
    DeepLabPredictionConfig,
    VocConfig,
    voc_experiment,
)
from segjax.recipes.deeplab_networks import DeepLabV1Config
from segjax.training.configuration import TrainConfig
from segjax.training.optimizer import OptimizerConfig


def four_by_four(atrous_rate: int) -> DeepLabV1Config:
    return DeepLabV1Config(
        kernel_size=4, atrous_rate=atrous_rate, head_features=4096, average_pooling=False
    )


@dataclass(frozen=True, kw_only=True)
class Config(VocConfig):
    """DeepLab v1 on VOC 2012."""

    train: TrainConfig = TrainConfig(num_steps=6000, batch_size=20, checkpoint_every=500)
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-3,
        reference_batch_size=20,
        weight_decay=5e-4,
        schedule="step",
        step_boundaries=(1 / 3, 2 / 3),
        multipliers=(("^logits/", 10.0), ("bias$", 2.0)),
    )
    network: DeepLabV1Config = DeepLabV1Config()
    augment: DeepLabAugmentConfig = DeepLabAugmentConfig(
        crop=(321, 321), scale=(1.0, 1.0), scale_step=None
    )
    loss: SemanticLoss = SemanticLoss(supervise="coarse")
    # Values and normalisation of the released program.
    prediction: DeepLabPredictionConfig = DeepLabPredictionConfig(
        refine=True, crf=CrfConfig(normalization="per_pixel")
    )


# Only LargeFOV uses average pooling before fc6.
VARIANTS = {
    "deeplab": {"network": four_by_four(4)},
    "msc": {"network": replace(four_by_four(4), multi_scale_features=True)},
    "7x7": {"network": replace(four_by_four(4), kernel_size=7)},
    "4x4": {"network": four_by_four(8)},
    "msc-large-fov": {"network": DeepLabV1Config(multi_scale_features=True)},
}

build = voc_experiment

if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
