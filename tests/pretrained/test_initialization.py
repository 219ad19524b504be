"""Trained variables in a fresh model: what is taken, what stays new, what is an error."""

import jax
import numpy as np
import pytest

from segjax.pretrained import initialize


def variables(seed=0, *, stages=(2, 2), num_classes=3, heads=("aspp",), width=4, backbone=True):
    """The variables of a model like DeepLab, small, with unlike numbers in all arrays."""
    rng = np.random.default_rng(seed)

    def layer(out):
        return {"convolution": {"kernel": rng.normal(size=(1, 1, 2, out))}}

    trunk = {
        f"stage{stage}_block{block + 1}": {"conv1": layer(width)}
        for stage, size in enumerate(stages, 1)
        for block in range(size)
    }
    stats = {name: {"norm": {"mean": rng.normal(size=width)}} for name in trunk}
    if not backbone:
        return {"params": trunk, "batch_stats": stats}
    params = {"backbone": trunk, "logits": {"kernel": rng.normal(size=(1, 1, 4, num_classes))}}
    params |= {head: layer(width) for head in heads}
    return {"params": params, "batch_stats": {"backbone": stats}}


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_backbone_goes_into_the_models_and_leaves_its_heads():
    fresh, trunk = variables(0), variables(1, backbone=False)
    before = jax.tree.map(np.copy, fresh)
    merged, report = initialize(fresh, trunk)
    assert_equal(fresh, before)
    assert_equal(merged["params"]["backbone"], trunk["params"])
    assert_equal(merged["batch_stats"]["backbone"], trunk["batch_stats"])
    for head in ("aspp", "logits"):
        assert_equal(merged["params"][head], fresh["params"][head])
    assert jax.tree.structure(merged) == jax.tree.structure(fresh)
    assert len(report.taken) == 8
    assert set(report.new) == {"params/aspp/convolution/kernel", "params/logits/kernel"}
    assert report.left_out == ()
    assert str(report) == (
        "8 arrays taken (backbone: 8), 2 new (logits: 1, aspp: 1), 0 left out (none)"
    )


def test_a_whole_model_is_taken_but_for_a_classifier_of_other_classes():
    fresh, trained = variables(0), variables(1, num_classes=21, heads=("aspp", "auxiliary_head"))
    merged, report = initialize(fresh, trained)
    for part in ("backbone", "aspp"):
        assert_equal(merged["params"][part], trained["params"][part])
    assert_equal(merged["params"]["logits"], fresh["params"]["logits"])
    assert report.new == ("params/logits/kernel",)
    assert set(report.left_out) == {
        "params/logits/kernel",
        "params/auxiliary_head/convolution/kernel",
    }
    same, report = initialize(variables(0), variables(1))
    assert_equal(same, variables(1))
    assert report.new == ()


def test_whole_stages_may_be_new():
    merged, report = initialize(variables(0, stages=(2, 2, 2)), variables(1, backbone=False))
    fresh = variables(0, stages=(2, 2, 2))
    new = "stage3_block1"
    assert_equal(merged["params"]["backbone"][new], fresh["params"]["backbone"][new])
    assert f"params/backbone/{new}/conv1/convolution/kernel" in report.new


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ({"stages": (2, 1)}, "2 missing: params/backbone/stage2_block2"),
        ({"stages": (2, 3)}, "2 not in the model: params/backbone/stage2_block3"),
        ({"stages": (2, 2, 1)}, "2 not in the model: params/backbone/stage3_block1"),
        (
            {"width": 5},
            r"[89] of another shape: params/backbone/.* \[1, 1, 2, 5\], expected \[1, 1",
        ),
    ],
)
def test_another_backbone_is_an_error(trained, message):
    for backbone in (True, False):
        with pytest.raises(ValueError, match=message):
            initialize(variables(0, width=4), variables(1, backbone=backbone, **trained))


def test_weights_of_which_nothing_fits_are_an_error():
    with pytest.raises(ValueError, match=r"nothing .* fits: the model has backbone: 8, .*other: 1"):
        initialize(variables(0), {"params": {"other": {"kernel": np.zeros(3)}}})
