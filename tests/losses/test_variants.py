"""Losses give the same with jit, without, and on four devices that each have an example."""

from functools import partial

import numpy as np
from absl.testing import parameterized

from segjax import losses
from segjax.losses import detection
from tests.variants import EXAMPLES, VARIANTS, VariantsCase


def example(seed):
    """Two images of 4 × 5 pixels with three classes, and six regions of each."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        "logits": normal(2, 4, 5, 3),
        "labels": rng.choice([0, 1, 2, 255], (2, 4, 5)).astype(np.uint8),
        "weights": rng.uniform(size=(2, 4, 5)).astype(np.float32),
        "region_logits": normal(2, 6, 3),
        "deltas": normal(2, 6, 4),
        "targets": normal(2, 6, 4),
        "classes": rng.integers(0, 3, (2, 6)).astype(np.int32),
        "positive": rng.uniform(size=(2, 6)) < 0.5,
        "mask_logits": normal(2, 6, 4, 4, 3),
        "masks": rng.uniform(size=(2, 6, 4, 4)).astype(np.float32),
        "normalizer": np.float32(3 + seed),
    }


def pixels(loss, **options):
    return lambda x: loss(x["logits"], x["labels"], **options)


def semantic_loss(x):
    outputs = {"logits": x["logits"], "auxiliary_logits": (x["logits"][:, ::2, ::2],)}
    loss = losses.SemanticLoss(dice=0.5, class_weights=(0.5, 1.0, 2.0), focal=2.0)
    return loss(outputs, {name: x[name] for name in ("labels", "weights")})


PIXELS = {
    "SemanticLoss": semantic_loss,
    "cross_entropy": lambda x: losses.cross_entropy(x["logits"], x["labels"], weights=x["weights"]),
    "dice_loss": pixels(losses.dice_loss),
    "hard_pixel_cross_entropy": pixels(losses.hard_pixel_cross_entropy, share=0.2),
    "mean_valid_pixels": lambda x: losses.mean_valid_pixels(x["labels"]),
    "pixel_cross_entropy": pixels(losses.pixel_cross_entropy),
}
DETECTION = {
    "box_loss": lambda x, **options: detection.box_loss(
        x["deltas"], x["targets"], x["positive"], beta=1.0, **options
    ),
    "class_loss": lambda x, **options: detection.class_loss(
        x["region_logits"], x["classes"], x["positive"], **options
    ),
    "mask_loss": lambda x, **options: detection.mask_loss(
        x["mask_logits"][..., 0], x["masks"], x["positive"], **options
    ),
    "objectness_loss": lambda x, **options: detection.objectness_loss(
        x["region_logits"][..., 0], x["classes"] > 0, x["positive"], **options
    ),
    "softmax_mask_loss": lambda x, **options: detection.softmax_mask_loss(
        x["mask_logits"], x["masks"], x["classes"], x["positive"], **options
    ),
}


def normalized(loss, x):
    return loss(x, normalizer=x["normalizer"])


CASES = PIXELS | {name: partial(normalized, loss) for name, loss in DETECTION.items()}


def test_the_cases_are_all_public_losses():
    assert set(PIXELS) == set(losses.__all__)
    assert set(DETECTION) == {name for name in vars(detection) if name.endswith("_loss")}


class LossTest(VariantsCase):
    @VARIANTS
    @parameterized.named_parameters(CASES.items())
    def test_same_result(self, function):
        self.check(function, [example(seed) for seed in range(EXAMPLES)])
