"""DeepLab on CamVid, in SegNet's version of 360 × 480 pixels and 11 classes; a CPU can train it.

Published DeepLab-LargeFOV (v1) with the CRF has 61.6 mean IoU on test (in Kundu et al., "Feature
          Space Optimization for Semantic Video Segmentation", CVPR 2016, and later tables). The
          source does not describe its training further.
Protocol  train on the 367 training images, keep the checkpoint that scores best on val's 101, score
          test's 233 at their own resolution. Void is ignored. By --variant:
            (default)     v3 on a half-width MobileNetV2 with frozen batch norm, initialised from
                          weights trained on VOC 2012 (--initial.name tf/deeplabv3_mobilenetv2)
            v1-large-fov  v1 LargeFOV on VGG-16 (--initial.name keras/vgg16), its first three
                          blocks frozen
            v3plus        v3+ on MobileNetV2, from scratch
            resnet18      v3+ on ResNet-18 from ImageNet (--initial.name torchvision/resnet18), with
                          128 features, class weights 1 / √pixels, and a third of the crops around
                          a class drawn evenly; mean over flips, no CRF
          v3 and v3+ train at output stride 16 and are scored at 8.
          With the CRF, a run reports "unrefined_mean_iou" and, after it, "mean_iou".
Cost      see RESULTS.md.
Data      segjax data prepare camvid --source DIR
Command   python experiments/deeplab/camvid.py --workdir runs/camvid
          --initial.name tf/deeplabv3_mobilenetv2 --initial.weights FILE
"""

from dataclasses import dataclass

from segjax.commands.launch import run
from segjax.data.sources.splits import prepared_splits
from segjax.losses import SemanticLoss
from segjax.recipes.deeplab import (
    DeepLabAugmentConfig,
    DeepLabExperimentConfig,
    DeepLabPredictionConfig,
    deeplab_experiment,
)
from segjax.recipes.deeplab_networks import (
    BatchNormConfig,
    DeepLabV1Config,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
)
from segjax.training.configuration import TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Config(DeepLabExperimentConfig):
    """DeepLab on CamVid."""

    train: TrainConfig = TrainConfig(
        num_steps=3000, batch_size=8, eval_every=500, checkpoint_every=250
    )
    optimizer: OptimizerConfig = OptimizerConfig(
        # With frozen batch norm, the loss diverges at higher rates: it grows at 0.005.
        learning_rate=0.002,
        reference_batch_size=8,
        weight_decay=4e-5,
        decayed=r"(?<!depthwise)/kernel$",
        multipliers=(("^logits/", 5.0),),
        warmup_steps=50,
        clip_norm=10.0,
    )
    network: DeepLabV1Config | DeepLabV3Config | DeepLabV3PlusConfig = DeepLabV3Config(
        backbone="mobilenet_v2",
        width_multiplier=0.5,
        pixels="tensorflow",
        output_stride=16,
        multi_grid=None,
        atrous_rates=(),
        # The weights have batch norm folded into their kernels; only scale and bias remain.
        batch_norm=BatchNormConfig(epsilon=1e-3, frozen=True),
    )
    augment: DeepLabAugmentConfig = DeepLabAugmentConfig(crop=(257, 321), scale_step=None)
    prediction: DeepLabPredictionConfig = DeepLabPredictionConfig(
        output_stride=8, size=(361, 481), refine=True
    )


VARIANTS = {
    "v1-large-fov": {
        "train": TrainConfig(num_steps=1000, batch_size=4, eval_every=250, checkpoint_every=50),
        "network": DeepLabV1Config(),
        "optimizer": OptimizerConfig(
            learning_rate=1e-3,
            reference_batch_size=4,
            weight_decay=5e-4,
            multipliers=(
                ("^logits/", 10.0),
                ("bias$", 2.0),
                ("^backbone/block[123]", 0.0),
            ),
        ),
        "augment": DeepLabAugmentConfig(crop=(225, 289), scale=(0.5, 1.25), scale_step=None),
        "loss": SemanticLoss(supervise="coarse"),
    },
    "v3plus": {
        "network": DeepLabV3PlusConfig(
            backbone="mobilenet_v2",
            aspp_features=128,
            decoder_features=128,
            # In a few thousand steps, averages with momentum 0.9997 would not settle.
            batch_norm=BatchNormConfig(momentum=0.99, epsilon=1e-3),
        ),
        "optimizer": OptimizerConfig(
            learning_rate=0.05,
            reference_batch_size=8,
            weight_decay=4e-5,
            decayed=r"(?<!depthwise)/kernel$",
            warmup_steps=100,
        ),
    },
    "resnet18": {
        "train": TrainConfig(num_steps=6000, batch_size=8, eval_every=1000, checkpoint_every=100),
        "network": DeepLabV3PlusConfig(
            backbone="resnet18",
            pixels="imagenet",
            aspp_features=128,
            decoder_features=128,
            batch_norm=BatchNormConfig(momentum=0.99),
        ),
        "optimizer": OptimizerConfig(
            name="adamw",
            learning_rate=1e-3,
            reference_batch_size=8,
            weight_decay=1e-2,
            schedule="cosine",
            multipliers=(("^backbone/", 0.5),),
            warmup_steps=100,
            clip_norm=10.0,
        ),
        "augment": DeepLabAugmentConfig(
            crop=(257, 321), scale_step=None, photometric=True, class_balanced=0.33
        ),
        # 1 / √pixels of the training set's classes, with a mean of 1 over its pixels.
        "loss": SemanticLoss(
            class_weights=(0.88, 0.75, 3.63, 0.64, 1.7, 1.15, 3.32, 3.39, 1.49, 4.5, 6.66)
        ),
        "prediction": DeepLabPredictionConfig(output_stride=8, size=(361, 481), flip=True),
    },
}


def build(config: Config) -> Experiment:
    splits = prepared_splits(
        "camvid", data_dir=config.data_dir, evaluation={"val": "val", "test": "test"}
    )
    return deeplab_experiment(config, splits)


if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
