"""A head with one output, a sigmoid, becomes a softmax over background and foreground."""

import jax
import numpy as np
import pytest

from segjax import pretrained
from segjax.pretrained import SOURCES
from tests.fixtures.reference_weights import reference_image, reference_state
from tests.pretrained.source_shapes import source_shapes, zeros

SMP = ("segmentation_head.0.weight", "segmentation_head.0.bias")
TENSORFLOW = ("logits/semantic/weights", "logits/semantic/biases")
TORCHVISION = ("classifier.4.weight", "classifier.4.bias")
# The names of each head's kernel and bias, and the kernel's shape.
HEADS = {
    "torchvision/deeplabv3_resnet50": (*TORCHVISION, (1, 256, 1, 1)),
    "smp/unet_resnet34": (*SMP, (1, 16, 3, 3)),
    "smp/deeplabv3plus_resnet50": (*SMP, (1, 256, 1, 1)),
    "tf/deeplabv3_mobilenetv2": (*TENSORFLOW, (1, 1, 256, 1)),
    "tf/deeplabv3plus_xception65": (*TENSORFLOW, (1, 1, 256, 1)),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_background_has_zeros_and_the_foreground_what_the_head_has(name):
    kernel, bias, shape = HEADS[name]
    hints = {kernel: shape}
    shapes = source_shapes(name, hints)
    assert (shapes[kernel], shapes[bias]) == (shape, (1,))
    conversion = SOURCES[name](zeros(hints), name=name)
    assert conversion.task.classes == ("background", "foreground")
    theirs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours = conversion.table["params/logits/kernel"].array(theirs)
    expected = theirs if kernel in TENSORFLOW else theirs.transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(ours[..., 0], np.zeros_like(expected[..., 0]))
    np.testing.assert_array_equal(ours[..., 1:], expected)
    both = conversion.table["params/logits/bias"].array(np.float32([0.3]))
    np.testing.assert_array_equal(both, np.float32([0, 0.3]))


@pytest.mark.parametrize("name", ["torchvision/deeplabv3_resnet50", "smp/unet_resnet34"])
def test_the_foreground_is_where_the_sigmoid_is_above_one_half(name):
    kernel, bias, shape = HEADS[name]
    # A second output that nobody reads lets one compiled model compute the sigmoid's input too.
    state = reference_state(source_shapes(name, {kernel: (2, *shape[1:])}))
    with_two = pretrained.convert(name, state)
    image = with_two.preprocess({"image": 255 * reference_image(64, 64)}, None)["image"][None]
    apply = jax.jit(with_two.model.apply)
    z = np.asarray(apply(with_two.variables, image)["logits"][..., 0])
    shift = np.median(z)
    single = state | {kernel: state[kernel][:1], bias: state[bias][:1] - shift}
    logits = apply(pretrained.convert(name, single).variables, image)["logits"]
    z, labels = z - shift, np.argmax(logits, axis=-1)
    assert 0.4 < labels.mean() < 0.6
    clear = np.abs(z) > 1e-5  # the median itself is 0 up to rounding
    np.testing.assert_array_equal(labels[clear], z[clear] > 0)
    probability = jax.nn.softmax(logits)[..., 1]
    np.testing.assert_allclose(probability, jax.nn.sigmoid(z), rtol=0, atol=1e-6)


def test_an_auxiliary_head_with_one_output_has_two_as_well():
    name = "torchvision/deeplabv3_resnet50"
    hints = {"classifier.4.weight": (1, 256, 1, 1), "aux_classifier.0.weight": (256, 1024, 3, 3)}
    assert source_shapes(name, hints)["aux_classifier.4.weight"] == (1, 256, 1, 1)


def test_both_classes_may_be_named_and_one_name_is_refused():
    name, hints = "smp/unet_resnet34", {"segmentation_head.0.weight": (1, 16, 3, 3)}
    named = SOURCES[name](zeros(hints), name=name, classes=("other", "road"))
    assert named.task.classes == ("other", "road")
    with pytest.raises(ValueError, match=r"2 classes \(one output, a sigmoid, and the background"):
        SOURCES[name](zeros(hints), name=name, classes=("road",))
