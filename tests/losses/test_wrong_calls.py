"""A wrong shape or dtype stops a loss when it is traced, and the message names the argument."""

from functools import partial

import pytest

from segjax import losses
from segjax.losses import detection
from tests.wrong_calls import calls, flags, floats, integers, trace

LOGITS, LABELS, WEIGHTS = floats(2, 4, 5, 3), integers(2, 4, 5), floats(2, 4, 5)
WRONG_LABELS = [("labels", integers(2, 5, 4)), ("labels", LOGITS), ("labels", WEIGHTS)]
WRONG_LOGITS = [("logits", floats(2, 20, 3)), ("logits", integers(2, 4, 5, 3))]
WRONG_WEIGHTS = [("weights", floats(2, 4, 1)), ("weights", floats(2, 4, 5, 1))]
WRONG_CLASS_WEIGHTS = [("class_weights", (1.0, 2.0)), ("class_weights", floats(1, 3))]


def semantic_loss(logits, labels, weights=None, coarse_logits=None, supervise="full"):
    batch = {"labels": labels} | ({} if weights is None else {"weights": weights})
    outputs = {"logits": logits, "coarse_logits": coarse_logits}
    return losses.SemanticLoss(dice=0.5, supervise=supervise)(outputs, batch)


# For each: the function, arguments that are right, and wrong ones in their place.
PIXELS = {
    "SemanticLoss": (
        semantic_loss,
        {"logits": LOGITS, "labels": LABELS, "weights": WEIGHTS},
        [
            *WRONG_LOGITS,
            ("logits", floats(2, 3, 5, 3)),
            ("labels", integers(2, 20)),
            ("labels", WEIGHTS),
            *WRONG_WEIGHTS,
        ],
    ),
    "SemanticLoss of coarse logits": (
        partial(semantic_loss, supervise="coarse"),
        {"logits": LOGITS, "labels": LABELS, "coarse_logits": floats(2, 2, 3, 3)},
        [("coarse_logits", floats(1, 2, 3, 3)), ("coarse_logits", floats(2, 6, 3))],
    ),
    "cross_entropy": (
        losses.cross_entropy,
        {"logits": LOGITS, "labels": LABELS, "weights": WEIGHTS, "normalizer": floats(2)},
        [
            *WRONG_LOGITS,
            *WRONG_LABELS,
            *WRONG_WEIGHTS,
            *WRONG_CLASS_WEIGHTS,
            ("normalizer", floats()),
            ("normalizer", floats(2, 1)),
        ],
    ),
    "dice_loss": (
        losses.dice_loss,
        {"logits": LOGITS, "labels": LABELS},
        [*WRONG_LOGITS, *WRONG_LABELS],
    ),
    "hard_pixel_cross_entropy": (
        partial(losses.hard_pixel_cross_entropy, share=0.2),
        {"logits": LOGITS, "labels": LABELS, "weights": WEIGHTS},
        [*WRONG_LOGITS, *WRONG_LABELS, *WRONG_WEIGHTS, *WRONG_CLASS_WEIGHTS],
    ),
    "mean_valid_pixels": (
        losses.mean_valid_pixels,
        {"labels": LABELS},
        [("labels", integers(4, 5)), ("labels", WEIGHTS)],
    ),
    "pixel_cross_entropy": (
        losses.pixel_cross_entropy,
        {"logits": LOGITS, "labels": LABELS},
        [
            *[("logits", floats()), ("logits", integers(2, 4, 5, 3))],
            *(*WRONG_LABELS, *WRONG_CLASS_WEIGHTS),
        ],
    ),
}
DETECTION = {
    "box_loss": (
        partial(detection.box_loss, beta=1.0),
        {
            "deltas": floats(2, 5, 4),
            "targets": floats(2, 5, 4),
            "positive": flags(2, 5),
            "normalizer": 3.0,
        },
        [
            ("deltas", floats(2, 5)),
            ("targets", floats(5, 4)),
            ("positive", flags(2, 5, 1)),
            ("positive", floats(2, 5)),
            ("normalizer", floats(2)),
        ],
    ),
    "class_loss": (
        detection.class_loss,
        {
            "logits": floats(2, 5, 3),
            "classes": integers(2, 5),
            "valid": flags(2, 5),
            "normalizer": floats(),
        },
        [
            ("logits", integers(2, 5, 3)),
            ("classes", integers(2, 5, 3)),
            ("classes", floats(2, 5)),
            ("valid", flags(5)),
            ("valid", integers(2, 5)),
            ("normalizer", floats(2)),
        ],
    ),
    "mask_loss": (
        detection.mask_loss,
        {
            "logits": floats(2, 5, 4, 4),
            "targets": floats(2, 5, 4, 4),
            "positive": flags(2, 5),
            "normalizer": floats(),
        },
        [
            ("logits", floats(4, 4)),
            ("targets", floats(2, 5, 4, 4, 1)),
            ("positive", flags(2)),
            ("positive", floats(2, 5)),
            ("normalizer", floats(2)),
        ],
    ),
    "objectness_loss": (
        detection.objectness_loss,
        {
            "logits": floats(2, 9),
            "positive": flags(2, 9),
            "valid": flags(2, 9),
            "normalizer": floats(),
        },
        [
            ("logits", integers(2, 9)),
            ("positive", flags(9)),
            ("positive", integers(2, 9)),
            ("valid", flags(2, 1)),
            ("normalizer", floats(2)),
        ],
    ),
    "softmax_mask_loss": (
        detection.softmax_mask_loss,
        {
            "logits": floats(2, 5, 4, 4, 3),
            "targets": floats(2, 5, 4, 4),
            "classes": integers(2, 5),
            "positive": flags(2, 5),
            "normalizer": floats(),
        },
        [
            ("logits", floats(4, 4, 3)),
            ("targets", floats(2, 5, 4, 4, 3)),
            ("classes", integers(5)),
            ("classes", floats(2, 5)),
            ("positive", flags(5)),
            ("normalizer", floats(2)),
        ],
    ),
}
TABLE = PIXELS | DETECTION


def test_the_table_has_every_public_loss():
    assert set(PIXELS) >= set(losses.__all__)
    public = {name for name in vars(detection) if name.endswith("_loss")}
    assert set(DETECTION) == public


@pytest.mark.parametrize("name", TABLE)
def test_the_right_call_is_traced(name):
    function, arguments, _ = TABLE[name]
    trace(function, arguments)


@pytest.mark.parametrize(("function", "arguments", "named"), calls(TABLE))
def test_a_wrong_call_names_the_argument(function, arguments, named):
    with pytest.raises(AssertionError, match=rf"\[{named}\]"):
        trace(function, arguments)
