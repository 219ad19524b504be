"""State dicts to variables: where each array goes, in which layout, and what does not fit."""

import re

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import pretrained
from segjax.data.voc_classes import VOC_CLASSES
from segjax.inference.coverings import SlidingWindow
from segjax.pretrained import SOURCES
from segjax.pretrained.preprocess import IMAGENET
from tests.fixtures.reference_weights import load_record, reference_state
from tests.pretrained.source_shapes import forward, source_shapes, zeros

MOBILENET_HINTS = {
    "MobilenetV2/expanded_conv_16/project/weights": (1, 1, 240, 40),
    "MobilenetV2/expanded_conv_1/project/weights": (1, 1, 12, 3),
    "logits/semantic/weights": (1, 1, 256, 4),
}


def test_torch_kernels_are_transposed_and_norms_keep_their_four_arrays():
    _, state = load_record("torchvision_deeplabv3_resnet50")
    state = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    state |= {"fc.weight": np.zeros((1000, 2048)), "fc.bias": np.zeros(1000)}
    trunk = pretrained.convert("torchvision/resnet50", state)
    params, stats = (trunk.variables[c]["stage2_block1"] for c in ("params", "batch_stats"))
    kernel = params["conv2"]["convolution"]["kernel"]
    for row, column, into, out in ((0, 0, 0, 0), (2, 1, 7, 100)):
        expected = state["layer2.0.conv2.weight"][out, into, row, column]
        assert kernel[row, column, into, out] == expected
    norm = {**params["shortcut"]["norm"], **stats["shortcut"]["norm"]}
    for ours, theirs in {
        "scale": "weight",
        "bias": "bias",
        "mean": "running_mean",
        "var": "running_var",
    }.items():
        np.testing.assert_array_equal(norm[ours], state[f"layer2.0.downsample.1.{theirs}"])


def test_every_name_has_a_rule_for_each_array_of_its_model():
    for name in SOURCES:
        if any(part in name for part in ("101", "18", "34", "caffe", "769", "smp/resnet50")):
            continue  # as another name
        assert source_shapes(name), name


@pytest.mark.parametrize(
    ("name", "known", "count"),
    [
        ("torchvision/vgg16", {"features.28.weight": (512, 512, 3, 3)}, 26),
        ("torchvision/resnet101", {"layer3.22.conv3.weight": (1024, 256, 1, 1)}, 104 * 5),
        ("smp/unet_resnet34", {"decoder.blocks.4.conv2.1.running_var": (16,)}, 232),
        # The stem, and 17 bottlenecks of which all but the first expand: 1 + 17 · 3 − 1 layers.
        (
            "torchvision/mobilenet_v2",
            {
                "features.1.conv.0.0.weight": (32, 1, 3, 3),
                "features.1.conv.2.running_mean": (16,),
                "features.17.conv.0.1.bias": (960,),
                "features.17.conv.2.weight": (320, 960, 1, 1),
            },
            51 * 5,
        ),
        (
            "smp/unet_mobilenet_v2",
            {
                "encoder.features.18.0.weight": (1280, 320, 1, 1),
                "decoder.blocks.0.conv1.0.weight": (256, 1376, 3, 3),
            },
            None,
        ),
        # The stem, 15 bottlenecks (all but the first with an expansion) and the last convolution.
        # Eight have a squeeze-and-excitation, with four arrays.
        (
            "torchvision/mobilenet_v3_large",
            {
                "features.1.block.1.0.weight": (16, 16, 1, 1),
                "features.4.block.1.0.weight": (72, 1, 5, 5),
                "features.4.block.2.fc1.weight": (24, 72, 1, 1),
                "features.12.block.2.fc2.bias": (672,),
                "features.15.block.3.1.running_mean": (160,),
                "features.16.0.weight": (960, 160, 1, 1),
            },
            46 * 5 + 8 * 4,
        ),
        ("mmseg/deeplabv3_r101-d8", {"backbone.stem.6.weight": (64, 32, 3, 3)}, None),
        (
            "mmseg/deeplabv3plus_r101-d8",
            {
                "backbone.layer3.22.conv3.weight": (1024, 256, 1, 1),
                "decode_head.aspp_modules.3.depthwise_conv.bn.weight": (2048,),
                "decode_head.bottleneck.conv.weight": (512, 5 * 512, 3, 3),
                "decode_head.c1_bottleneck.conv.weight": (48, 256, 1, 1),
                "decode_head.sep_bottleneck.0.depthwise_conv.conv.weight": (560, 1, 3, 3),
            },
            None,
        ),
        (
            "tf/deeplabv3plus_xception65",
            {
                # As slim and DeepLab's core/xception.py name them.
                "xception_65/entry_flow/conv1_2/weights": (3, 3, 32, 64),
                "xception_65/entry_flow/block3/unit_1/xception_module/shortcut/BatchNorm/gamma": (
                    728,
                ),
                "xception_65/middle_flow/block1/unit_16/xception_module/separable_conv3_depthwise/"
                "depthwise_weights": (3, 3, 728, 1),
                "xception_65/exit_flow/block2/unit_1/xception_module/separable_conv3_pointwise/"
                "BatchNorm/moving_variance": (2048,),
                "aspp3_depthwise/depthwise_weights": (3, 3, 2048, 1),
                "aspp1_pointwise/BatchNorm/beta": (256,),
                "concat_projection/weights": (1, 1, 1280, 256),
                "decoder/feature_projection0/weights": (1, 1, 256, 48),
                "decoder/decoder_conv0_depthwise/depthwise_weights": (3, 3, 304, 1),
                "decoder/decoder_conv1_pointwise/weights": (1, 1, 256, 256),
                "logits/semantic/biases": (21,),
            },
            None,
        ),
        ("detectron2/resnet50", {"res5_2_branch2c_bn_s": (2048,), "res_conv1_bn_b": (64,)}, 159),
        ("detectron2/resnext101", {"res5_2_branch2b_w": (2048, 64, 3, 3)}, 312),
    ],
)
def test_names_and_shapes_are_those_of_the_source(name, known, count):
    shapes = source_shapes(name)
    assert {key: shapes.get(key) for key in known} == known
    assert count is None or len(shapes) == count


