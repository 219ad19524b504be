"""The weighted sum of cross-entropy and Dice."""

import jax
import numpy as np
import pytest

from segjax.losses import SemanticLoss, cross_entropy, dice_loss, semantic


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
    total, terms = jax.jit(loss)(batch["logits"], batch)
    logits, labels = batch["logits"], batch["labels"]
    weights = {name: batch[name] for name in ("weights", "normalizer")}
    expected = {
        "cross_entropy": float(cross_entropy(logits, labels, **weights)),
        "dice": float(dice_loss(logits, labels, over="batch", background=True)),
    }
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected)
    assert total == pytest.approx(0.5 * expected["cross_entropy"] + 3 * expected["dice"])


def test_weights_and_normaliser_may_be_absent(batch):
    loss, _ = SemanticLoss()(batch["logits"], {"labels": batch["labels"]})
    assert loss == cross_entropy(batch["logits"], batch["labels"])


@pytest.mark.parametrize("kept", ["cross_entropy", "dice"])
def test_a_term_of_weight_zero_is_not_computed(batch, kept, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("computed")

    absent = {"cross_entropy": "dice", "dice": "cross_entropy"}[kept]
    function = {"cross_entropy": "cross_entropy", "dice": "dice_loss"}[absent]
    monkeypatch.setattr(semantic, function, refuse)
    total, terms = SemanticLoss(**{kept: 2.0, absent: 0.0})(batch["logits"], batch)
    assert set(terms) == {kept}
    assert total == 2 * terms[kept]


def test_a_loss_without_terms_is_refused_where_it_is_written_down():
    with pytest.raises(ValueError, match="needs a term whose weight is not zero"):
        SemanticLoss(cross_entropy=0.0)
