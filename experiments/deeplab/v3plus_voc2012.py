"""DeepLab v3+ (decoder, atrous separable convolutions, Xception) on PASCAL VOC 2012.

Paper     Chen et al., arXiv:1802.02611, mean IoU on val (trained on train_aug), by --variant:
          decoder on ResNet-101, channels of the low-level map, one 3×3 convolution:
            resnet101-low-level-8 77.61, resnet101-low-level-16 77.92, resnet101-low-level-32
            78.16, resnet101-low-level-48 78.21, resnet101-low-level-64 77.94
          number of 3×3 convolutions:
            resnet101-low-level-48 78.21, resnet101 78.85, resnet101-three-convolutions 78.02
          inference, ResNet-101, and with --set prediction.output_stride=8, scales and flip:
            resnet101-no-decoder   77.21    78.51, 79.45, 79.77
            resnet101              78.85    79.35, 80.43, 80.57
            resnet101-stride-32    77.37    (trained at output stride 32; no decoder 75.43)
          Xception-65, likewise:
            xception65-no-decoder  79.17
            xception65-dense       79.93    80.22, -, 81.63   decoder, no separable convolutions
            (default)              79.79                      separable ASPP and decoder
            pre-trained on COCO    82.20    -, -, 83.58       (--training-set coco, --initial.run)
          On test 87.8. Figure 5 plots the mean IoU near object boundaries (trimaps), which
          `segjax evaluate RUN --set prediction.boundaries=true` reports by width.
Protocol  as v3's: 16 crops of 513² a step, 30,000 steps at output stride 16, learning rate
          0.007 × (1 − t)^0.9, batch norm trained; weight decay 4e-5 with Xception, not on depthwise
          kernels (released code). Phase two: --variant phase-two --initial.run runs/v3plus.
Cost      not yet measured.
Data      segjax data prepare voc2012 --source DIR
Command   python experiments/deeplab/v3plus_voc2012.py --workdir runs/v3plus
          --variant resnet101 --initial.name torchvision/resnet101
          --initial.weights resnet101-63fe2227.pth
"""

from dataclasses import dataclass, replace

from segjax.commands.launch import run
from segjax.recipes.deeplab import VocConfig, voc_experiment
from segjax.recipes.deeplab_networks import BatchNormConfig, DeepLabV3PlusConfig
from segjax.training.configuration import TrainConfig
from segjax.training.optimizer import OptimizerConfig

WITHOUT_DEPTHWISE = r"(?<!depthwise)/kernel$"


def optimizer(weight_decay: float, learning_rate: float = 0.007) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=learning_rate,
        reference_batch_size=16,
        weight_decay=weight_decay,
        decayed=WITHOUT_DEPTHWISE,
        multipliers=(("bias$", 2.0),),
    )


@dataclass(frozen=True, kw_only=True)
class Config(VocConfig):
    """DeepLab v3+ on VOC 2012."""

    train: TrainConfig = TrainConfig(
        num_steps=30_000, batch_size=16, eval_every=5000, checkpoint_every=1000
    )
    optimizer: OptimizerConfig = optimizer(4e-5)
    network: DeepLabV3PlusConfig = DeepLabV3PlusConfig()


XCEPTION = DeepLabV3PlusConfig()
RESNET = DeepLabV3PlusConfig(
    backbone="resnet101",
    pixels="imagenet",
    multi_grid=(1, 2, 4),
    separable=False,
    batch_norm=BatchNormConfig(epsilon=1e-5),
)


def resnet(**options) -> dict:
    return {"network": replace(RESNET, **options), "optimizer": optimizer(1e-4)}


VARIANTS = {
    "resnet101": resnet(),
    **{
        f"resnet101-low-level-{channels}": resnet(
            low_level_features=channels, decoder_convolutions=1
        )
        for channels in (8, 16, 32, 48, 64)
    },
    "resnet101-three-convolutions": resnet(decoder_convolutions=3),
    "resnet101-no-decoder": resnet(low_level_features=None),
    "resnet101-stride-32": resnet(output_stride=32),
    "xception65-no-decoder": {
        "network": replace(XCEPTION, low_level_features=None, separable=False)
    },
    "xception65-dense": {"network": replace(XCEPTION, separable=False)},
    "phase-two": {
        "training_set": "trainval",
        "network": replace(
            XCEPTION, output_stride=8, batch_norm=BatchNormConfig(epsilon=1e-3, frozen=True)
        ),
        "optimizer": optimizer(4e-5, learning_rate=0.001),
    },
}

build = voc_experiment

if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
