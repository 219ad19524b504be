"""Regions of interest: reading a box's features, and sampling anchors and regions in training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from segjax.ops.matching import NEITHER, POSITIVE, match, sample
from segjax.ops.roi_align import LevelRule, multilevel_roi_align, roi_align
from segjax.ops.roi_pool import roi_pool, roi_warp


@dataclass(frozen=True)
class RegionPooling:
    """How the features of a box are read from the maps."""

    method: Literal["align", "warp", "pool"] = "align"
    """RoIAlign, RoIWarp or RoIPool, as in table 2c."""
    sampling_ratio: int = 2
    """RoIAlign's points along each side of a bin; 0 adapts them to the box, as detectron2 does."""
    aligned: bool = True
    """Whether pixel centres lie at halves; False in torchvision's models."""
    level_rule: LevelRule = "detectron2"
    """Whose rounding picks the pyramid level; they differ for sides of exactly 112 · 2ⁿ."""

    def __call__(self, levels: Sequence, boxes, *, strides: Sequence[int], output_size: int):
        """Reads the features of boxes.

        Args:
          levels: maps [batch, height, width, channels]. With several, each box is read from the
            level that fits its size (Lin et al., 2017, equation 1).
          boxes: [batch, regions, 4] in pixels of the image.
          strides: each level's stride.
          output_size: side of a region's features.

        Returns:
          [batch, regions, output_size, output_size, channels].

        Raises:
          ValueError: the method is unknown, or cannot read several levels.
        """
        if self.method == "align" and len(levels) > 1:
            return multilevel_roi_align(
                levels,
                boxes,
                strides=strides,
                output_size=output_size,
                sampling_ratio=self.sampling_ratio,
                aligned=self.aligned,
                level_rule=self.level_rule,
            )
        if len(levels) > 1:
            raise ValueError(
                f"region pooling {self.method!r} reads a single map, as in table 2c; this model "
                f"has {len(levels)}"
            )
        options = {"output_size": output_size, "spatial_scale": 1.0 / strides[0]}
        if self.method == "align":
            return roi_align(
                levels[0],
                boxes,
                sampling_ratio=self.sampling_ratio,
                aligned=self.aligned,
                **options,
            )
        if self.method == "warp":
            return roi_warp(levels[0], boxes, **options)
        if self.method == "pool":
            return roi_pool(levels[0], boxes, **options)
        raise ValueError(f"region pooling is align, warp or pool; got {self.method!r}")


@dataclass(frozen=True)
class AnchorSampling:
    """How the anchors that train the RPN are sampled: Faster R-CNN, sections 3.1.2 and 3.1.3."""

    size: int = 256
    """Number of anchors sampled in an image."""
    positive_fraction: float = 0.5
    """Largest share of positive anchors."""
    positive_iou: float = 0.7
    """Anchors with at least this IoU with an object are positive, and so are each object's best."""
    negative_iou: float = 0.3
    """Anchors with less than this IoU with every object are negative."""

    def __call__(self, key, anchors, truth_boxes, truth_valid) -> dict:
        """Samples anchors of one image.

        Args:
          key: the image's own key, so that the sample does not depend on the batch.
          anchors: the anchors of all levels, [n, 4].
          truth_boxes: [objects, 4].
          truth_valid: [objects] bool.

        Returns:
          "index" [size], the anchors; "matched" [size], the object of each; "positive" [size] and
          "valid" [size]. Positive anchors come first.
        """
        chex.assert_shape(anchors, (None, 4), custom_message="anchors")
        _check_truth(truth_boxes, truth_valid, "truth_valid", bool)
        matched, labels = match(
            anchors,
            truth_boxes,
            truth_valid,
            high=self.positive_iou,
            low=self.negative_iou,
            allow_low_quality=True,
        )
        index, valid = sample(key, labels, size=self.size, positive_fraction=self.positive_fraction)
        return {
            "index": index,
            "matched": matched[index],
            "positive": valid & (labels[index] == POSITIVE),
            "valid": valid,
        }


@dataclass(frozen=True)
class RegionSampling:
    """How the regions that train the heads are sampled: Fast R-CNN, section 2.3."""

    size: int = 512
    """Number of regions sampled in an image."""
    positive_fraction: float = 0.25
    """Largest share of positive regions."""
    positive_iou: float = 0.5
    """Regions with at least this IoU with an object are positive, all others background."""

    @property
    def positives(self) -> int:
        """Largest number of positive regions in an image."""
        return int(self.size * self.positive_fraction)

    def __call__(self, key, proposals, proposals_valid, truth_boxes, truth_classes) -> dict:
        """Samples regions of one image from its proposals and the true boxes.

        Args:
          key: the image's own key, so that the sample does not depend on the batch.
          proposals, proposals_valid: [proposals, 4], [proposals] bool.
          truth_boxes: [objects, 4].
          truth_classes: integers [objects], 0 where there is no object.

        Returns:
          "boxes" [size, 4], "classes" [size] (0 = background), "matched" [size], the object of a
          positive region, "positive" [size] and "valid" [size]. Positive regions come first. If
          there are too few candidates, copies of the valid regions fill the other places, so that
          norms over the regions see no empty region.
        """
        chex.assert_shape(proposals, (None, 4), custom_message="proposals")
        chex.assert_shape(proposals_valid, proposals.shape[:1], custom_message="proposals_valid")
        chex.assert_type(proposals_valid, bool, custom_message="proposals_valid")
        _check_truth(truth_boxes, truth_classes, "truth_classes", int)
        truth_valid = truth_classes > 0
        candidates = jnp.concatenate([proposals, truth_boxes])
        available = jnp.concatenate([proposals_valid, truth_valid])
        matched, labels = match(
            candidates,
            truth_boxes,
            truth_valid,
            high=self.positive_iou,
            low=self.positive_iou,
            allow_low_quality=False,
        )
        labels = jnp.where(available, labels, NEITHER)
        index, valid = sample(key, labels, size=self.size, positive_fraction=self.positive_fraction)
        index = repeat_valid(index, valid)
        matched = matched[index]
        positive = valid & (labels[index] == POSITIVE)
        return {
            "boxes": jax.lax.stop_gradient(candidates[index]),
            "classes": jnp.where(positive, truth_classes[matched], 0),
            "matched": matched,
            "positive": positive,
            "valid": valid,
        }


def _check_truth(boxes, entries, name, dtype):
    """Asserts that `entries`, called `name` in the message, has an entry for each true box."""
    chex.assert_shape(boxes, (None, 4), custom_message="truth_boxes")
    chex.assert_shape(entries, boxes.shape[:1], custom_message=name)
    chex.assert_type(entries, dtype, custom_message=name)


def repeat_valid(values, valid):
    """Overwrites invalid entries with copies of the valid ones in turn.

    Args:
      values: [n, ...].
      valid: [n] bool; valid entries come first.
    """
    chex.assert_shape(valid, values.shape[:1], custom_message="valid")
    chex.assert_type(valid, bool, custom_message="valid")
    count = jnp.maximum(jnp.sum(valid, dtype=jnp.int32), 1)
    return values[jnp.arange(valid.shape[0], dtype=jnp.int32) % count]
