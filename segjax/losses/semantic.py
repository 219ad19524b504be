"""The loss of semantic segmentation: a weighted sum of cross-entropy and Dice."""

from dataclasses import dataclass
from typing import Literal

from segjax.losses.cross_entropy import cross_entropy
from segjax.losses.dice import dice_loss


@dataclass(frozen=True)
class SemanticLoss:
    """Weights of the terms; a term of weight zero is not computed."""

    cross_entropy: float = 1.0
    dice: float = 0.0
    dice_over: Literal["sample", "batch"] = "sample"
    dice_background: bool = False

    def __post_init__(self):
        if not (self.cross_entropy or self.dice):
            raise ValueError("the loss needs a term whose weight is not zero")

    def __call__(self, logits, batch, *, axis_name: str | None = None):
        """Computes the loss of a batch on one device.

        Args:
          logits: [batch, height, width, classes].
          batch: "labels" [batch, height, width], and optionally "weights" of the same shape, which
            act on the cross-entropy, and "normalizer" (see `mean_valid_pixels`).
          axis_name: of the mapped device axis, if any.

        Returns:
          The weighted sum, and a dict of its terms before weighting.
        """
        terms = {}
        if self.cross_entropy:
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
                background=self.dice_background,
                axis_name=axis_name,
            )
        return sum(getattr(self, name) * value for name, value in terms.items()), terms
