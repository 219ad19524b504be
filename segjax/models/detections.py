"""Turns classified regions into detections: Fast R-CNN, section 3; Mask R-CNN, section 3.1."""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp

from segjax.ops.boxes import clip_boxes, decode_boxes
from segjax.ops.nms import nms

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # scale the box head's deltas, as in Fast R-CNN's code


@dataclass(frozen=True)
class DetectionConfig:
    """How detections are chosen among the box head's boxes."""

    score_threshold: float = 0.05
    """Boxes must score above this."""
    nms_threshold: float = 0.5
    """A box that overlaps a better one of its class by more than this IoU is suppressed."""
    max_detections: int = 100
    """Most detections in an image; LVIS takes 300, with a lower score threshold."""
    max_candidates: int = 4096
    """Number of best-scoring boxes that enter the suppression. The limit rarely matters: a few
    hundred of 1,000 regions × 80 classes have a score above 0.05."""
    min_size: float = 0.0
    """Boxes with a side of at most this many pixels are dropped; torchvision's is 0.01."""

    def __post_init__(self):
        for name in ("score_threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}; expected 0 to 1")
        for name in ("max_detections", "max_candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; expected at least 1")


def detect(logits, deltas, proposals, valid, sizes, config: DetectionConfig) -> dict:
    """Turns the box head's outputs into detections.

    Args:
      logits: [batch, regions, 1 + classes], background first.
      deltas: [batch, regions, classes or 1, 4].
      proposals, valid: [batch, regions, 4], [batch, regions] bool.
      sizes: height and width of each image within its padding, [batch, 2].
      config: how detections are chosen.

    Returns:
      "boxes" [batch, detections, 4], "scores" [batch, detections], descending, "classes" [batch,
      detections] from 1 on, "valid" [batch, detections]; zeros where not valid.
    """
    chex.assert_rank(logits, 3, custom_message="logits")
    batch, regions, outputs = logits.shape
    chex.assert_shape(deltas, (batch, regions, {1, outputs - 1}, 4), custom_message="deltas")
    chex.assert_shape(proposals, (batch, regions, 4), custom_message="proposals")
    chex.assert_shape(valid, (batch, regions), custom_message="valid")
    chex.assert_type(valid, bool, custom_message="valid")
    chex.assert_shape(sizes, (batch, 2), custom_message="sizes")

    def of_image(logits, deltas, proposals, valid, size):
        scores = jax.nn.softmax(logits)[:, 1:]
        regions, classes = scores.shape
        boxes = decode_boxes(deltas, proposals[:, None], BOX_WEIGHTS)
        boxes = jnp.broadcast_to(clip_boxes(boxes, size), (regions, classes, 4)).reshape(-1, 4)
        labels = jnp.broadcast_to(jnp.arange(1, classes + 1, dtype=jnp.int32), scores.shape)
        usable = jnp.repeat(valid, classes) & jnp.all(
            boxes[:, 2:] - boxes[:, :2] > config.min_size, axis=1
        )
        usable = usable & (scores.reshape(-1) > config.score_threshold)
        count = min(config.max_candidates, regions * classes)
        scores, index = jax.lax.top_k(jnp.where(usable, scores.reshape(-1), -1.0), count)
        boxes, labels = boxes[index], labels.reshape(-1)[index]
        index, kept = nms(
            boxes,
            scores,
            iou_threshold=config.nms_threshold,
            max_outputs=config.max_detections,
            valid=scores >= 0,
            groups=labels,
        )
        return {
            "boxes": jnp.where(kept[:, None], boxes[index], 0.0),
            "scores": jnp.where(kept, scores[index], 0.0),
            "classes": jnp.where(kept, labels[index], 0),
            "valid": kept,
        }

    return jax.vmap(of_image)(logits, deltas, proposals, valid, sizes)
