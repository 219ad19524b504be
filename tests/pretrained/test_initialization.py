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


def with_stem(variables, bands, seed=0):
    """Variables with a first layer, in the backbone or as its own backbone."""
    kernel = np.random.default_rng(seed).normal(size=(3, 3, bands, 4)).astype(np.float32)
    trunk = variables["params"].get("backbone", variables["params"])
    trunk["stem"] = {"convolution": {"kernel": kernel}}
    return variables


def test_the_kernel_of_one_band_is_the_sum_and_of_more_rgb_in_turn_times_3_by_n():
    kernel = np.array([[1.0, -2.0], [3.0, 5.0], [6.0, 9.0]], np.float32)[None, None]
    by_hand = {
        1: [[10, 12]],
        2: [[1.5, -3], [4.5, 7.5]],
        3: [[1, -2], [3, 5], [6, 9]],
        4: [[0.75, -1.5], [2.25, 3.75], [4.5, 6.75], [0.75, -1.5]],
        6: [[0.5, -1], [1.5, 2.5], [3, 4.5], [0.5, -1], [1.5, 2.5], [3, 4.5]],
    }
    for bands, expected in by_hand.items():
        adapted = pretrained.adapt_to_bands(kernel, bands)
        assert adapted.dtype == np.float32
        np.testing.assert_array_equal(adapted, np.array(expected)[None, None])


@pytest.mark.parametrize("bands", [1, 6, 9])
def test_images_that_repeat_the_same_bands_give_the_activations_of_rgb(bands):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(7, 7, 3, 8)).astype(np.float32)
    image = rng.normal(size=(2, 16, 16, 1 if bands == 1 else 3)).astype(np.float32)
    rgb = np.broadcast_to(image, (2, 16, 16, 3))
    shown = np.concatenate([image] * (bands // image.shape[-1]), axis=-1)

    def convolve(x, w):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=layout)

    adapted = pretrained.adapt_to_bands(kernel, bands)
    np.testing.assert_allclose(convolve(shown, adapted), convolve(rgb, kernel), atol=1e-4)


@pytest.mark.parametrize("backbone", [True, False])
@pytest.mark.parametrize(
    ("bands", "words"), [(1, "1 band (the sum)"), (5, "5 bands (R, G, B in turn, times 3/5)")]
)
def test_the_first_layer_is_adapted_to_the_bands_and_reported(backbone, bands, words):
    fresh = with_stem(variables(0), bands)
    trained = with_stem(variables(1, backbone=backbone), 3, seed=1)
    merged, report = initialize(fresh, trained)
    own = trained["params"].get("backbone", trained["params"])["stem"]["convolution"]["kernel"]
    np.testing.assert_array_equal(
        merged["params"]["backbone"]["stem"]["convolution"]["kernel"],
        pretrained.adapt_to_bands(own, bands),
    )
    path = "params/backbone/stem/convolution/kernel"
    assert report.bands == {path: bands}
    assert path in report.taken
    assert str(report).endswith(f"; {path} adapted from RGB to {words}")


def test_a_first_layer_of_the_same_or_of_other_bands_than_rgb_is_not_adapted():
    fresh, trained = with_stem(variables(0), 3), with_stem(variables(1), 3, seed=1)
    merged, report = initialize(fresh, trained)
    assert_equal(merged["params"]["backbone"]["stem"], trained["params"]["backbone"]["stem"])
    assert report.bands == {}
    with pytest.raises(ValueError, match=r"1 of another shape: .*stem.* \[3, 3, 4, 4\], expected"):
        initialize(with_stem(variables(0), 5), with_stem(variables(1), 4))


def test_a_real_backbone_reads_five_bands_after_weights_for_rgb():
    model = ResNet(block="basic", stage_sizes=(1, 1, 1, 1), width=8)
    fresh, trained = (
        jax.tree.map(
            lambda leaf: np.ones(leaf.shape, np.float32),
            jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, bands))),
        )
        for bands in (5, 3)
    )
    merged, report = initialize(fresh, trained)
    assert list(report.bands.items()) == [("params/stem/convolution/kernel", 5)]
    assert report.new == report.left_out == ()
    kernel = merged["params"]["stem"]["convolution"]["kernel"]
    np.testing.assert_array_equal(kernel, np.full((7, 7, 5, 8), 0.6, np.float32))


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
