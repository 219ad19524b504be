"""The loss of semantic segmentation: a weighted sum of terms, over one or several outputs."""

from dataclasses import dataclass
from typing import Literal

import chex
import numpy as np

from segjax.losses.cross_entropy import cross_entropy, hard_pixel_cross_entropy
from segjax.losses.dice import dice_loss


@dataclass(frozen=True)
class SemanticLoss:
    """Weights and forms of the terms; a term of weight zero is not computed."""

    cross_entropy: float = 1.0
    dice: float = 0.0
    dice_over: Literal["sample", "batch"] = "sample"
    """Compute the Dice of each image, or of the whole batch over all devices (nnU-Net)."""
    dice_background: bool = False
    """Let the background count in the Dice (mmsegmentation); data without one count all classes."""
    hard_pixels: float = 1.0
    """Average the cross-entropy over this share of an image's pixels, the hardest ones; 1 averages
    over all labelled pixels."""
    auxiliary: float = 0.4
    """Weight of the summed losses of the network's auxiliary outputs, if it has any."""
    supervise: Literal["full", "coarse"] = "full"
    """"full" compares logits and labels at full resolution. "coarse" subsamples the labels to the
    network's coarse logits, as DeepLab v1 and v2 do (v3 gains 1.2 points with "full")."""

    def __post_init__(self):
        if not (self.cross_entropy or self.dice):
            raise ValueError("the loss needs a term whose weight is not zero")
        if not 0 < self.hard_pixels <= 1:
            raise ValueError(f"hard_pixels={self.hard_pixels}; expected a share in (0, 1]")

    def __call__(self, outputs, batch, *, background: int | None = None):
        """Computes the loss of a batch on one device.

        Args:
          outputs: "logits" [batch, height, width, classes]. Some networks add "coarse_logits" and
            "auxiliary_logits" (a sequence of logits). These may have any height and width; the
            labels are subsampled to it.
          batch: "labels" [batch, height, width]; optionally "weights" of the same shape, which
            weight the cross-entropy, and "normalizer" (see `mean_valid_pixels`).
          background: the class that is the background; None if there is none.

        Returns:
          The weighted sum, and a dict of the unweighted terms.
        """
        labels = batch["labels"]
        chex.assert_rank(labels, 3, custom_message="labels")
        if "weights" in batch:
            chex.assert_shape(batch["weights"], labels.shape, custom_message="weights")
        name = "logits" if self.supervise == "full" else "coarse_logits"
        main = outputs[name]
        size = labels.shape[1:] if self.supervise == "full" else (None, None)
        chex.assert_shape(main, (labels.shape[0], *size, None), custom_message=name)
        without = None if self.dice_background else background
        terms = self._terms(main, batch, without)
        loss = self._weighted(terms)
        auxiliary = outputs.get("auxiliary_logits", ())
        if self.auxiliary and auxiliary:
            terms["auxiliary"] = sum(
                self._weighted(self._terms(logits, batch, without)) for logits in auxiliary
            )
            loss = loss + self.auxiliary * terms["auxiliary"]
        return loss, terms

    def _weighted(self, terms):
        return sum(getattr(self, name) * value for name, value in terms.items())

    def _terms(self, logits, batch, without):
        batch = _subsample(batch, logits.shape[1:3])
        terms = {}
        if self.cross_entropy and self.hard_pixels < 1:
            terms["cross_entropy"] = hard_pixel_cross_entropy(
                logits, batch["labels"], share=self.hard_pixels, weights=batch.get("weights")
            )
        elif self.cross_entropy:
            terms["cross_entropy"] = cross_entropy(
                logits,
                batch["labels"],
                weights=batch.get("weights"),
                normalizer=batch.get("normalizer"),
            )
        if self.dice:
            terms["dice"] = dice_loss(
                logits,
                batch["labels"],
                over=self.dice_over,
                without=without,
            )
        return terms


def _subsample(batch: dict, size: tuple[int, int]) -> dict:
    """Subsamples the batch's labels and weights to smaller logits, with corner pixels aligned.

    The normaliser is scaled by the number of pixels. An exact count of valid pixels would have to
    be summed over devices and micro-batches for each size.
    """
    labels = batch["labels"]
    full = labels.shape[1:3]
    if full == tuple(size):
        return batch
    rows, columns = (
        np.round(np.linspace(0, old - 1, new)).astype(int)
        for old, new in zip(full, size, strict=True)
    )
    subsampled = {
        key: batch[key][:, rows[:, None], columns] for key in ("labels", "weights") if key in batch
    }
    if "normalizer" in batch:
        share = (size[0] * size[1]) / (full[0] * full[1])
        subsampled["normalizer"] = batch["normalizer"] * share
    return batch | subsampled
