"""DeepLab on your own images: a folder of images and a folder of masks.

Paper     Chen et al., Rethinking Atrous Convolution, 2017 (arXiv:1706.05587): v3 on ResNet-50; by
          --variant v3plus Chen et al., Encoder-Decoder with Atrous Separable Convolution, 2018
          (arXiv:1802.02611), on MobileNetV2.
Protocol  The masks hold classes. Start from trained weights wherever you can (--initial.name
          torchvision/deeplabv3_resnet50 --initial.weights FILE): a few hundred images do not train
          such a network from scratch. Crop, batch size and number of steps follow from the images
          and the machine, unless they are given; the run prints and records them.
Cost      minutes to hours; the run shows its rate and the time left.
Data      --images DIR --masks DIR; `segjax data check --images DIR --masks DIR` looks at them first
Command   python experiments/deeplab/folder.py --workdir runs/mine --images images --masks masks
          --initial.name torchvision/deeplabv3_resnet50 --initial.weights FILE
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Self

from segjax.commands.launch import run
from segjax.recipes.deeplab import (
    DeepLabAugmentConfig,
    DeepLabExperimentConfig,
    DeepLabPredictionConfig,
    deeplab_experiment,
)
from segjax.recipes.deeplab_networks import (
    BatchNormConfig,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
)
from segjax.recipes.fitting import crop_side
from segjax.recipes.folder_config import FolderConfig
from segjax.training.configuration import TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig

BYTES_PER_PIXEL = 6000  # of a training crop, for ResNet-50 at output stride 16 in float32


@dataclass(frozen=True, kw_only=True)
class Config(FolderConfig, DeepLabExperimentConfig):
    """DeepLab on folders of images and masks."""

    train: TrainConfig = TrainConfig(num_steps=2000, batch_size=4, eval_every=200, log_every=20)
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=0.005,
        reference_batch_size=8,
        weight_decay=1e-4,
        decayed=r"(?<!depthwise)/kernel$",
        multipliers=(("^logits/", 5.0),),
        warmup_steps=50,
        clip_norm=10.0,
    )
    network: DeepLabV3Config | DeepLabV3PlusConfig = DeepLabV3Config(
        backbone="resnet50",
        output_stride=16,
        multi_grid=None,
        # In a few thousand steps, averages with the paper's momentum of 0.9997 would not settle.
        batch_norm=BatchNormConfig(momentum=0.99),
    )
    augment: DeepLabAugmentConfig = DeepLabAugmentConfig(scale_step=None)
    prediction: DeepLabPredictionConfig = DeepLabPredictionConfig()

    def resolved(self, given: Collection[str] = ()) -> Self:
        followed = super(Config, self._following_the_weights(given)).resolved(given)
        config = followed.with_data(
            objects=False,
            channels=3,
            otherwise="classes: for objects take experiments/unet/folder.py or "
            "experiments/mask_rcnn/folder.py, for masks of classes --holds classes",
        )
        augment, prediction = config.augment, config.prediction
        if "augment.crop" not in given:
            side = crop_side(config.sizes, multiple=16, largest=513, extra=1)
            augment = replace(augment, crop=(side, side))
        if "prediction.size" not in given:
            # Images are predicted whole, padded to a side of 16 k + 1.
            height, width = (-(-(side - 1) // 16) * 16 + 1 for side in config.sizes.max(axis=0))
            prediction = replace(prediction, size=(int(height), int(width)))
        config = replace(
            config, augment=augment, prediction=prediction, loss=config.weighted(config.loss)
        )
        memory = BYTES_PER_PIXEL * augment.crop[0] * augment.crop[1]
        return config.fitted(given, memory, side=augment.crop)

    def _following_the_weights(self, given: Collection[str]) -> Self:
        """Leaves to trained weights what belongs to them, unless the command line has it."""
        if self.initial.name is None:
            return self
        network, default = self.network, type(self.network)()
        follow: dict[str, Any] = {
            name: getattr(default, name)
            for name in ("backbone", "pixels")
            if f"network.{name}" not in given
        }
        if "network.batch_norm.epsilon" not in given:
            epsilon = default.batch_norm.epsilon
            follow["batch_norm"] = replace(network.batch_norm, epsilon=epsilon)
        return replace(self, network=replace(network, **follow))


VARIANTS = {
    "v3plus": {
        "network": DeepLabV3PlusConfig(
            backbone="mobilenet_v2",
            pixels="imagenet",
            batch_norm=BatchNormConfig(momentum=0.99, epsilon=1e-3),
        ),
    },
}


def build(config: Config) -> Experiment:
    return deeplab_experiment(config, config.data.splits())


if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
