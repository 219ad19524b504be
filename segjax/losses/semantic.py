"""The loss of semantic segmentation: a weighted sum of terms, over one or several outputs."""

import math
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
    class_weights: tuple[float, ...] | Literal["root", "balanced"] | None = None
    """A factor of the cross-entropy for each class, in their order; None is 1 for all. Experiments
    on folders compute them from the training masks: balanced lets all classes count alike (1 /
    pixels of the class), root goes half of the way (1 / √pixels). The sum is still divided by the
    number of labelled pixels, not by the sum of factors as in PyTorch. Factors whose mean over the
    labelled pixels is 1, as these, keep the size of the loss, and so the learning rate. Pixel
    weights multiply them; the Dice has none."""
    focal: float = 0.0
    """Exponent gamma of the focal loss: the cross-entropy of a pixel whose class has probability p
    is multiplied by (1 - p)^gamma. 0 is the plain cross-entropy; Lin et al. (2017) use 2."""
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
        if not (self.focal >= 0 and math.isfinite(self.focal)):
            raise ValueError(
                f"focal={self.focal}; expected 0 (off) or a positive exponent, such as 2"
            )
        factors = self.class_weights
        named = isinstance(factors, str)
        if not (factors is None or named) and not (
            all(factor >= 0 and math.isfinite(factor) for factor in factors) and any(factors)
        ):
            raise ValueError(
                f"class_weights={factors}; expected a number of 0 or more for each class, and one "
                "above 0; the inverse frequency of a class without pixels is infinite"
            )
        if not self.cross_entropy and (self.focal or factors is not None):
            raise ValueError(
                "class_weights and focal change the cross-entropy, but its weight is "
                f"cross_entropy={self.cross_entropy}"
            )

    def check_classes(self, classes: tuple[str, ...]):
        """Raises a ValueError unless `class_weights` has a factor for each class."""
        if isinstance(self.class_weights, str):
            raise ValueError(
                f"loss.class_weights={self.class_weights} is computed from masks in folders "
                f"(experiments/unet/folder.py and experiments/deeplab/folder.py); give "
                f"{len(classes)} numbers here, one for each class ({', '.join(classes)})"
            )
        if self.class_weights is not None and len(self.class_weights) != len(classes):
            raise ValueError(
                f"loss.class_weights has {len(self.class_weights)} numbers; expected "
                f"{len(classes)}, one for each class ({', '.join(classes)}). Ignored pixels have "
                "none, but the background has one if it is a class"
            )

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
        options = {
            "weights": batch.get("weights"),
            "class_weights": self.class_weights,
            "focal": self.focal,
        }
        if self.cross_entropy and self.hard_pixels < 1:
            terms["cross_entropy"] = hard_pixel_cross_entropy(
                logits, batch["labels"], share=self.hard_pixels, **options
            )
        elif self.cross_entropy:
            terms["cross_entropy"] = cross_entropy(
                logits, batch["labels"], normalizer=batch.get("normalizer"), **options
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
