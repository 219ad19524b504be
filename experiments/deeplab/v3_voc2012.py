"""DeepLab v3 (ASPP with image-level features, multi-grid) on PASCAL VOC 2012.

Paper     Chen et al., arXiv:1706.05587, ResNet-101, mean IoU on val (trained on train_aug), by
          --variant and, for the same run, by `segjax evaluate RUN --set`:
          ASPP at output stride 16:
            mg-1-1-1 75.36, mg-1-2-1 75.93, mg-1-2-4 76.58 (none with image pooling),
            mg-1-2-4-rate-24 76.46, (default) 77.21
          inference:
            (default)                                                        77.21
            --set prediction.output_stride=8                                 78.51
            ... prediction.scales=[0.5,0.75,1,1.25,1.5,1.75]                 79.45
            ... prediction.flip=true                                         79.77
            pre-trained on COCO (--training-set coco, then --initial.run)    82.70
          cascade: cascade-block7 76.66, at output stride 8 78.05, scales 78.93, flip 79.35
          settings: no-batch-norm 75.95, subsampled-labels 76.01, crop-321 67.22, batch size
          (--train.batch-size) 4 / 8 / 12: 64.43 / 75.76 / 76.49
          training output stride: stride-8 75.62; stride-32 75.90 tested at 16, 75.75 at 8
          On test, after phase two: 85.7.
Protocol  16 crops of 513² a step, 30,000 steps at output stride 16, learning rate
          0.007 × (1 − t)^0.9, batch norm trained (0.9997). Initialised from an ImageNet ResNet-101;
          the paper's own has another stem and strides at the end of each stage. Phase two, for the
          test server, trains on trainval at output stride 8 with frozen batch norm and learning
          rate 0.001: --variant phase-two --initial.run runs/v3.
Cost      not yet measured.
Data      segjax data prepare voc2012 --source DIR
Command   python experiments/deeplab/v3_voc2012.py --workdir runs/v3
          --initial.name torchvision/resnet101 --initial.weights resnet101-63fe2227.pth
"""

from dataclasses import dataclass

from segjax.commands.launch import run
from segjax.losses import SemanticLoss
from segjax.recipes.deeplab import DeepLabAugmentConfig, VocConfig, voc_experiment
from segjax.recipes.deeplab_networks import BatchNormConfig, DeepLabV3Config
from segjax.training.configuration import TrainConfig
from segjax.training.optimizer import OptimizerConfig


def optimizer(learning_rate: float = 0.007) -> OptimizerConfig:
    """Weight decay and doubled rates for biases as in the released code."""
    return OptimizerConfig(
        learning_rate=learning_rate,
        reference_batch_size=16,
        weight_decay=1e-4,
        multipliers=(("bias$", 2.0),),
    )


@dataclass(frozen=True, kw_only=True)
class Config(VocConfig):
    """DeepLab v3 on VOC 2012."""

    train: TrainConfig = TrainConfig(
        num_steps=30_000, batch_size=16, eval_every=5000, checkpoint_every=1000
    )
    optimizer: OptimizerConfig = optimizer()
    network: DeepLabV3Config = DeepLabV3Config()


def multi_grid(*rates: int, **options) -> dict:
    return {"network": DeepLabV3Config(multi_grid=rates, image_pooling=False, **options)}


VARIANTS = {
    "mg-1-1-1": multi_grid(1, 1, 1),
    "mg-1-2-1": multi_grid(1, 2, 1),
    "mg-1-2-4": multi_grid(1, 2, 4),
    "mg-1-2-4-rate-24": multi_grid(1, 2, 4, atrous_rates=(6, 12, 18, 24)),
    "cascade-block7": {"network": DeepLabV3Config(cascaded_stages=3, multi_grid=(1, 2, 1))},
    "no-batch-norm": {"network": DeepLabV3Config(batch_norm=BatchNormConfig(frozen=True))},
    "subsampled-labels": {"loss": SemanticLoss(supervise="coarse")},
    "crop-321": {"augment": DeepLabAugmentConfig(crop=(321, 321))},
    "stride-8": {"network": DeepLabV3Config(output_stride=8)},
    "stride-32": {"network": DeepLabV3Config(output_stride=32)},
    "phase-two": {
        "training_set": "trainval",
        "network": DeepLabV3Config(output_stride=8, batch_norm=BatchNormConfig(frozen=True)),
        "optimizer": optimizer(0.001),
    },
}

build = voc_experiment

if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
