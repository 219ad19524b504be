"""The loss of Mask R-CNN: a weighted sum of five terms of the network's outputs."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from segjax.losses import detection
from segjax.ops.classes import select_class
from segjax.ops.devices import mean_count


@dataclass(frozen=True)
class DetectionLoss:
    """Weights and forms of the five terms; the defaults are detectron2's."""

    objectness: float = 1.0
    rpn_box: float = 1.0
    classes: float = 1.0
    box: float = 1.0
    mask: float = 1.0
    rpn_beta: float = 0.0
    """β of the RPN's smooth L1 loss; torchvision and the paper's code use 1/9."""
    box_beta: float = 0.0
    """β of the box head's smooth L1 loss; torchvision uses 1/9, the paper's code 1."""
    rpn_normalizer: Literal["fixed", "sampled"] = "fixed"
    """Divide the RPN's losses by the number of anchors requested ("fixed", as in detectron2) or
    actually sampled ("sampled", as in torchvision)."""

    def weighted(self, terms: dict):
        """Returns the weighted sum of terms."""
        return sum(getattr(self, name) * term for name, term in terms.items())

    def rpn_terms(self, outputs: dict) -> dict:
        """Computes the terms "objectness" and "rpn_box" on the sampled anchors.

        Args:
          outputs: the network's outputs; see `segjax.tasks.InstanceTask.extra_losses`.
        """
        anchors = outputs["sampled_anchors"]
        index, positive, valid = anchors["index"], anchors["positive"], anchors["valid"]
        normalizer = float(index.size) if self.rpn_normalizer == "fixed" else mean_count(valid)
        objectness, deltas = (
            take(jnp.concatenate(outputs[name], axis=1), index)
            for name in ("objectness", "anchor_deltas")
        )
        return {
            "objectness": detection.objectness_loss(
                objectness, positive, valid, normalizer=normalizer
            ),
            "rpn_box": detection.box_loss(
                deltas,
                anchors["box_targets"],
                positive,
                beta=self.rpn_beta,
                normalizer=normalizer,
            ),
        }

    def box_terms(self, outputs: dict) -> dict:
        """Computes the terms "classes" and "box" on the sampled regions."""
        regions, deltas = outputs["regions"], outputs["box_deltas"]
        if deltas.shape[2] > 1:  # one box for each class
            deltas = select_class(deltas, jnp.maximum(regions["classes"], 1) - 1, axis=2)
        else:
            deltas = deltas[:, :, 0]
        normalizer = mean_count(regions["valid"])
        return {
            "classes": detection.class_loss(
                outputs["class_logits"],
                regions["classes"],
                regions["valid"],
                normalizer=normalizer,
            ),
            "box": detection.box_loss(
                deltas,
                regions["box_targets"],
                regions["positive"],
                beta=self.box_beta,
                normalizer=normalizer,
            ),
        }

    @staticmethod
    def mask_term(logits, regions: dict, *, form: Literal["sigmoid", "softmax"], normalizer):
        """Computes the mask loss of regions, summed over the positive ones / normaliser.

        Args:
          logits: [batch, regions, height, width, outputs].
          regions: "classes" and "positive" [batch, regions], "mask_targets" [batch, regions,
            height, width].
          form: form of the network's masks; see `segjax.models.MaskRCNN`.
          normalizer: scalar, the number of positive regions.
        """
        targets, positive = regions["mask_targets"], regions["positive"]
        if form == "softmax":
            return detection.softmax_mask_loss(
                logits, targets, regions["classes"], positive, normalizer=normalizer
            )
        if logits.shape[-1] > 1:  # one mask for each class
            logits = select_class(logits, jnp.maximum(regions["classes"], 1) - 1)
        else:
            logits = logits[..., 0]
        return detection.mask_loss(logits, targets, positive, normalizer=normalizer)


def take(values, index):
    """Takes the entries of [batch, n, ...] at `index` [batch, m]: [batch, m, ...]."""
    return jax.vmap(lambda of_image, places: of_image[places])(values, index)
