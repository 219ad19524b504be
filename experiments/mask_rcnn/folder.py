"""Mask R-CNN on your own images: a folder of images and a folder of masks with objects.

Paper     He et al., Mask R-CNN, ICCV 2017 (arXiv:1703.06870): ResNet-50 with FPN; by --variant
          small as in dsb2018.py, for many small objects and from scratch: ResNet-34 at half its
          width.
Protocol  Each object has a number or a colour of its own in its mask, and a second folder of masks
          may hold the classes (--class-masks, as CVAT, labelme and VOC write them). Or the masks
          hold classes, and each connected region is an object (--holds components). Overlapping
          objects need a JSON file in COCO's format: coco_files.py. Start from weights trained on
          COCO wherever you can (--initial.name torchvision/maskrcnn_resnet50_fpn --initial.weights
          FILE). Images are cut to windows, which follow from their size unless they are given; the
          run prints and records them.
Cost      hours on a GPU; the run shows its rate and the time left.
Data      --images DIR --masks DIR; `segjax data check --images DIR --masks DIR` looks at them first
Command   python experiments/mask_rcnn/folder.py --workdir runs/mine --images images --masks masks
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Self

from segjax.commands.launch import run
from segjax.data.sources.splits import as_objects
from segjax.models.detections import DetectionConfig
from segjax.models.regions import RegionSampling
from segjax.models.rpn import ProposalConfig
from segjax.recipes.fitting import crop_side
from segjax.recipes.folder_config import FolderConfig
from segjax.recipes.mask_rcnn import (
    Crop,
    InputConfig,
    MaskRCNNExperimentConfig,
    MaskRCNNPredictionConfig,
    mask_rcnn_experiment,
)
from segjax.recipes.mask_rcnn_networks import MaskRCNNConfig
from segjax.training.configuration import TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig

BYTES_PER_PIXEL = 4000  # of a training window, for ResNet-50 in float32
MULTIPLE = 64  # of the sides that images are padded to, so that few shapes are compiled


@dataclass(frozen=True, kw_only=True)
class Config(FolderConfig, MaskRCNNExperimentConfig):
    """Mask R-CNN on folders of images and masks."""

    train: TrainConfig = TrainConfig(
        num_steps=2000, batch_size=2, eval_every=500, eval_batch_size=1
    )
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=0.0025,
        reference_batch_size=2,
        weight_decay=1e-4,
        decayed=r"(kernel|bias)$",
        schedule="cosine",
        warmup_steps=100,
        clip_norm=10.0,
    )
    network: MaskRCNNConfig = MaskRCNNConfig()
    input: InputConfig = InputConfig(resize=Crop(), mask_size=56)
    prediction: MaskRCNNPredictionConfig = MaskRCNNPredictionConfig(scales=(1.0,))

    def resolved(self, given: Collection[str] = ()) -> Self:
        config = (
            super()
            .resolved(given)
            .with_data(
                objects=True,
                channels=3,
                otherwise="objects: give --holds components if each connected region of a class is "
                "an object, --holds instances if each object has its own value. For classes take "
                "experiments/unet/folder.py or experiments/deeplab/folder.py",
            )
        )
        settings, prediction = config.input, config.prediction
        if isinstance(settings.resize, Crop) and "input.resize.size" not in given:
            side = crop_side(config.sizes, multiple=32, largest=512)
            settings = replace(settings, resize=replace(settings.resize, size=(side, side)))
        if isinstance(settings.resize, Crop) and "input.buckets" not in given:
            settings = replace(settings, buckets=(settings.resize.size,))
        if "prediction.buckets" not in given:
            sides = {
                tuple(-(-side // MULTIPLE) * MULTIPLE for side in size)
                for size in config.sizes.tolist()
            }
            prediction = replace(prediction, buckets=tuple(sorted(sides)))
        config = replace(config, input=settings, prediction=prediction)
        height, width = settings.buckets[-1]
        return config.fitted(given, BYTES_PER_PIXEL * height * width, side=(height, width))


VARIANTS = {
    "small": {
        "optimizer": OptimizerConfig(
            name="adamw",
            learning_rate=2e-3,
            reference_batch_size=4,
            weight_decay=1e-4,
            schedule="cosine",
            warmup_steps=100,
            clip_norm=5.0,
        ),
        "network": MaskRCNNConfig(
            backbone="resnet34",
            width_multiplier=0.5,
            pixels="tensorflow",
            fpn_features=64,
            norm="batch",
            anchor_sizes=(8.0, 16.0, 32.0, 64.0, 128.0),
            fc_features=256,
            head_features=64,
            proposals=ProposalConfig(pre_nms=1000, post_nms=600),
            detections=DetectionConfig(max_detections=400, max_candidates=600),
        ),
        "input": InputConfig(
            resize=Crop(scale=(0.8, 1.6)), flip_vertical=True, max_objects=160, mask_size=56
        ),
        "proposals": ProposalConfig(pre_nms=500, post_nms=250),
        "region_sampling": RegionSampling(size=128, positive_fraction=0.33),
    },
}


def build(config: Config) -> Experiment:
    splits = as_objects(
        config.data.splits(), empty_share=config.input.empty_share, seed=config.seed
    )
    return mask_rcnn_experiment(config, splits)


if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