def test_sizes_are_read_from_the_shapes():
    name = "torchvision/deeplabv3_resnet50"
    hints = {"classifier.4.weight": (5, 256, 1, 1), "aux_classifier.0.weight": (256, 1024, 3, 3)}
    with_head = pretrained.convert(name, zeros(source_shapes(name, hints)))
    assert (with_head.model.num_classes, with_head.model.auxiliary_head) == (5, True)
    assert with_head.classes == ("class 0", "class 1", "class 2", "class 3", "class 4")
    shapes = source_shapes(name)
    plain = pretrained.convert(name, zeros(shapes))
    assert (plain.classes, plain.model.auxiliary_head) == (VOC_CLASSES, False)
    assert not any(key.startswith("aux_classifier") for key in shapes)

    named = pretrained.convert(name, zeros(shapes), classes=tuple("abcdefghijklmnopqrstu"))
    assert named.classes[20] == "u"
    with pytest.raises(ValueError, match="21 classes; got 2 names"):
        pretrained.convert(name, zeros(shapes), classes=("a", "b"))

    unet = source_shapes("smp/unet_resnet34", {"decoder.blocks.4.conv1.0.weight": (8,)})
    assert unet["segmentation_head.0.weight"] == (1, 8, 3, 3)
    narrow = source_shapes("tf/deeplabv3_mobilenetv2", MOBILENET_HINTS)
    assert narrow["MobilenetV2/expanded_conv_1/project/weights"] == (1, 1, 12, 3)
    assert narrow["logits/semantic/weights"] == (1, 1, 256, 4)
    rounded = MOBILENET_HINTS | {"MobilenetV2/expanded_conv_1/project/weights": (1, 1, 48, 8)}
    shapes = source_shapes("tf/mobilenet_v2", rounded)
    assert shapes["MobilenetV2/expanded_conv_1/project/weights"] == (1, 1, 48, 8)


def test_mmsegmentations_data_sets_are_known_by_their_numbers_of_classes():
    names = {
        19: ("road", "bicycle", (1024, 2048)),
        150: ("wall", "flag", (512, 1024)),
        21: ("background", "tvmonitor", (512, 1024)),
        171: ("class 0", "class 170", (512, 1024)),
    }
    for outputs, (first, last, size) in names.items():
        hints = zeros({"decode_head.conv_seg.weight": (outputs, 512, 1, 1)})
        name = "mmseg/deeplabv3_r50-d8"
        task = SOURCES[name](hints, name=name).task
        assert (len(task.classes), task.classes[0], task.classes[-1]) == (outputs, first, last)
        assert task.input_size((300, 600, 3)) == size
        name = "mmseg/deeplabv3_r50-d8_769x769"
        cropped = SOURCES[name](hints, name=name).task
        assert cropped.covering == SlidingWindow(size=(769, 769), stride=(513, 513))
        assert (task.model.align_corners, cropped.model.align_corners) == (False, True)


