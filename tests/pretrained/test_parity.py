"""Converted models equal those of PyTorch and TensorFlow with the same weights.

With the rebuilt weights the logits are of order 0.1 to 0.3; the tolerance is 1e-4.
"""

import numpy as np
import pytest

from segjax import pretrained
from segjax.data.voc_classes import VOC_CLASSES
from segjax.ops.resize import resize_bilinear
from segjax.weights.known import CITYSCAPES
from tests.fixtures.reference_weights import FOLDER, load_record
from tests.pretrained.source_shapes import forward


@pytest.mark.quick
@pytest.mark.parametrize(
    "name",
    [
        "torchvision/deeplabv3_resnet50",
        "torchvision/deeplabv3_mobilenet_v3_large",
        pytest.param("smp/unet_resnet34", marks=pytest.mark.optimized),
        "smp/unet_mobilenet_v2",
        "smp/deeplabv3plus_resnet50",
        "smp/deeplabv3plus_mobilenet_v2",
    ],
)
def test_logits_are_those_of_pytorch(name):
    record, state = load_record(name.replace("/", "_"))
    converted = pretrained.convert(name, state)
    outputs = forward(converted.model, converted.variables, record["input"][None])
    expected = record["out"].transpose(0, 2, 3, 1)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=1e-4)
    if "aux" in record:
        (coarse,) = outputs["auxiliary_logits"]
        auxiliary = resize_bilinear(coarse, record["input"].shape[:2], align_corners=False)
        expected = record["aux"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(auxiliary, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("mmseg/deeplabv3_r50-d8", VOC_CLASSES),
        ("mmseg/deeplabv3plus_r50-d8_769x769", CITYSCAPES),
    ],
)
def test_both_heads_of_mmsegmentations_deeplabs_are_its_own(name, classes):
    record, state = load_record(name.replace("/", "_").replace("-", "_"))
    converted = pretrained.convert(name, state)
    assert converted.classes == classes
    outputs = forward(converted.model, converted.variables, record["input"][None])
    size, align_corners = record["input"].shape[:2], converted.model.align_corners
    (coarse,) = outputs["auxiliary_logits"]
    found = {
        "out": outputs["logits"],
        "aux": resize_bilinear(coarse, size, align_corners=align_corners),
    }
    for key, logits in found.items():
        expected = record[key].transpose(0, 2, 3, 1)
        assert np.ptp(expected) > 0.2
        np.testing.assert_allclose(logits[:, ::2, ::2], expected, rtol=0, atol=1e-4)


def test_a_real_deeplab_of_tensorflows_labels_photographs_as_it_did(real_data):
    converted = pretrained.load(
        "tf/deeplabv3_mobilenetv2",
        real_data / "weights" / "deeplabv3_mobilenetv2_dm05_voc.npz",
        input_side=257,
    )
    with np.load(FOLDER / "deeplabv3_mobilenetv2_dm05_voc.npz") as record:
        images, logits, labels = (
            np.stack([record[f"{kind}_{i}"] for i in range(6)])
            for kind in ("image", "logits", "labels")
        )
    inputs = np.stack([converted.preprocess({"image": image}, None)["image"] for image in images])
    found = np.asarray(forward(converted.model, converted.variables, inputs)["logits"])
    np.testing.assert_allclose(found[:, ::4, ::4], logits, rtol=0, atol=1e-3)
    assert ((found.argmax(axis=-1) == labels).mean(axis=(1, 2)) >= 0.999).all()
    seen = {converted.classes[label] for label in np.unique(labels)}
    assert {"background", "dog", "horse", "person", "train", "bus", "aeroplane"} <= seen
    whole = converted.predict(images[0])
    assert (whole["labels"] == labels[0]).mean() >= 0.999
    np.testing.assert_allclose(whole["probabilities"].sum(axis=-1), 1, rtol=1e-5)
    half = converted.predict(images[0][::2, ::2])  # resized to 257 and back
    assert half["labels"].shape == (129, 129)
    assert (half["labels"] == labels[0][::2, ::2]).mean() > 0.9


def test_the_real_vgg_trunk_fits(real_data):
    path = real_data / "weights" / "vgg16_trunk_float16.npz"
    trunk = pretrained.load("keras/vgg16", path)
    with np.load(path) as arrays:
        for name in ("block1_conv1", "block5_conv3"):
            for array, value in trunk.variables["params"][name].items():
                expected = arrays[f"{name}/{array}"].astype(np.float32)
                if (name, array) == ("block1_conv1", "kernel"):
                    expected = expected[:, :, ::-1]  # the file reads BGR, our models RGB
                np.testing.assert_array_equal(value, expected, strict=True)
