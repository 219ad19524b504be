"""Mask R-CNN on Cityscapes instances: ResNet-50 with FPN, from weights trained on COCO.

Paper     He et al., Mask R-CNN, ICCV 2017 (arXiv:1703.06870), section A: mask AP on val 31.5
          (fine annotations alone), 36.4 (from COCO weights). detectron2's MODEL_ZOO.md: 36.5
          (from COCO weights of the 3x schedule).
Protocol  detectron2's: 24,000 steps of 8 images, SGD with learning rate 0.01, × 0.1 at step 18,000;
          short sides 800 to 1024 in steps of 32; tested at 1024 × 2048. AP here is COCO's, over all
          instances. Cityscapes' own script skips instances under 10 pixels and treats groups
          separately.
Cost      not yet measured.
Data      segjax data prepare cityscapes_instances --source DIR
Command   python experiments/mask_rcnn/cityscapes.py --workdir runs/cityscapes_instances
          --initial.name detectron2/mask_rcnn_R_50_FPN --initial.weights model_final_f10217.pkl
"""

from dataclasses import dataclass

from segjax.commands.launch import run
from segjax.data.sources.splits import as_objects, prepared_splits
from segjax.recipes.mask_rcnn import (
    FROZEN,
    InputConfig,
    MaskRCNNExperimentConfig,
    MaskRCNNPredictionConfig,
    ShortSides,
    mask_rcnn_experiment,
)
from segjax.training.configuration import TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig

BUCKETS = ((1024, 2048),)


@dataclass(frozen=True, kw_only=True)
class Config(MaskRCNNExperimentConfig):
    """Mask R-CNN on Cityscapes."""

    train: TrainConfig = TrainConfig(
        num_steps=24_000, batch_size=8, eval_every=4000, eval_batch_size=1, checkpoint_every=1000
    )
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=0.01,
        reference_batch_size=8,
        weight_decay=1e-4,
        decayed=r"(kernel|bias)$",
        multipliers=FROZEN,
        schedule="step",
        step_boundaries=(18 / 24,),
        warmup_steps=1000,
    )
    input: InputConfig = InputConfig(
        resize=ShortSides(tuple(range(800, 1025, 32)), max_size=2048),
        buckets=BUCKETS,
        max_objects=150,
    )
    prediction: MaskRCNNPredictionConfig = MaskRCNNPredictionConfig(
        short_sides=(1024,), max_size=2048, buckets=BUCKETS
    )


def build(config: Config) -> Experiment:
    splits = prepared_splits("cityscapes_instances", data_dir=config.data_dir)
    return mask_rcnn_experiment(
        config, as_objects(splits, empty_share=config.input.empty_share, seed=config.seed)
    )


if __name__ == "__main__":
    run(Config, build, __file__)
