"""DeepLab v2 (atrous spatial pyramid pooling, CRF) on PASCAL VOC 2012.

Paper     Chen et al., arXiv:1606.00915, mean IoU on val (trained on train_aug), by --variant:
          VGG-16 LargeFOV, before the CRF:
            vgg-large-fov-step             62.25   batch 30, 6k steps, × 0.1 every 2k
            vgg-large-fov-poly             63.42   batch 30, 6k steps, poly
            vgg-large-fov-poly-30x10k      64.90
            vgg-large-fov-poly-10x10k      64.71
            vgg-large-fov                  65.88   batch 10, 20k steps
          VGG-16, before and after the CRF:
            vgg-large-fov                  65.76   69.84
            vgg-aspp-s                     66.98   69.73
            vgg-aspp-l                     68.96   71.57
          ResNet-101 (each row adds to the one above; "coco": initialised with --initial.run from
          a run with --training-set coco):
            resnet101                      68.72
            resnet101-msc                  71.27
            resnet101-msc with coco        73.28
            resnet101-msc-aug with coco    74.87
            resnet101-large-fov with coco  75.54
            (default) with coco            76.35   ASPP-L; with the CRF 77.69, on test 79.7
Protocol  10 crops of 321² a step, 20,000 steps, learning rate 0.001 × (1 − t)^0.9 (ten times that
          for the classifiers, doubled for biases), momentum 0.9, weight decay 5e-4, labels
          subsampled to the coarse scores, batch norm frozen. Rows from "aug" on scale images by 0.5
          to 1.5. A run reports "unrefined_mean_iou" and, after the CRF, "mean_iou".
Cost      not yet measured.
Data      segjax data prepare voc2012 --source DIR
Command   python experiments/deeplab/v2_voc2012.py --workdir runs/v2
          --initial.name detectron2/resnet101 --initial.weights R-101.pkl
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
from segjax.recipes.deeplab_networks import DeepLabV2Config
from segjax.training.configuration import TrainConfig
from segjax.training.optimizer import OptimizerConfig

MULTI_SCALE = (0.5, 0.75, 1.0)
LARGE_FOV = (12,)
# Our guess for the rows before LargeFOV is added; the paper does not name their head.
SMALL_FOV = DeepLabV2Config(atrous_rates=(1,), kernel_size=1)
UNSCALED = DeepLabAugmentConfig(crop=(321, 321), scale=(1.0, 1.0), scale_step=None)


def optimizer(batch_size: int = 10, schedule: str = "poly") -> OptimizerConfig:
    """The paper's optimiser, whose learning rate does not depend on the batch size."""
    return OptimizerConfig(
        learning_rate=1e-3,
        reference_batch_size=batch_size,
        weight_decay=5e-4,
        schedule=schedule,
        step_boundaries=(1 / 3, 2 / 3),
        multipliers=(("^(?!backbone/)", 10.0), ("bias$", 2.0)),
    )


def vgg(atrous_rates: tuple[int, ...]) -> DeepLabV2Config:
    return DeepLabV2Config(
        backbone="vgg16", pixels="caffe", head_features=1024, atrous_rates=atrous_rates
    )


def vgg_large_fov(batch_size: int, num_steps: int, schedule: str = "poly") -> dict:
    """Returns one row of the paper's table of training settings."""
    return {
        "network": vgg(LARGE_FOV),
        "train": TrainConfig(num_steps=num_steps, batch_size=batch_size),
        "optimizer": optimizer(batch_size, schedule),
        "augment": UNSCALED,
        "prediction": VGG_CRF,
    }


def refined(
    position_sigma: float, smoothness_weight: float, smoothness_sigma: float
) -> DeepLabPredictionConfig:
    """Refines with CRF values that re-implementations quote from the released scripts."""
    crf = CrfConfig(
        appearance_weight=4,
        position_sigma=position_sigma,
        color_sigma=3,
        smoothness_weight=smoothness_weight,
        smoothness_sigma=smoothness_sigma,
        normalization="per_pixel",
    )
    return DeepLabPredictionConfig(refine=True, crf=crf)


VGG_CRF = refined(65, 2, 2)


@dataclass(frozen=True, kw_only=True)
class Config(VocConfig):
    """DeepLab v2 on VOC 2012."""

    train: TrainConfig = TrainConfig(num_steps=20_000, batch_size=10, checkpoint_every=1000)
    optimizer: OptimizerConfig = optimizer()
    network: DeepLabV2Config = DeepLabV2Config(scales=MULTI_SCALE)
    augment: DeepLabAugmentConfig = DeepLabAugmentConfig(
        crop=(321, 321), scale=(0.5, 1.5), scale_step=None
    )
    loss: SemanticLoss = SemanticLoss(supervise="coarse", auxiliary=1.0)
    prediction: DeepLabPredictionConfig = refined(67, 3, 1)


VARIANTS = {
    "vgg-large-fov-step": vgg_large_fov(30, 6000, "step"),
    "vgg-large-fov-poly": vgg_large_fov(30, 6000),
    "vgg-large-fov-poly-30x10k": vgg_large_fov(30, 10_000),
    "vgg-large-fov-poly-10x10k": vgg_large_fov(10, 10_000),
    "vgg-large-fov": {"network": vgg(LARGE_FOV), "augment": UNSCALED, "prediction": VGG_CRF},
    "vgg-aspp-s": {"network": vgg((2, 4, 8, 12)), "augment": UNSCALED, "prediction": VGG_CRF},
    "vgg-aspp-l": {"network": vgg((6, 12, 18, 24)), "augment": UNSCALED, "prediction": VGG_CRF},
    "resnet101": {"network": SMALL_FOV, "augment": UNSCALED},
    "resnet101-msc": {
        "network": replace(SMALL_FOV, scales=MULTI_SCALE),
        "augment": UNSCALED,
    },
    "resnet101-msc-aug": {"network": replace(SMALL_FOV, scales=MULTI_SCALE)},
    "resnet101-large-fov": {"network": DeepLabV2Config(atrous_rates=LARGE_FOV, scales=MULTI_SCALE)},
}

build = voc_experiment

if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
