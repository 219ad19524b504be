"""Mask R-CNN on generated cells, from scratch: minutes on 2 cores, nothing to download.

Paper     He et al., Mask R-CNN, ICCV 2017, in a small version: ResNet-34 at a quarter of its width
          with batch norm, a pyramid of 64 channels, narrower heads, fewer proposals, AdamW.
Data      synthetic_cells, made by code on first use: touching, textured, noisy cells.
Expected  mask AP50 ≥ 0.85 on held-out images.
Cost      15 minutes on 2 busy CPU cores; mask AP 0.832, AP50 0.990 on test.
Command   python experiments/mask_rcnn/synthetic_cells.py --workdir runs/mask_rcnn_cells
"""

from dataclasses import dataclass

from segjax.commands.launch import run
from segjax.data.sources.splits import as_objects, generated_splits
from segjax.models.detections import DetectionConfig
from segjax.models.regions import RegionSampling
from segjax.models.rpn import ProposalConfig
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


@dataclass(frozen=True, kw_only=True)
class Config(MaskRCNNExperimentConfig):
    """A small Mask R-CNN on generated cells."""

    train: TrainConfig = TrainConfig(
        num_steps=400, batch_size=4, eval_every=200, checkpoint_every=100, log_every=10
    )
    optimizer: OptimizerConfig = OptimizerConfig(
        name="adamw",
        learning_rate=2e-3,
        reference_batch_size=4,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_steps=50,
        clip_norm=5.0,
    )
    network: MaskRCNNConfig = MaskRCNNConfig(
        backbone="resnet34",
        width_multiplier=0.25,
        pixels="tensorflow",
        fpn_features=64,
        norm="batch",
        anchor_sizes=(16.0, 32.0, 64.0, 128.0, 256.0),
        fc_features=256,
        head_features=64,
        proposals=ProposalConfig(pre_nms=200, post_nms=150),
        detections=DetectionConfig(max_candidates=512),
    )
    input: InputConfig = InputConfig(
        resize=Crop((256, 256)),
        flip_vertical=True,
        buckets=((256, 256),),
        max_objects=64,
        mask_size=56,
    )
    proposals: ProposalConfig = ProposalConfig(pre_nms=300, post_nms=150)
    region_sampling: RegionSampling = RegionSampling(size=96, positive_fraction=0.33)
    prediction: MaskRCNNPredictionConfig = MaskRCNNPredictionConfig(
        short_sides=(256,), max_size=256, buckets=((256, 256),)
    )


def build(config: Config) -> Experiment:
    splits = generated_splits(
        "synthetic_cells",
        data_dir=config.data_dir,
        train="train",
        evaluation={"validation": "validation", "test": "test"},
    )
    return mask_rcnn_experiment(
        config,
        as_objects(splits, empty_share=config.input.empty_share, seed=config.seed),
        nuclei_score=True,
    )


if __name__ == "__main__":
    run(Config, build, __file__)
