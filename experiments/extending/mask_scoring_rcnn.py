"""Add a head to Mask R-CNN: Mask Scoring R-CNN, on generated cells.

Paper     Huang et al., Mask Scoring R-CNN, CVPR 2019 (arXiv:1903.00241): ResNet-50 with FPN has
          mask AP 36.0 on COCO.
Protocol  experiments/mask_rcnn/synthetic_cells.py with the paper's MaskIoU head (section 3.2), as
          narrow as the other heads. The target is the IoU of a region's mask, thresholded at one
          half, with its object. The loss is the squared error ("mask_iou" in the log). A
          detection's score is its class score times its predicted IoU.
Data      synthetic_cells, made by code on first use.
Cost      not yet measured.
Command   python experiments/extending/mask_scoring_rcnn.py --workdir runs/mask_scoring_rcnn
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from segjax.commands.launch import run
from segjax.losses.instance import take
from segjax.models import MaskRCNN
from segjax.models.layers import ConvolutionNorm, max_pool
from segjax.models.roi_heads import mask_probabilities
from segjax.ops import box_area
from segjax.training.experiment import Experiment, load_module
from segjax.training.experiment_files import experiments_folder

cells = load_module(experiments_folder() / "mask_rcnn" / "synthetic_cells.py")


@dataclass(frozen=True, kw_only=True)
class Config(cells.Config):
    """A small Mask Scoring R-CNN on generated cells."""

    mask_iou: float = 1.0
    """Weight of the MaskIoU head's loss."""


class MaskIoUHead(nn.Module):
    """Predicts the IoU of a region's mask with its object, for each class (figure 3).

    Attributes:
      num_classes: the number of classes without the background.
      features: the channels of the four convolutions, the last of which has stride 2.
      fc_features: the features of the two fully connected layers.
    """

    num_classes: int
    features: int = 256
    fc_features: int = 1024
    dtype: Any = None

    @nn.compact
    def __call__(self, features, masks):
        """Maps [regions, h, w, channels] and masks [regions, 2h, 2w] to [regions, classes]."""
        masks = max_pool(masks[..., None], size=2, stride=2).astype(features.dtype)
        x = jnp.concatenate([features, masks], axis=-1)
        for stride in (1, 1, 1, 2):
            x = ConvolutionNorm(self.features, stride=stride, norm=None, dtype=self.dtype)(x)
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.fc_features, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class MaskScoringRCNN(MaskRCNN):
    """Mask R-CNN whose scores account for the quality of the masks."""

    def setup(self):
        super().setup()
        self.mask_iou_head = MaskIoUHead(
            self.num_classes, self.head_features, self.fc_features, dtype=self.dtype
        )

    def mask_outputs(self, levels, regions, train: bool = False) -> dict:
        """Adds "mask_iou" [batch, regions, classes], for the mask of each region's class."""
        outputs = super().mask_outputs(levels, regions, train)
        features, logits = (
            x.reshape(-1, *x.shape[2:]) for x in (outputs["features"], outputs["logits"])
        )
        masks = mask_probabilities(logits, regions["classes"].reshape(-1), loss=self.mask_loss)
        scores = self.mask_iou_head(features, masks)
        return outputs | {"mask_iou": scores.reshape(*regions["classes"].shape, -1)}

    def refine(self, found: dict, outputs: dict) -> dict:
        expected = jnp.clip(of_class(outputs["mask_iou"], found["classes"]), 0.0, 1.0)
        return found | {"scores": found["scores"] * expected}


def of_class(values, classes):
    """Takes the entry of each region's class: [batch, regions, classes] → [batch, regions]."""
    index = jnp.maximum(classes, 1) - 1
    return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]


def mask_iou_loss(outputs, batch, regions, *, mask_loss: str, weight: float):
    """Computes the squared error of each region's predicted IoU (section 3.2)."""
    targets, classes = regions["mask_targets"], regions["classes"]
    logits = outputs["logits"].reshape(-1, *outputs["logits"].shape[2:])
    masks = mask_probabilities(logits, classes.reshape(-1), loss=mask_loss)
    masks = (masks.reshape(targets.shape) > 0.5).astype(jnp.float32)
    cell = box_area(regions["boxes"]) / (targets.shape[2] * targets.shape[3])
    intersection = jnp.sum(masks * targets, axis=(2, 3)) * cell
    # The whole object's area, including the part outside the region.
    cover = jnp.mean(batch["masks"].astype(jnp.float32), axis=(2, 3)) / 255
    objects = take(cover * box_area(batch["boxes"]), regions["matched"])
    union = jnp.sum(masks, axis=(2, 3)) * cell + objects - intersection
    iou = jnp.clip(intersection / jnp.maximum(union, 1e-6), 0.0, 1.0)
    return weight * (of_class(outputs["mask_iou"], classes) - iou) ** 2


def build(config: Config) -> Experiment:
    experiment = cells.build(config)
    num_classes = len(experiment.task.classes) - 1
    term = partial(mask_iou_loss, mask_loss=config.network.mask_loss, weight=config.mask_iou)
    task = dataclasses.replace(
        experiment.task,
        model=config.network.model(num_classes, network=MaskScoringRCNN),
        extra_mask_losses={"mask_iou": term},
    )
    return dataclasses.replace(experiment, task=task)


if __name__ == "__main__":
    run(Config, build, __file__)
