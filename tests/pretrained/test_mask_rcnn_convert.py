"""Weights of Mask R-CNN from torchvision and detectron2: names, layouts, rules, errors."""

import functools
import json
import pickle
import re

import chex
import jax
import numpy as np
import pytest

from segjax import pretrained
from segjax.coco.classes import COCO_CLASSES
from segjax.pretrained.instance_tasks import object_names
from tests.fixtures.reference_weights import FOLDER, reference_state
from tests.pretrained.source_shapes import detectron2_mask_rcnn_shapes, source_shapes, zeros

TORCHVISION = "torchvision/maskrcnn_resnet50_fpn"
ZOO = {
    "detectron2/mask_rcnn_R_50_FPN": (50, "FPN"),
    "detectron2/mask_rcnn_R_101_FPN": (101, "FPN"),
    "detectron2/mask_rcnn_X_101_32x8d_FPN": (101, "FPN"),
    "detectron2/mask_rcnn_R_50_C4": (50, "C4"),
    "detectron2/mask_rcnn_R_101_C4": (101, "C4"),
    "detectron2/mask_rcnn_R_50_DC5": (50, "DC5"),
    "detectron2/mask_rcnn_R_101_DC5": (101, "DC5"),
}


def zoo_shapes(name, classes=80):
    resnext = {"groups": 32, "group_width": 8} if "X_101" in name else {}
    return detectron2_mask_rcnn_shapes(*ZOO[name], classes=classes, **resnext)


@functools.cache
def torchvision_shapes(name=TORCHVISION):
    """Of the real state dict, for five classes and the background."""
    with np.load(FOLDER / f"{name.replace('/', '_')}.npz") as record:
        shapes = json.loads(str(record["shapes"]))
    return {key: tuple(shape) for key, shape in shapes.items()}


def with_values(shapes, pattern):
    """Zeros, but for the arrays in whose names the pattern is found."""
    return zeros(shapes) | reference_state(
        {k: s for k, s in shapes.items() if re.search(pattern, k)}
    )


@pytest.mark.parametrize("version", ["", "_v2"])
def test_torchvisions_state_dict_is_what_the_converter_expects(version):
    name = TORCHVISION + version
    theirs = torchvision_shapes(name)
    hints = {key: theirs[key] for key in ("roi_heads.box_predictor.cls_score.weight",)}
    expected = {key: theirs[key] for key in theirs if not key.endswith("num_batches_tracked")}
    assert source_shapes(name, hints) == expected
    of_coco = source_shapes(name)
    assert of_coco["roi_heads.box_predictor.bbox_pred.weight"] == (4 * 91, 1024)
    assert of_coco["roi_heads.mask_predictor.mask_fcn_logits.weight"] == (91, 256, 1, 1)


@pytest.mark.parametrize("name", ZOO)
def test_detectron2s_state_dicts_are_what_the_converter_expects(name):
    assert source_shapes(name) == zoo_shapes(name)
    if "R_50" in name:
        hints = {"roi_heads.box_predictor.cls_score.weight": (4, 1024)}
        assert source_shapes(name, hints) == zoo_shapes(name, 3)


