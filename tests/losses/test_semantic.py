"""The weighted sum of cross-entropy and Dice."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.losses import (
    SemanticLoss,
    cross_entropy,
    dice_loss,
    pixel_cross_entropy,
    semantic,
)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "logits": rng.normal(size=(2, 4, 5, 3)).astype(np.float32),
        "labels": rng.integers(0, 3, (2, 4, 5)).astype(np.int32),
        "weights": rng.uniform(0, 3, (2, 4, 5)).astype(np.float32),
        "normalizer": np.array([7, 7], np.float32),
    }


def test_the_loss_is_the_weighted_sum_of_its_terms(batch):
    loss = SemanticLoss(cross_entropy=0.5, dice=3.0, dice_over="batch", dice_background=True)
    total, terms = jax.jit(partial(loss, background=0))(batch, batch)
    logits, labels = batch["logits"], batch["labels"]
    weights = {name: batch[name] for name in ("weights", "normalizer")}
    expected = {
        "cross_entropy": float(cross_entropy(logits, labels, **weights)),
        "dice": float(dice_loss(logits, labels, over="batch")),
    }
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected)
    assert total == pytest.approx(0.5 * expected["cross_entropy"] + 3 * expected["dice"])


@pytest.mark.parametrize("background", [None, 0, 1])
def test_the_dice_leaves_out_the_background_that_the_data_have(batch, background):
    _, terms = jax.jit(partial(SemanticLoss(dice=1.0), background=background))(batch, batch)
    expected = dice_loss(batch["logits"], batch["labels"], without=background)
    assert terms["dice"] == pytest.approx(float(expected))


def test_weights_and_normaliser_may_be_absent(batch):
    loss, _ = SemanticLoss()(batch, {"labels": batch["labels"]})
    assert loss == cross_entropy(batch["logits"], batch["labels"])


@pytest.mark.parametrize("kept", ["cross_entropy", "dice"])
def test_a_term_of_weight_zero_is_not_computed(batch, kept, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("computed")

    absent = {"cross_entropy": "dice", "dice": "cross_entropy"}[kept]
    function = {"cross_entropy": "cross_entropy", "dice": "dice_loss"}[absent]
    monkeypatch.setattr(semantic, function, refuse)
    total, terms = SemanticLoss(**{kept: 2.0, absent: 0.0})(batch, batch)
    assert set(terms) == {kept}
    assert total == 2 * terms[kept]


def test_a_loss_without_terms_is_refused_where_it_is_written_down():
    with pytest.raises(ValueError, match="needs a term whose weight is not zero"):
        SemanticLoss(cross_entropy=0.0)


def test_auxiliary_outputs_add_their_losses_with_labels_subsampled_corner_to_corner(batch):
    rng = np.random.default_rng(1)
    coarse = rng.normal(size=(2, 2, 3, 3)).astype(np.float32)
    same_size = rng.normal(size=batch["logits"].shape).astype(np.float32)
    outputs = {"logits": batch["logits"], "auxiliary_logits": (coarse, same_size)}
    truth = {"labels": batch["labels"]}
    total, terms = jax.jit(SemanticLoss(auxiliary=0.3))(outputs, truth)
    subsampled = batch["labels"][:, ::3, ::2]
    expected = float(cross_entropy(coarse, subsampled) + cross_entropy(same_size, **truth))
    assert float(terms["auxiliary"]) == pytest.approx(expected)
    main = float(cross_entropy(batch["logits"], **truth))
    assert float(total) == pytest.approx(main + 0.3 * expected)
    without, terms = SemanticLoss(auxiliary=0.0)(outputs, truth)
    assert float(without) == pytest.approx(main)
    assert set(terms) == {"cross_entropy"}


def test_coarse_supervision_subsamples_the_truth_and_scales_the_normaliser_with_the_pixels(
    batch,
):
    coarse = np.random.default_rng(1).normal(size=(2, 2, 3, 3)).astype(np.float32)
    outputs = {"logits": batch["logits"], "coarse_logits": coarse}
    total, _ = jax.jit(SemanticLoss(supervise="coarse"))(outputs, batch)
    expected = cross_entropy(
        coarse,
        batch["labels"][:, ::3, ::2],
        weights=batch["weights"][:, ::3, ::2],
        normalizer=batch["normalizer"] * np.float32(6 / 20),
    )
    assert float(total) == pytest.approx(float(expected))


def test_hard_pixels_are_the_worst_of_each_image_and_of_no_other(batch):
    labels = batch["labels"].copy()
    labels[0, :3] = 255
    losses = np.asarray(pixel_cross_entropy(batch["logits"], labels)).reshape(2, -1)
    worst = np.sort(losses, axis=1)[:, -5:]  # a quarter of 20 pixels
    assert worst[0].max() > 0
    total, _ = jax.jit(SemanticLoss(hard_pixels=0.25))(batch, {"labels": labels})
    assert float(total) == pytest.approx(worst.mean())


def test_a_share_of_hard_pixels_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"hard_pixels=0.0; expected a share in \(0, 1\]"):
        SemanticLoss(hard_pixels=0.0)


def pixel_losses(logits, labels, weights, class_weights, gamma):
    """The weighted focal loss of each pixel in float64; 0 where it is ignored."""
    logits = np.float64(logits)
    logits -= logits.max(axis=-1, keepdims=True)
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    valid = labels != 255
    label = np.where(valid, labels, 0)
    p = np.take_along_axis(p, label[..., None], axis=-1)[..., 0]
    return valid * weights * np.float64(class_weights)[label] * -((1 - p) ** gamma) * np.log(p)


@pytest.mark.parametrize("hard", [1.0, 0.5])
@pytest.mark.parametrize("supervise", ["full", "coarse"])
def test_class_weights_and_focal_loss_go_with_every_other_option(batch, hard, supervise):
    rng = np.random.default_rng(1)
    labels = batch["labels"].copy()
    labels[0, :2] = 255
    batch = batch | {"labels": labels}
    coarse = [rng.normal(0, 2, (2, 2, 3, 3)).astype(jnp.bfloat16) for _ in range(2)]
    outputs = {
        "logits": batch["logits"],
        "coarse_logits": coarse[0],
        "auxiliary_logits": (coarse[1],),
    }
    class_weights = (0.5, 0.0, 3.0)
    loss = SemanticLoss(
        class_weights=class_weights,
        focal=1.5,
        hard_pixels=hard,
        supervise=supervise,
        auxiliary=0.3,
        dice=0.5,
    )
    total, terms = jax.jit(loss)(outputs, batch)

    def expected(logits, step):
        rows, columns = step
        seen, weights = (batch[name][:, ::rows, ::columns] for name in ("labels", "weights"))
        losses = pixel_losses(logits, seen, weights, class_weights, 1.5).reshape(2, -1)
        if hard < 1:
            return np.sort(losses, axis=1)[:, losses.shape[1] // 2 :].mean()
        return losses.sum(axis=1).mean() / (7 * losses.shape[1] / 20)

    main = (batch["logits"], (1, 1)) if supervise == "full" else (coarse[0], (3, 2))
    assert float(terms["cross_entropy"]) == pytest.approx(expected(*main), rel=1e-5)
    seen = labels if supervise == "full" else labels[:, ::3, ::2]
    plain = [float(dice_loss(main[0], seen)), float(dice_loss(coarse[1], labels[:, ::3, ::2]))]
    assert float(terms["dice"]) == pytest.approx(plain[0])
    auxiliary = expected(coarse[1], (3, 2)) + 0.5 * plain[1]
    assert float(terms["auxiliary"]) == pytest.approx(auxiliary, rel=1e-5)
    both = expected(*main) + 0.5 * plain[0] + 0.3 * auxiliary
    assert float(total) == pytest.approx(both, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[({"focal": x}, rf"focal={x}; expected 0") for x in (-1.0, math.nan, math.inf)],
        *[
            ({"class_weights": x}, r"class_weights=\(.*expected a number of 0 or more for each")
            for x in ((1.0, -0.5), (1.0, math.nan), (math.inf, 1.0), (0.0, 0.0), ())
        ],
        *[
            ({"cross_entropy": 0.0, "dice": 1.0} | x, "the cross-entropy, but its weight is")
            for x in ({"focal": 2.0}, {"class_weights": (1.0, 2.0)})
        ],
    ],
)
def test_class_weights_and_exponents_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        SemanticLoss(**options)
    assert "\n" not in str(error.value)
