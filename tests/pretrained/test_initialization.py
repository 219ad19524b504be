"""Trained variables in a fresh model: what is taken, what stays new, what is an error."""

import functools
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import flax.traverse_util
import jax
import numpy as np
import pytest

from segjax import pretrained
from segjax.models.backbones.resnet import ResNet, resnet50
from segjax.models.mask_rcnn import MaskRCNN
from segjax.models.normalization import BatchNorm
from segjax.models.rpn import Anchors
from segjax.pretrained import initialize
from segjax.pretrained.preprocess import IMAGENET
from segjax.recipes.initial import InitialConfig
from segjax.recipes.mask_rcnn_networks import MaskRCNNConfig


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
    with pytest.raises(ValueError, match=r"none of .* fits: the model has backbone: 8, .*other: 1"):
        initialize(variables(0), {"params": {"other": {"kernel": np.zeros(3)}}})


FROZEN = partial(BatchNorm, frozen=True)


def detector(value, **attributes):
    """The variables of a small Mask R-CNN, all arrays full of a value."""
    shapes = detector_shapes(**attributes)
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, np.float32), shapes)


@functools.cache
def detector_shapes(*, num_classes=2, neck="fpn", **attributes):
    stages = 3 if neck == "c4" else 4
    backbone = ResNet(stage_sizes=(1, 1, 1, 1), width=4, norm=FROZEN, num_stages=stages)
    sizes = {"fpn_features": 4, "fc_features": 4, "head_features": 4, "box_resolution": 2}
    model = MaskRCNN(num_classes, backbone=backbone, neck=neck, norm=FROZEN, **sizes | attributes)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def taken_and_new(merged, *, trained=1.0):
    """The paths of the arrays with the trained value, and of the others."""
    flat = flax.traverse_util.flatten_dict(merged, sep="/")
    taken = {path for path, array in flat.items() if np.all(array == trained)}
    return taken, flat.keys() - taken


CLASS_ARRAYS = {
    f"params/{layer}/{array}"
    for layer in (
        "box_predictor/class_logits",
        "box_predictor/deltas",
        "mask_head/logits/convolution",
    )
    for array in ("kernel", "bias")
}


def test_of_a_detector_all_is_taken_but_what_the_number_of_classes_shapes():
    merged, report = initialize(detector(0.0), detector(1.0, num_classes=5))
    taken, new = taken_and_new(merged)
    assert new == CLASS_ARRAYS == set(report.new) == set(report.left_out)
    parts = {"backbone", "fpn", "rpn", "box_head", "mask_head"}
    assert {path.split("/")[1] for path in taken} == parts
    assert taken_and_new(initialize(detector(0.0), detector(1.0))[0])[1] == set()
    # Boxes and masks for all classes alike do not depend on their number.
    alike = {"class_agnostic_boxes": True, "class_agnostic_masks": True}
    merged, _ = initialize(detector(0.0, **alike), detector(1.0, num_classes=5, **alike))
    logits = "params/box_predictor/class_logits"
    assert taken_and_new(merged)[1] == {f"{logits}/kernel", f"{logits}/bias"}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"anchors": Anchors(sizes=((32.0, 48.0),) * 5)},
            r"4 of another shape: params/rpn/deltas/convolution/bias \[24\], expected \[12\]",
        ),
        (
            {"head_norm": FROZEN},
            r"4 missing: params/mask_head/convolution1.convolution/bias.*\n"
            r"  16 not in the model: \w+/mask_head/convolution1/norm/\w+, ",
        ),
        (
            {"box_fully_connected": 1},
            r"2 missing: params/box_head/fc2/\w+, params/box_head/fc2/\w+",
        ),
        ({"fpn_features": 8}, r"\d+ of another shape: params/(box_head|fpn)/"),
    ],
)
def test_other_heads_are_an_error_that_says_how_to_leave_them_out(attributes, message):
    with pytest.raises(ValueError, match=message) as error:
        initialize(detector(0.0), detector(1.0, **attributes))
    last = str(error.value).splitlines()[-1]
    assert last == "  the backbone fits: to leave the heads out, set initial.backbone_only"


def test_the_last_stage_of_a_backbone_becomes_c4s_head():
    fpn = detector(1.0)
    trunk = {name: parts["backbone"] for name, parts in fpn.items()}
    fresh = detector(0.0, neck="c4")
    merged, report = initialize(fresh, trunk, moved={"backbone/stage4_": "box_head/"})
    taken, new = taken_and_new(merged)
    assert {path.split("/")[1] for path in taken} == {"backbone", "box_head"}
    assert {path.split("/")[1] for path in new} == {"rpn", "box_predictor", "mask_head"}
    assert report.left_out == ()
    # The heads of C4's weights go where they were.
    merged, _ = initialize(fresh, detector(1.0, neck="c4"), moved={"backbone/stage4_": "box_head/"})
    assert taken_and_new(merged)[1] == set()
    # Of an FPN's heads nothing fits.
    with pytest.raises(ValueError, match="not in the model: params/box_head/fc1/"):
        initialize(fresh, fpn, moved={"backbone/stage4_": "box_head/"})


def test_the_backbone_alone_is_taken_of_a_backbone_or_of_a_detector(monkeypatch):
    initial = InitialConfig(name="torchvision/resnet50", weights=Path("w.pth"), backbone_only=True)
    network = MaskRCNNConfig(backbone="resnet50", pixels="imagenet")
    whole = detector(1.0, fpn_features=8)
    for trained in (whole, {name: parts["backbone"] for name, parts in whole.items()}):
        found = SimpleNamespace(variables=trained, model=resnet50(), preprocess=IMAGENET)
        monkeypatch.setattr(pretrained, "load", lambda name, path, found=found: found)
        merged = initial.initialize(detector(0.0), network=network)
        taken, new = taken_and_new(merged)
        assert {path.split("/")[1] for path in taken} == {"backbone"}
        assert not any(path.split("/")[1] == "backbone" for path in new)