def test_the_published_weights_of_v1_have_older_names_and_cocos_numbers():
    state = with_values(source_shapes(TORCHVISION), r"fpn|rpn|mask_head")
    old = {}
    for key, array in state.items():
        key = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", key)
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        match = re.fullmatch(r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", key)
        if match:
            key = f"roi_heads.mask_head.mask_fcn{int(match[1]) + 1}.{match[2]}"
        old[key] = array
    assert len(old.keys() - state.keys()) == 2 * (8 + 1 + 4)
    converted = pretrained.convert(TORCHVISION, old)
    params = converted.variables["params"]
    for (part, layer), key in {
        ("fpn", "lateral2"): "backbone.fpn.inner_blocks.0",
        ("fpn", "output5"): "backbone.fpn.layer_blocks.3",
        ("rpn", "convolution1"): "rpn.head.conv",
        ("mask_head", "convolution1"): "roi_heads.mask_head.mask_fcn1",
        ("mask_head", "convolution4"): "roi_heads.mask_head.mask_fcn4",
    }.items():
        found = params[part][layer]["convolution"]
        kernel = old[f"{key}.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(found["kernel"], kernel)
        np.testing.assert_array_equal(found["bias"], old[f"{key}.bias"])

    classes = converted.classes
    assert len(classes) == 91
    assert (classes[0], classes[1], classes[13]) == ("background", "person", "stop sign")
    assert (classes[12], classes[90]) == ("unused 12", "toothbrush")
    assert tuple(name for name in classes if not name.startswith("unused")) == COCO_CLASSES


def test_logits_of_a_region_are_those_of_detectron2s_layers():
    """Features are flattened channels first there, and the background is the last class."""
    name = "detectron2/mask_rcnn_R_50_FPN"
    state = with_values(zoo_shapes(name, 3), r"box_head|box_predictor")
    converted = pretrained.convert(name, state)
    features = np.random.default_rng(0).normal(size=(5, 256, 7, 7)).astype(np.float32)

    def heads(model, x):
        return model.box_predictor(model.box_head(x))

    x = features.transpose(0, 2, 3, 1)
    logits, deltas = converted.model.apply(converted.variables, x, method=heads)
    x, prefix = features.reshape(5, -1), "roi_heads.box_"
    for layer in ("head.fc1", "head.fc2", "predictor.cls_score", "predictor.bbox_pred"):
        weight, bias = (state[f"{prefix}{layer}.{part}"] for part in ("weight", "bias"))
        if layer.startswith("head"):
            x = np.maximum(x @ weight.T + bias, 0)
        elif layer.endswith("cls_score"):
            expected = x @ weight.T + bias
        else:
            np.testing.assert_allclose(
                deltas, (x @ weight.T + bias).reshape(5, 3, 4), rtol=0, atol=1e-5
            )
    np.testing.assert_allclose(logits[:, 0], expected[:, 3], rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits[:, 1:], expected[:, :3], rtol=0, atol=1e-5)
    assert np.std(expected) > 0.1


def test_masks_of_c4_are_those_of_detectron2s_layers():
    """An up-convolution, a ReLU and a 1×1 convolution."""
    name = "detectron2/mask_rcnn_R_50_C4"
    state = with_values(zoo_shapes(name, 3), "mask_head")
    converted = pretrained.convert(name, state)
    features = np.random.default_rng(1).normal(size=(2, 2048, 3, 3)).astype(np.float32)
    found = converted.model.apply(
        converted.variables,
        features.transpose(0, 2, 3, 1),
        method=lambda model, x: model.mask_head(x),
    )
    deconv, predictor = ("roi_heads.mask_head." + layer for layer in ("deconv", "predictor"))
    # Output (2i + a, 2j + b) sees input (i, j) alone, through tap (a, b).
    x = np.einsum("ncij,coab->nojbia", features, state[f"{deconv}.weight"])
    x = x.transpose(0, 1, 4, 5, 2, 3).reshape(2, 256, 6, 6)
    x = np.maximum(x + state[f"{deconv}.bias"][:, None, None], 0)
    x = np.einsum("nchw,kc->nhwk", x, state[f"{predictor}.weight"][..., 0, 0])
    expected = x + state[f"{predictor}.bias"]
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_c4s_head_is_the_resnets_last_stage():
    c4, fpn = ("detectron2/mask_rcnn_R_50_C4", "detectron2/mask_rcnn_R_50_FPN")
    with_head = with_values(zoo_shapes(c4, 3), r"roi_heads\.res5")
    with_stage = zeros(zoo_shapes(fpn, 3)) | {
        key.replace("roi_heads", "backbone.bottom_up"): array
        for key, array in with_head.items()
        if "res5" in key
    }
    head, stage = (
        pretrained.convert(name, state) for name, state in ((c4, with_head), (fpn, with_stage))
    )
    for collection in ("params", "batch_stats"):
        blocks = head.variables[collection]["box_head"]
        assert sorted(blocks) == ["block1", "block2", "block3"]
        for block, arrays in blocks.items():
            backbone = stage.variables[collection]["backbone"]
            chex.assert_trees_all_equal(arrays, backbone[f"stage4_{block}"])
            assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(arrays))
        assert "stage4_block1" not in head.variables[collection]["backbone"]


def test_dc5s_last_stage_is_atrous_from_its_first_block_on():
    """detectron2's RES5_DILATION=2: no stride, and every 3×3 convolution at rate 2."""
    name = "detectron2/mask_rcnn_R_50_DC5"
    pattern = r"^backbone\.(stem|res)"
    state = with_values(zoo_shapes(name, 3), pattern)
    converted = pretrained.convert(name, state)
    model, variables = converted.model, converted.variables
    image = np.random.default_rng(2).normal(size=(1, 64, 64, 3)).astype(np.float32)

    @jax.jit
    def maps(variables, image):
        def stages(model, image):
            return model.backbone(image)["stage3"], model.pyramid(image)[0]

        return model.apply(variables, image, method=stages)

    x, found = jax.device_get(maps(variables, image))

    def convolved(x, layer, rate=1):
        y = jax.lax.conv_general_dilated(
            x,
            state[f"{layer}.weight"],
            (1, 1),
            [(rate, rate)] * 2 if state[f"{layer}.weight"].shape[2] == 3 else [(0, 0)] * 2,
            rhs_dilation=(rate, rate),
        )
        norm = [
            state[f"{layer}.norm.{part}"].reshape(1, -1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        ]
        return (y - norm[2]) / np.sqrt(norm[3] + 1e-5) * norm[0] + norm[1]

    x = x.transpose(0, 3, 1, 2)
    for block in ("backbone.res5.0", "backbone.res5.1", "backbone.res5.2"):
        y = jax.nn.relu(convolved(x, f"{block}.conv1"))
        y = jax.nn.relu(convolved(y, f"{block}.conv2", rate=2))
        y = convolved(y, f"{block}.conv3")
        x = jax.nn.relu(y + (convolved(x, f"{block}.shortcut") if block[-1] == "0" else x))
    assert x.shape == (1, 2048, 4, 4)
    assert np.std(x) > 0.1
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("neck", ["C4", "DC5"])
def test_anchors_on_a_single_map_are_in_detectron2s_order(neck):
    """Positions by rows, and at each the three shapes of the smallest size first."""
    model = pretrained.convert(*_empty(f"detectron2/mask_rcnn_R_50_{neck}")).model
    [anchors] = model.anchors.of([(2, 3)], strides=model.strides, image_size=(32, 48))
    assert anchors.shape == (2 * 3 * 15, 4)
    half, double = 32 * 0.5**0.5, 32 * 2**0.5
    np.testing.assert_allclose(
        anchors[:4],
        [
            [-double / 2, -half / 2, double / 2, half / 2],  # ratio 0.5: wider than high
            [-16, -16, 16, 16],
            [-half / 2, -double / 2, half / 2, double / 2],
            [-double, -half, double, half],  # of size 64
        ],
        rtol=1e-6,
    )
    np.testing.assert_array_equal(anchors[13], [-256, -256, 256, 256])
    np.testing.assert_array_equal(anchors[15 + 1], [0, -16, 32, 16])
    np.testing.assert_array_equal(anchors[3 * 15 + 1], [-16, 0, 16, 32])


def test_bgr_kernels_are_turned_round_with_the_deviations_of_the_colours():
    """An image that is normalised and convolved by detectron2's rules, in BGR."""
    name = "detectron2/mask_rcnn_X_101_32x8d_FPN"
    state = with_values(zoo_shapes(name, 3), r"stem\.conv1\.weight")
    converted = pretrained.convert(name, state)
    image = np.random.default_rng(3).integers(0, 256, (7, 7, 3)).astype(np.uint8)
    bgr = (image[..., ::-1] - [103.53, 116.28, 123.675]) / [57.375, 57.12, 58.395]
    kernel = state["backbone.bottom_up.stem.conv1.weight"]
    expected = np.einsum("hwc,ochw->o", bgr, kernel)
    ours = converted.preprocess({"image": image}, None)["image"]
    kernel = converted.variables["params"]["backbone"]["stem"]["convolution"]["kernel"]
    np.testing.assert_allclose(np.einsum("hwc,hwco->o", ours, kernel), expected, atol=1e-4)
    alone = pretrained.convert(*_empty("detectron2/mask_rcnn_R_50_FPN")).preprocess
    found = alone({"image": image}, None)["image"]
    np.testing.assert_allclose(found, image - np.array([123.675, 116.28, 103.53]), atol=1e-4)


def test_classes_have_the_names_of_the_sources_data():
    coco = pretrained.convert(*_empty("detectron2/mask_rcnn_R_50_FPN", 80))
    assert coco.classes == COCO_CLASSES
    assert (coco.classes[1], coco.classes[80]) == ("person", "toothbrush")
    streets = pretrained.convert(*_empty("detectron2/mask_rcnn_R_50_FPN", 8))
    assert (streets.classes[1], streets.classes[8]) == ("person", "bicycle")
    inputs = [
        next(found.task.inputs({"image": np.zeros((1024, 2048, 3), np.uint8)}))
        for found in (coco, streets)
    ]
    assert [item["size"].tolist() for item in inputs] == [[667, 1333], [1024, 2048]]


def test_other_classes_have_the_names_given_or_numbers():
    known = {2: ("none", "cat", "dog")}
    assert object_names(2, None, known) == ("none", "cat", "dog")
    assert object_names(2, ("back", "cell", "dirt"), known) == ("back", "cell", "dirt")
    assert object_names(3, None, known) == ("background", "class 1", "class 2", "class 3")
    with pytest.raises(ValueError, match="3 classes and the background; got 3 names"):
        pretrained.convert(*_empty("detectron2/mask_rcnn_R_50_FPN"), classes=("a", "b", "c"))


def test_a_file_of_the_zoo_is_a_pickle_with_remarks(tmp_path):
    name, state = _empty("detectron2/mask_rcnn_R_50_C4")
    state = {
        key: np.full(array.shape, 0.5, array.dtype) if array.ndim == 1 else np.array(array)
        for key, array in state.items()
        if "res4.1" not in key
    }
    state["pixel_mean"] = np.zeros((3, 1, 1), np.float32)
    state["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((15, 4), np.float32)
    state["backbone.res2.0.conv1.norm.num_batches_tracked"] = np.array(7)
    state["roi_heads.keypoint_head.score_lowres.bias"] = np.zeros(17, np.float32)
    path = tmp_path / "model_final.pkl"
    content = {"model": state, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"model_final\.pkl: the weights do not fit") as error:
        pretrained.load(name, path)
    lines = str(error.value).splitlines()[1:]
    assert lines[0].startswith(
        "  15 missing: backbone.res4.1.conv1.weight, backbone.res4.1.conv1.n"
    )
    assert lines[1:] == ["  1 not of this model: roi_heads.keypoint_head.score_lowres.bias"]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        (TORCHVISION, "roi_heads.mask_predictor.mask_fcn_logits"),
        ("detectron2/mask_rcnn_R_50_FPN", "roi_heads.mask_head.predictor"),
    ],
)
def test_weights_of_a_detector_without_masks_are_told_what_is_missing(name, layer):
    shapes = torchvision_shapes() if name == TORCHVISION else zoo_shapes(name)
    state = {key: array for key, array in zeros(shapes).items() if "mask" not in key}
    with pytest.raises(ValueError, match=f"  12 missing: .*{layer}.bias") as error:
        pretrained.convert(name, state)
    assert len(str(error.value).splitlines()) == 2


def test_other_norms_and_classes_of_heads_are_listed():
    shapes = torchvision_shapes(f"{TORCHVISION}_v2")
    shapes = shapes | {"roi_heads.mask_predictor.mask_fcn_logits.bias": (91,)}
    with pytest.raises(ValueError, match=r"mask_fcn_logits.bias \[91\], expected \[6\]") as error:
        pretrained.convert(f"{TORCHVISION}_v2", zeros(shapes))
    assert "1 of another shape" in str(error.value)
    with pytest.raises(ValueError, match=r"\d+ missing: .*\n.*not of this model: .*fpn"):
        pretrained.convert(TORCHVISION, zeros(shapes))


def _empty(name, classes=3):
    return name, zeros(zoo_shapes(name, classes))
