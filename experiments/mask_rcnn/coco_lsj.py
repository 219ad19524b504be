"""Mask R-CNN on COCO from scratch with large-scale jitter: detectron2's "new baselines".

Published detectron2's MODEL_ZOO.md, box AP / mask AP on val2017, by --variant (R50 unless said):
            (default), 100 epochs 44.6 / 40.3, 200-epochs 46.3 / 41.7, 400-epochs 47.4 / 42.5,
            r101 (100 epochs) 46.4 / 41.6, r101-200-epochs 48.0 / 43.1, r101-400-epochs 48.9 / 43.7
          The jitter: Ghiasi et al., CVPR 2021 (arXiv:2012.07177).
Protocol  184,375 steps of 64 windows of 1024² (100 epochs) from images scaled by 0.1 to 2, boxes
          recomputed from the masks; SGD with learning rate 0.1, × 0.1 at 8/9 and 26/27 of the
          steps, 500 steps of warm-up from 0.067 of it; weight decay 4e-5 except on norms; batch
          norm everywhere, over all devices; nothing pre-trained, nothing frozen; bfloat16. Tested
          at a short side of 800.
Cost      not yet measured.
Data      segjax data prepare coco --source DIR
Command   python experiments/mask_rcnn/coco_lsj.py --workdir runs/coco_lsj
"""

from dataclasses import dataclass, replace

from segjax.commands.launch import run
from segjax.recipes.mask_rcnn import (
    InputConfig,
    Jitter,
    MaskRCNNExperimentConfig,
    coco_experiment,
)
from segjax.recipes.mask_rcnn_networks import MaskRCNNConfig
from segjax.training.configuration import TrainConfig
from segjax.training.optimizer import OptimizerConfig

NETWORK = MaskRCNNConfig(
    backbone="resnet50",
    pixels="imagenet",
    norm="batch",
    head_norm="batch",
    rpn_convolutions=2,
    box_convolutions=4,
    box_fully_connected=1,
    bfloat16=True,
)


def train(epochs: int = 100) -> TrainConfig:
    steps = epochs * 184_375 // 100
    return TrainConfig(
        num_steps=steps,
        batch_size=64,
        eval_every=steps // 10,
        eval_batch_size=1,
        checkpoint_every=2000,
    )


@dataclass(frozen=True, kw_only=True)
class Config(MaskRCNNExperimentConfig):
    """Mask R-CNN from scratch with large-scale jitter."""

    train: TrainConfig = train()
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=0.1,
        reference_batch_size=64,
        weight_decay=4e-5,
        decayed=r"(kernel|(?<!norm/)bias)$",
        schedule="step",
        step_boundaries=(163_889 / 184_375, 177_546 / 184_375),
        warmup_steps=500,
        warmup_factor=0.067,
    )
    network: MaskRCNNConfig = NETWORK
    input: InputConfig = InputConfig(resize=Jitter(), buckets=((1024, 1024),))


R101 = {"network": replace(NETWORK, backbone="resnet101")}
VARIANTS = {
    "200-epochs": {"train": train(200)},
    "400-epochs": {"train": train(400)},
    "r101": R101,
    "r101-200-epochs": R101 | {"train": train(200)},
    "r101-400-epochs": R101 | {"train": train(400)},
}

build = coco_experiment

if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