def test_all_that_does_not_fit_is_one_error():
    name = "keras/vgg16"
    shapes = source_shapes(name)
    shapes["block6_conv1/kernel"] = (3, 3, 512, 512)
    shapes["block1_conv2/kernel"] = (64, 64, 3, 3)
    del shapes["block3_conv1/bias"], shapes["block5_conv3/kernel"]
    with pytest.raises(ValueError, match="the weights do not fit keras/vgg16") as error:
        pretrained.convert(name, zeros(shapes))
    assert str(error.value).splitlines()[1:] == [
        "  2 missing: block3_conv1/bias, block5_conv3/kernel",
        "  1 not of this model: block6_conv1/kernel",
        "  1 of another shape: block1_conv2/kernel [64, 64, 3, 3], expected [3, 3, 64, 64]",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "torchvision/deeplabv3_resnet50",
        "smp/unet_resnet34",
        "tf/mobilenet_v2",
        "detectron2/resnet50",
    ],
)
def test_a_foreign_state_dict_is_told_all_that_is_missing(name):
    with pytest.raises(ValueError, match=rf"do not fit {name}:\n  \d+ missing: .*\n  1 not of"):
        pretrained.convert(name, {"weight": np.zeros(3)})


def test_counters_and_classifiers_may_be_there_and_nothing_else():
    shapes = source_shapes("torchvision/vgg16")
    shapes |= {"classifier.0.weight": (1,), "classifier.6.bias": (1,)}
    pretrained.convert("torchvision/vgg16", zeros(shapes))
    shapes = source_shapes("torchvision/deeplabv3_resnet50")
    shapes |= {"backbone.bn1.num_batches_tracked": ()}
    pretrained.convert("torchvision/deeplabv3_resnet50", zeros(shapes))
    with pytest.raises(ValueError, match=r"1 not of this model: backbone\.fc\.weight$"):
        pretrained.convert(
            "torchvision/deeplabv3_resnet50", zeros({**shapes, "backbone.fc.weight": ()})
        )


def test_tensorflows_layouts_become_ours():
    name = "tf/deeplabv3_mobilenetv2"
    state = reference_state(source_shapes(name, MOBILENET_HINTS))
    converted = pretrained.convert(name, state)
    params = converted.variables["params"]
    theirs = state["MobilenetV2/expanded_conv/depthwise/depthwise_weights"]
    kernel = params["backbone"]["expanded_conv_0"]["depthwise"]["convolution"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :, 0, :], theirs[..., 0])
    # TensorFlow's concatenation begins with image pooling, ours ends with it.
    theirs = state["concat_projection/weights"]
    kernel = params["aspp"]["projection"]["convolution"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :, :256], theirs[:, :, 256:])
    np.testing.assert_array_equal(kernel[:, :, 256:], theirs[:, :, :256])


