"""Region proposal network: Ren et al., Faster R-CNN, NeurIPS 2015 (arXiv:1506.01497), section 3.1;
on a feature pyramid: Lin et al., 2017, section 4.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax.models.layers import ConvolutionNorm
from segjax.models.normalization import Norm
from segjax.ops.anchors import grid_anchors
from segjax.ops.boxes import clip_boxes, decode_boxes
from segjax.ops.initializers import normal
from segjax.ops.nms import nms

RPN_BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Anchors:
    """The reference boxes of each level.

    Attributes:
      sizes: square roots of the areas in pixels, a tuple for each level.
      aspect_ratios: height / width of the anchors.
      rounded: whether base anchors are rounded to whole pixels, as in torchvision.
      stride: "level" spaces anchors by the level's stride. "image" takes torchvision's ⌊image side
        / map side⌋, which is smaller if the stride does not divide the side (P6 of a 224 pixel
        image).
      offset: distance of the centres from a cell's top left corner, in strides.
    """

    sizes: tuple[tuple[float, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rounded: bool = False
    stride: Literal["level", "image"] = "level"
    offset: float = 0.0

    @property
    def per_position(self) -> int:
        """Number of anchors at each position of a map.

        Raises:
          ValueError: it differs between levels.
        """
        counts = {len(sizes) for sizes in self.sizes}
        if len(counts) != 1:
            raise ValueError(f"anchors.sizes needs the same number on each level; got {self.sizes}")
        return counts.pop() * len(self.aspect_ratios)

    def of(
        self,
        map_sizes: Sequence[tuple[int, int]],
        *,
        strides: Sequence[int],
        image_size: tuple[int, int],
    ) -> list[jax.Array]:
        """Computes the anchors of each level, [height · width · per_position, 4].

        Args:
          map_sizes: height and width of each level's map.
          strides: each level's stride.
          image_size: height and width of the padded image.

        Raises:
          ValueError: the number of levels is not that of `sizes`.
        """
        if len(map_sizes) != len(self.sizes):
            raise ValueError(
                f"anchors.sizes has {len(self.sizes)} levels, and the model {len(map_sizes)}"
            )
        levels = []
        for sizes, map_size, stride in zip(self.sizes, map_sizes, strides, strict=True):
            if self.stride == "image":
                stride = tuple(a // b for a, b in zip(image_size, map_size, strict=True))
            levels.append(
                grid_anchors(
                    map_size,
                    stride=stride,
                    sizes=sizes,
                    aspect_ratios=self.aspect_ratios,
                    rounded=self.rounded,
                    offset=self.offset,
                )
            )
        return levels


class RPNHead(nn.Module):
    """Objectness and box deltas of each anchor; all levels share the weights.

    Parameters: "convolution1" …, each with "convolution" and, unless it is None, "norm";
    "objectness" and "deltas".

    Attributes:
      anchors: number of anchors at each position.
      features: channels of the 3×3 convolutions; None keeps those of the map.
      convolutions: number of 3×3 convolutions before the two outputs: 1 in the paper, 2 in
        detectron2's new baselines.
      norm: normalisation after each 3×3 convolution; None gives biases instead.
    """

    anchors: int
    features: int | None = None
    convolutions: int = 1
    norm: Norm | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, levels, train: bool = False):
        """Computes the objectness and box deltas of the anchors of each level.

        Args:
          levels: maps [batch, height, width, channels].
          train: whether norms use the batch's statistics.

        Returns:
          A list of objectness [batch, n] and a list of deltas [batch, n, 4], in float32, where
          n = height · width · anchors, in the order of `Anchors.of`.
        """
        chex.assert_rank(levels, 4, custom_message="levels")
        shared = {"kernel_init": normal(0.01), "dtype": self.dtype}
        layers = [
            ConvolutionNorm(
                self.features or levels[0].shape[-1],
                norm=self.norm,
                name=f"convolution{i}",
                **shared,
            )
            for i in range(1, self.convolutions + 1)
        ]
        point = {"kernel_size": 1, "norm": None, "activation": None, **shared}
        objectness = ConvolutionNorm(self.anchors, name="objectness", **point)
        deltas = ConvolutionNorm(4 * self.anchors, name="deltas", **point)
        scores, moves = [], []
        for x in levels:
            batch = x.shape[0]
            for layer in layers:
                x = layer(x, train)
            scores.append(objectness(x).astype(jnp.float32).reshape(batch, -1))
            moves.append(deltas(x).astype(jnp.float32).reshape(batch, -1, 4))
        return scores, moves


@dataclass(frozen=True)
class ProposalConfig:
    """How proposals are chosen among the anchors' boxes; the defaults are for prediction."""

    pre_nms: int = 1000
    """Number of best boxes of each level that enter the non-maximum suppression."""
    post_nms: int = 1000
    """Most proposals in an image, over all levels."""
    nms_threshold: float = 0.7
    """A box that overlaps a better one of its level by more than this IoU is suppressed."""
    min_size: float = 0.0
    """Boxes with a side of at most this many pixels are dropped; torchvision's is 1e-3."""


def propose(objectness, deltas, anchors, sizes, config: ProposalConfig) -> dict:
    """Chooses proposals as detectron2 and torchvision do: by level before NMS, by image after it.

    The boxes with the highest objectness of each level are decoded, clipped to the image and
    suppressed among themselves; the best of all remaining boxes become proposals. No gradient
    passes.

    Args:
      objectness: each level's logits, [batch, n].
      deltas: each level's box deltas, [batch, n, 4].
      anchors: each level's anchors, [n, 4].
      sizes: height and width of each image within its padding, [batch, 2].
      config: how proposals are chosen.

    Returns:
      "boxes" [batch, post_nms, 4], "objectness" [batch, post_nms] logits, descending, "valid"
      [batch, post_nms].
    """
    for name, levels in (("deltas", deltas), ("anchors", anchors)):
        chex.assert_equal(len(levels), len(objectness), custom_message=name)
    for scores, moves, boxes in zip(objectness, deltas, anchors, strict=True):
        chex.assert_rank(scores, 2, custom_message="objectness")
        chex.assert_shape(moves, (*scores.shape, 4), custom_message="deltas")
        chex.assert_shape(boxes, (scores.shape[1], 4), custom_message="anchors")
        chex.assert_shape(sizes, (scores.shape[0], 2), custom_message="sizes")

    def of_image(objectness, deltas, size):
        boxes, scores, levels = [], [], []
        for number, (score, delta, anchor) in enumerate(
            zip(objectness, deltas, anchors, strict=True)
        ):
            score, index = jax.lax.top_k(score, min(config.pre_nms, score.shape[0]))
            decoded = decode_boxes(delta[index], jnp.asarray(anchor)[index], RPN_BOX_WEIGHTS)
            boxes.append(clip_boxes(decoded, size))
            scores.append(score)
            levels.append(np.full(index.shape, number, np.int32))
        boxes, scores = jnp.concatenate(boxes), jnp.concatenate(scores)
        valid = jnp.all(boxes[:, 2:] - boxes[:, :2] > config.min_size, axis=1)
        index, kept = nms(
            boxes,
            scores,
            iou_threshold=config.nms_threshold,
            max_outputs=config.post_nms,
            valid=valid & jnp.isfinite(scores),
            groups=jnp.asarray(np.concatenate(levels)),
        )
        return {
            "boxes": jnp.where(kept[:, None], boxes[index], 0.0),
            "objectness": jnp.where(kept, scores[index], 0.0),
            "valid": kept,
        }

    return jax.vmap(of_image)(*jax.lax.stop_gradient((objectness, deltas, sizes)))
