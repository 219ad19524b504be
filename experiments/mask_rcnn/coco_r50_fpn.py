"""Mask R-CNN on COCO 2017 as detectron2 trains it, by default ResNet-50 with FPN.

Paper     He et al., Mask R-CNN, ICCV 2017 (arXiv:1703.06870); its own tables are in
          coco_paper_tables.py. detectron2's MODEL_ZOO.md, box AP / mask AP on val2017, by
          --variant:
            (default), 1x          38.6 / 35.2        3x               41.0 / 37.2
            c4-1x                  36.8 / 32.2        c4-3x            39.8 / 34.4
            dc5-1x                 38.3 / 34.2        dc5-3x           40.0 / 35.9
            r101-3x                42.9 / 38.6        x101-3x          44.3 / 39.5
            r101-c4-3x             42.6 / 36.7        r101-dc5-3x      41.9 / 37.3
            group-norm-3x          42.6 / 38.6        (from detectron2's R-50-GN weights)
            group-norm-scratch     39.9 / 36.6        (3x, nothing pre-trained)
          torchvision's references/detection: torchvision 37.9 / 34.6.
Protocol  90,000 steps of 16 images (270,000 for 3x), SGD with learning rate 0.02, × 0.1 at 2/3 and
          8/9 of the steps (3x: 7/9 and 25/27), 1,000 steps of warm-up; short sides 640 to 800;
          tested at 800. The norms and the first two stages keep MSRA's ImageNet weights.
          Differences from detectron2: images are padded to two shapes, so each is compiled once;
          masks are stored as 112 × 112 within their boxes; RoIAlign takes 2 × 2 points per bin.
Cost      not yet measured.
Data      segjax data prepare coco --source DIR
Command   python experiments/mask_rcnn/coco_r50_fpn.py --workdir runs/coco_r50_fpn
          --initial.name detectron2/resnet50 --initial.weights R-50.pkl
"""

from dataclasses import dataclass, replace

from segjax.commands.launch import run
from segjax.losses.instance import DetectionLoss
from segjax.models.regions import RegionPooling
from segjax.models.rpn import ProposalConfig
from segjax.recipes.mask_rcnn import (
    FROZEN,
    InputConfig,
    MaskRCNNExperimentConfig,
    ShortSides,
    coco_experiment,
)
from segjax.recipes.mask_rcnn_networks import MaskRCNNConfig
from segjax.training.configuration import TrainConfig
from segjax.training.optimizer import OptimizerConfig


def train(num_steps: int = 90_000) -> TrainConfig:
    return TrainConfig(
        num_steps=num_steps,
        batch_size=16,
        eval_every=num_steps // 9,
        eval_batch_size=1,
        checkpoint_every=2000,
    )


def optimizer(**changes) -> OptimizerConfig:
    return replace(MaskRCNNExperimentConfig.optimizer, **changes)


@dataclass(frozen=True, kw_only=True)
class Config(MaskRCNNExperimentConfig):
    """Mask R-CNN on COCO 2017."""

    train: TrainConfig = train()


THREE_TIMES = {
    "train": train(270_000),
    "optimizer": optimizer(step_boundaries=(210 / 270, 250 / 270)),
}
# Heads on a single map: detectron2's proposals for C4 and DC5, in training and prediction.
ONE_MAP = {"proposals": ProposalConfig(pre_nms=12_000, post_nms=2000)}
TEST_PROPOSALS = ProposalConfig(pre_nms=6000)


def one_map(neck: str, **network) -> dict:
    settings = ONE_MAP | {"network": MaskRCNNConfig(neck=neck, proposals=TEST_PROPOSALS, **network)}
    if neck == "c4":  # its box head is the last stage, whose norms stay frozen
        frozen = (*FROZEN, ("^box_head/.*/norm/", 0.0))
        settings["optimizer"] = optimizer(multipliers=frozen)
    return settings


def three_times(settings: dict) -> dict:
    merged = THREE_TIMES | settings
    if "optimizer" in settings:
        boundaries = THREE_TIMES["optimizer"].step_boundaries
        merged["optimizer"] = replace(settings["optimizer"], step_boundaries=boundaries)
    return merged


GROUP_NORM = MaskRCNNConfig(
    backbone="resnet50",
    norm="group",
    head_norm="group",
    box_convolutions=4,
    box_fully_connected=1,
)
VARIANTS = {
    "3x": THREE_TIMES,
    "c4-1x": one_map("c4"),
    "c4-3x": three_times(one_map("c4")),
    "dc5-1x": one_map("dc5"),
    "dc5-3x": three_times(one_map("dc5")),
    "r101-3x": THREE_TIMES | {"network": MaskRCNNConfig(backbone="resnet101_msra")},
    "r101-c4-3x": three_times(one_map("c4", backbone="resnet101_msra")),
    "r101-dc5-3x": three_times(one_map("dc5", backbone="resnet101_msra")),
    "x101-3x": THREE_TIMES | {"network": MaskRCNNConfig(backbone="resnext101", pixels="facebook")},
    "group-norm-3x": THREE_TIMES
    | {
        "network": GROUP_NORM,
        "optimizer": replace(
            THREE_TIMES["optimizer"],
            decayed=r"(kernel|(?<!norm/)bias)$",
            multipliers=FROZEN[:1],
        ),
    },
    "group-norm-scratch": THREE_TIMES
    | {
        "network": GROUP_NORM,
        "optimizer": replace(
            THREE_TIMES["optimizer"], decayed=r"(kernel|(?<!norm/)bias)$", multipliers=()
        ),
    },
    "torchvision": {
        # 26 epochs of 117,266 images; the learning rate drops to a tenth at epochs 16 and 22.
        "train": train(190_558),
        "optimizer": optimizer(step_boundaries=(16 / 26, 22 / 26), decayed="."),
        "network": MaskRCNNConfig(
            backbone="resnet50",
            pixels="imagenet",
            pooling=RegionPooling(aligned=False, level_rule="torchvision"),
            anchors_rounded=True,
            anchor_stride="image",
        ),
        "proposals": ProposalConfig(pre_nms=2000, post_nms=2000, min_size=1e-3),
        "loss": DetectionLoss(rpn_beta=1 / 9, box_beta=1 / 9, rpn_normalizer="sampled"),
        "input": InputConfig(resize=ShortSides((800,))),
    },
}

build = coco_experiment

if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
