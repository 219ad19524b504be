"""Ablations of the Mask R-CNN paper on COCO: its tables 2a to 2e, as variants.

Paper     He et al., ICCV 2017 (arXiv:1703.06870), mask AP on minival (our val2017), by --variant:
          2a  r50-c4 30.3, r101-c4 32.7, r50-fpn (default) 33.6, r101-fpn 35.4, x101-fpn 36.7
              (the paper's ResNeXt is 64 × 4d; ours 32 × 8d)
          2b  with r50-c4 30.3: softmax 24.8
          2c  with r50-c4 30.3: roi-pool 26.9, roi-warp 27.2
          2d  r50-c5 (stride 32, RoIAlign) 30.9, r50-c5-roi-pool 23.6
          2e  with r50-fpn 33.6: mlp 31.5
          section 4.2, with r50-c4: class-agnostic 29.7
Protocol  160,000 steps of 16 images, SGD with learning rate 0.02, × 0.1 at step 120,000; short side
          800, no augmentation but flips; 64 regions per image with C4, 512 with FPN. Trained on
          train2017, which is the paper's trainval35k, from MSRA's ImageNet weights.
Cost      not yet measured.
Data      segjax data prepare coco --source DIR
Command   python experiments/mask_rcnn/coco_paper_tables.py --workdir runs/paper_r50_fpn
          --initial.name detectron2/resnet50 --initial.weights R-50.pkl
"""

from dataclasses import dataclass

from segjax.commands.launch import run
from segjax.losses.instance import DetectionLoss
from segjax.models.regions import RegionPooling, RegionSampling
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


def optimizer(*frozen) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=0.02,
        reference_batch_size=16,
        weight_decay=1e-4,
        decayed=r"(kernel|bias)$",
        multipliers=(*FROZEN, *frozen),
        schedule="step",
        step_boundaries=(120 / 160,),
        warmup_steps=500,
    )


@dataclass(frozen=True, kw_only=True)
class Config(MaskRCNNExperimentConfig):
    """Mask R-CNN as in the paper."""

    train: TrainConfig = TrainConfig(
        num_steps=160_000,
        batch_size=16,
        eval_every=20_000,
        eval_batch_size=1,
        checkpoint_every=2000,
    )
    optimizer: OptimizerConfig = optimizer()
    input: InputConfig = InputConfig(resize=ShortSides((800,)))
    # The losses of the authors' code, Detectron.
    loss: DetectionLoss = DetectionLoss(rpn_beta=1 / 9, box_beta=1.0)


def one_map(neck: str, **network) -> dict:
    """Settings for the head of C4 or C5 on a single map."""
    settings = {
        "network": MaskRCNNConfig(neck=neck, proposals=ProposalConfig(pre_nms=6000), **network),
        "proposals": ProposalConfig(pre_nms=12_000, post_nms=2000),
    }
    if neck == "c4":
        settings["region_sampling"] = RegionSampling(size=64)
        settings["optimizer"] = optimizer(("^box_head/.*/norm/", 0.0))
    return settings


VARIANTS = {
    "r50-c4": one_map("c4"),
    "r101-c4": one_map("c4", backbone="resnet101_msra"),
    "r101-fpn": {"network": MaskRCNNConfig(backbone="resnet101_msra")},
    "x101-fpn": {"network": MaskRCNNConfig(backbone="resnext101", pixels="facebook")},
    "softmax": one_map("c4", mask_loss="softmax"),
    "roi-pool": one_map("c4", pooling=RegionPooling("pool")),
    "roi-warp": one_map("c4", pooling=RegionPooling("warp")),
    "r50-c5": one_map("c5"),
    "r50-c5-roi-pool": one_map("c5", pooling=RegionPooling("pool")),
    "mlp": {"network": MaskRCNNConfig(mask_network="mlp")},
    "class-agnostic": one_map("c4", class_agnostic_masks=True),
}

build = coco_experiment

if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
