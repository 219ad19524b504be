"""U-Net on your own images: a folder of images and a folder of masks.

Paper     Ronneberger et al., U-Net, MICCAI 2015, with what has become usual since: padded
          convolutions, batch norm, AdamW, half the features. By --variant encoder: the encoder is a
          ResNet-34 that starts from weights trained on photographs (--initial.name
          torchvision/resnet34 --initial.weights FILE, or smp/unet_resnet34 for the decoder too).
Protocol  The masks say what is learned. Classes: the loss is cross-entropy and Dice, the mean IoU
          ranks the checkpoints. Objects, numbered or the connected regions of black and white masks
          (--holds components): the paper's weight map separates touching ones, and SEG ranks the
          checkpoints. Tile, batch size and number of steps follow from the images
          and the machine, unless they are given; the run prints and records them.
Cost      minutes to hours; the run shows its rate and the time left.
Data      --images DIR --masks DIR; `segjax data check --images DIR --masks DIR` looks at them first
Command   python experiments/unet/folder.py --workdir runs/mine --images images --masks masks
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Self

from segjax.commands.launch import run
from segjax.losses import SemanticLoss
from segjax.recipes.fitting import crop_side
from segjax.recipes.folder_config import FolderConfig
from segjax.recipes.unet import (
    CellExperimentConfig,
    InitialUNetExperimentConfig,
    UNetAugmentConfig,
    cell_experiment,
    unet_experiment,
)
from segjax.recipes.unet_networks import STRIDE, EncoderUNetConfig, UNetConfig
from segjax.training.configuration import TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig

ENCODER_FEATURES = 32  # of a U-Net that takes about as much memory as one with an encoder


@dataclass(frozen=True, kw_only=True)
class Config(FolderConfig, CellExperimentConfig, InitialUNetExperimentConfig):
    """U-Net on folders of images and masks."""

    train: TrainConfig = TrainConfig(num_steps=2000, batch_size=4, eval_every=200, log_every=20)
    optimizer: OptimizerConfig = OptimizerConfig(
        name="adamw",
        learning_rate=1e-3,
        reference_batch_size=4,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_steps=50,
        clip_norm=5.0,
    )
    network: UNetConfig | EncoderUNetConfig = UNetConfig(
        features=32, padding="SAME", norm="batch", tile=256
    )
    augment: UNetAugmentConfig = UNetAugmentConfig(scale=(0.7, 1.4))
    loss: SemanticLoss = SemanticLoss(dice=1.0)

    def resolved(self, given: Collection[str] = ()) -> Self:
        config = super().resolved(given).with_data()
        if config.data.has_objects and len(config.data.classes) > 2:
            raise ValueError(
                f"the objects are of {len(config.data.classes) - 1} classes "
                f"({', '.join(config.data.classes[1:])}), and this network separates objects of "
                "one: take experiments/mask_rcnn/folder.py, or learn the classes alone by --holds "
                "classes"
            )
        network, weight_map = config.network, config.weight_map
        if config.data.holds == "components" and "weight_map.gap" not in given:
            weight_map = replace(weight_map, gap=0)  # components never touch
        multiple = 2**network.depth if isinstance(network, UNetConfig) else STRIDE
        if "network.tile" not in given:
            tile = crop_side(config.sizes, multiple=multiple, largest=384)
            network = replace(network, tile=tile)
        if isinstance(network, UNetConfig) and network.normalization == "dataset":
            mean, std = config.data.read().sources["train"].statistics()
            network = replace(network, mean=network.mean or mean, std=network.std or std)
        # 16 maps as large as the first level's, in float32; the deeper levels double them.
        features = network.features if isinstance(network, UNetConfig) else ENCODER_FEATURES
        memory = 2 * 16 * 4 * features * network.tile**2
        return replace(
            config, network=network, weight_map=weight_map, loss=config.weighted(config.loss)
        ).fitted(given, memory, side=(network.tile, network.tile))


VARIANTS = {
    "encoder": {
        "network": EncoderUNetConfig(),
        "optimizer": OptimizerConfig(
            name="adamw",
            learning_rate=3e-4,
            reference_batch_size=4,
            weight_decay=1e-4,
            schedule="cosine",
            warmup_steps=50,
            clip_norm=5.0,
        ),
    },
}


def build(config: Config) -> Experiment:
    splits = config.data.splits()
    if config.data.has_objects:
        return cell_experiment(config, splits)
    return unet_experiment(config, splits, best_metric="mean_iou")


if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