def test_batch_norm_and_the_same_folded_give_the_same_logits():
    name = "tf/deeplabv3_mobilenetv2"
    state = reference_state(source_shapes(name, MOBILENET_HINTS))
    state = {
        key: abs(array) + 0.5 if key.endswith(("gamma", "moving_variance")) else array
        for key, array in state.items()
    }
    folded = dict(state)
    for key in [key for key in state if key.endswith("/BatchNorm/gamma")]:
        layer = key.removesuffix("/BatchNorm/gamma")
        gamma, beta, mean, variance = (
            folded.pop(f"{layer}/BatchNorm/{part}")
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        epsilon = 1e-3 if layer.startswith("MobilenetV2") else 1e-5
        scale = gamma / np.sqrt(variance + epsilon)
        kernel = f"{layer}/depthwise_weights" if "depthwise" in layer else f"{layer}/weights"
        folded[kernel] = folded[kernel] * (
            scale[:, None] if kernel.endswith("depthwise_weights") else scale
        )
        folded[f"{layer}/biases"] = beta - mean * scale
    image = np.random.default_rng(0).uniform(-1, 1, (1, 33, 33, 3)).astype(np.float32)
    logits = []
    for arrays in (state, folded):
        converted = pretrained.convert(name, arrays)
        logits.append(forward(converted.model, converted.variables, image)["logits"])
    assert np.ptp(logits[0]) > 0.1
    np.testing.assert_allclose(*logits, rtol=0, atol=2e-5 * np.ptp(logits[0]))


def test_caffe2s_norm_is_a_scale_and_a_bias():
    name = "detectron2/resnet50"
    state = reference_state(source_shapes(name))
    state |= {"fc1000_w": np.zeros((1000, 2048)), "conv1_w_momentum": np.zeros(3)}
    trunk = pretrained.convert(name, state)
    assert trunk.model.stride_in == "1x1"
    block = {c: trunk.variables[c]["stage3_block6"]["conv2"]["norm"] for c in trunk.variables}
    x = np.linspace(-3, 3, 256, dtype=np.float32)
    mean, var = block["batch_stats"]["mean"], block["batch_stats"]["var"]
    y = (x - mean) / np.sqrt(var + 1e-5) * block["params"]["scale"] + block["params"]["bias"]
    expected = x * state["res4_5_branch2b_bn_s"] + state["res4_5_branch2b_bn_b"]
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def test_detectron2s_own_names_give_the_same_variables_as_caffe2s():
    name = "detectron2/resnet50"
    caffe2 = reference_state(source_shapes(name))
    convs = {"2a": "conv1", "2b": "conv2", "2c": "conv3", "1": "shortcut"}
    own = {}
    for key, array in caffe2.items():
        if match := re.fullmatch(r"res(\d)_(\d+)_branch(\w+?)_(bn_)?([wsb])", key):
            stage, block, branch, norm, kind = match.groups()
            layer = f"res{stage}.{block}.{convs[branch]}"
        else:
            layer, norm, kind = "stem.conv1", "bn" in key, key[-1]
        own[f"{layer}{'.norm' if norm else ''}.{'bias' if kind == 'b' else 'weight'}"] = array
        if norm:
            own[f"{layer}.norm.running_mean"] = np.zeros_like(array)
            own[f"{layer}.norm.running_var"] = np.full_like(array, 1 - 1e-5)
    own["stem.fc.weight"] = np.zeros((1000, 2048))
    first, second = (pretrained.convert(name, state).variables for state in (caffe2, own))
    assert jnp.all(first["params"]["stem"]["convolution"]["kernel"] != 0)
    for path in (("stage1_block1", "shortcut"), ("stage4_block3", "conv3")):
        for collection in ("params", "batch_stats"):
            parts = [v[collection][path[0]][path[1]]["norm"] for v in (first, second)]
            for key in parts[0]:
                np.testing.assert_array_equal(parts[0][key], parts[1][key])


def test_unknown_names_and_options_are_errors():
    with pytest.raises(ValueError, match="did you mean 'torchvision/deeplabv3_resnet101'"):
        pretrained.convert("torchvision/deeplab_resnet101", {})
    with pytest.raises(ValueError, match=r"no pretrained weights 'x'.* keras/vgg16"):
        pretrained.load("x", "nowhere.pth")
    with pytest.raises(ValueError, match=r"output_stride=8: expected 16; at 8, stage 3"):
        pretrained.convert("smp/deeplabv3plus_resnet50", {}, output_stride=8)
    with pytest.raises(TypeError, match="output_strid"):
        pretrained.convert("tf/deeplabv3_mobilenetv2", {}, output_strid=8)


def test_images_are_made_what_the_weights_want():
    image = np.array([[[10, 100, 250]]], np.uint8)
    example = {"image": image, "id": "x"}
    found = IMAGENET(example, None)
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found["image"], expected, rtol=0, atol=1e-6)
    assert (found["image"].dtype, found["id"]) == (np.float32, "x")


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "axes"),
    [
        ("keras/vgg16", "block1_conv1/kernel", "block1_conv1/kernel", (0, 1, 2, 3)),
        ("detectron2/resnet50", "stem/convolution/kernel", "conv1_w", (2, 3, 1, 0)),
    ],
)
def test_kernels_for_bgr_images_read_rgb_ones(name, ours, theirs, axes):
    shapes = source_shapes(name)
    state = reference_state(shapes)
    converted = pretrained.convert(name, state)
    kernel = flax.traverse_util.flatten_dict(converted.variables["params"], sep="/")[ours]
    blue_green_red = np.random.default_rng(0).uniform(size=3).astype(np.float32)
    expected = np.einsum("i,hwio->hwo", blue_green_red, state[theirs].transpose(axes))
    found = np.einsum("i,hwio->hwo", blue_green_red[::-1], kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert converted.preprocess.mean[2] < 105  # of blue, which is the smallest


def test_half_precision_becomes_float32():
    shapes = source_shapes("keras/vgg16")
    state = {key: array.astype(np.float16) for key, array in zeros(shapes).items()}
    state["block1_conv1/bias"] = np.full(64, 0.1, np.float16)
    bias = pretrained.convert("keras/vgg16", state).variables["params"]["block1_conv1"]["bias"]
    assert bias.dtype == np.float32
    np.testing.assert_array_equal(bias, state["block1_conv1/bias"].astype(np.float32))


def test_only_a_photograph_can_be_predicted_and_only_by_a_segmenter():
    shapes = source_shapes("keras/vgg16")
    trunk = pretrained.convert("keras/vgg16", zeros(shapes))
    with pytest.raises(ValueError, match=r"backbone \(VGG16\) .*initialize"):
        trunk.predict(np.zeros((8, 8, 3), np.uint8))
    name = "tf/deeplabv3_mobilenetv2"
    segmenter = pretrained.convert(name, zeros(source_shapes(name, MOBILENET_HINTS)))
    for image in (
        np.zeros((8, 8, 3)),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match=r"expected an image .*, uint8; found"):
            segmenter.predict(image)
