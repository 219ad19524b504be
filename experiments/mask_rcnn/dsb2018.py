"""Mask R-CNN on the nuclei of the 2018 Data Science Bowl.

Paper     He et al., Mask R-CNN, ICCV 2017 (arXiv:1703.06870), in a small version: ResNet-34 at half
          its width with batch norm over all devices, a pyramid of 64 channels, small anchors; from
          scratch. --variant imagenet has the paper's pyramid and heads on a ResNet of full width,
          by default 18, from ImageNet weights (--initial.name torchvision/resnet18), whose norms,
          stem and first stage stay as they are.
Published Caicedo et al., Nature Methods 2019 (doi:10.1038/s41592-019-0612-7): the competition's
          best has mean precision 0.631 on its secret second-stage images. We hold out first-stage
          training images, which are easier, so the numbers do not compare.
Protocol  Windows of 256² at 0.8 to 1.6 times the image's size; one fifth of the images held out, by
          a hash of their names; tested at the images' own size, up to 400 detections per image.
Cost      not yet measured. 500 of its steps took an hour on 2 busy CPU cores: mask AP 0.363.
Data      segjax data prepare dsb2018 --source DIR
Command   python experiments/mask_rcnn/dsb2018.py --workdir runs/dsb2018
"""

from dataclasses import dataclass

from segjax.commands.launch import run
from segjax.data.sources.splits import as_objects, prepared_splits
from segjax.models.detections import DetectionConfig
from segjax.models.regions import RegionSampling
from segjax.models.rpn import ProposalConfig
from segjax.recipes.mask_rcnn import (
    FROZEN,
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


@dataclass(frozen=True, kw_only=True)
class Config(MaskRCNNExperimentConfig):
    """A small Mask R-CNN on nuclei."""

    train: TrainConfig = TrainConfig(
        num_steps=2000, batch_size=4, eval_every=1000, eval_batch_size=1, checkpoint_every=200
    )
    optimizer: OptimizerConfig = OptimizerConfig(
        name="adamw",
        learning_rate=2e-3,
        reference_batch_size=4,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_steps=100,
        clip_norm=5.0,
    )
    network: MaskRCNNConfig = MaskRCNNConfig(
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
    )
    input: InputConfig = InputConfig(
        resize=Crop((256, 256), scale=(0.8, 1.6)),
        flip_vertical=True,
        buckets=((256, 256),),
        max_objects=160,
        mask_size=56,
    )
    proposals: ProposalConfig = ProposalConfig(pre_nms=500, post_nms=250)
    region_sampling: RegionSampling = RegionSampling(size=128, positive_fraction=0.33)
    prediction: MaskRCNNPredictionConfig = MaskRCNNPredictionConfig(
        scales=(1.0,),
        buckets=((256, 256), (256, 320), (384, 384), (544, 704), (1056, 1408)),
        max_detections=(1, 100, 400),
    )


VARIANTS = {
    "imagenet": {
        "optimizer": OptimizerConfig(
            learning_rate=0.005,
            reference_batch_size=4,
            weight_decay=1e-4,
            schedule="cosine",
            multipliers=FROZEN,
            warmup_steps=200,
            clip_norm=10.0,
        ),
        "network": MaskRCNNConfig(
            backbone="resnet18",
            pixels="imagenet",
            anchor_sizes=(8.0, 16.0, 32.0, 64.0, 128.0),
            proposals=ProposalConfig(pre_nms=1000, post_nms=600),
            detections=DetectionConfig(max_detections=400, max_candidates=600),
        ),
    },
}


def build(config: Config) -> Experiment:
    splits = prepared_splits("dsb2018", data_dir=config.data_dir, evaluation={"test": "test"})
    return mask_rcnn_experiment(
        config,
        as_objects(splits, empty_share=config.input.empty_share, seed=config.seed),
        nuclei_score=True,
    )


if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
