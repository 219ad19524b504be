"""Trained weights see in photographs what is in them."""

import cv2
import jax
import numpy as np
import pytest

from segjax import pretrained
from segjax.pretrained.preprocess import IMAGENET

# Photographs of COCO, and ImageNet's number of what is in them.
PHOTOGRAPHS = {
    "train2017/000000054718": 385,  # Indian elephant
    "train2017/000000249346": 388,  # giant panda
    "train2017/000000466137": 850,  # teddy bear
    "val2017/000000519611": 296,  # ice bear
    "val2017/000000062554": 937,  # broccoli
    "val2017/000000244592": 340,  # zebra
    "val2017/000000407574": 954,  # banana
    "val2017/000000160012": 963,  # pizza
}
KINDS = {
    "elephant": ("train2017/000000054718", "val2017/000000519208"),
    "train": ("train2017/000000113488", "val2017/000000482585"),
    "banana": ("train2017/000000100667", "val2017/000000407574"),
    "pizza": ("train2017/000000121647", "val2017/000000160012"),
}


def photograph(folder, name):
    """The central 224 × 224 pixels of a photograph with a shorter side of 256."""
    image = cv2.imread(str(folder / "coco_mini" / f"{name}.jpg"))[..., ::-1]
    scale = 256 / min(image.shape[:2])
    size = [round(length * scale) for length in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    top, left = ((length - 224) // 2 for length in image.shape[:2])
    return image[top : top + 224, left : left + 224]


def features(backbone, images, preprocess):
    """The means of a backbone's last map, [images, channels]."""
    inputs = np.stack([preprocess({"image": image}, None)["image"] for image in images])

    @jax.jit
    def means(variables, inputs):
        return backbone.model.apply(variables, inputs)["features"].mean(axis=(1, 2))

    return np.asarray(means(backbone.variables, inputs))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("torchvision/resnet18", "resnet18_imagenet_torchvision_names.npz"),
        ("smp/resnet50", "resnet50_large_imagenet_torchvision_names.npz"),
    ],
)
def test_the_files_own_classifier_names_what_the_converted_backbone_sees(real_data, name, file):
    path = real_data / "weights" / file
    backbone = pretrained.load(name, path)
    images = [photograph(real_data, photo) for photo in PHOTOGRAPHS]
    with np.load(path) as arrays:
        kernel, bias = (arrays[f"fc.{part}"].astype(np.float32) for part in ("weight", "bias"))
    logits = features(backbone, images, backbone.preprocess) @ kernel.T + bias
    np.testing.assert_array_equal(logits.argmax(axis=1), [*PHOTOGRAPHS.values()])
    shares = np.exp(logits.max(axis=1)) / np.exp(logits).sum(axis=1)
    assert shares.min() > 0.6


def test_photographs_of_one_kind_are_neighbours_for_tensorflows_mobilenet(real_data):
    path = real_data / "weights" / "mobilenetv2_imagenet_tfnames.npz"
    images = [photograph(real_data, name) for pair in KINDS.values() for name in pair]
    # These weights want ImageNet's mean and deviation, unlike TensorFlow's own.
    means = features(pretrained.load("tf/mobilenet_v2", path), images, IMAGENET)
    means = means - means.mean(axis=0)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    likeness = means @ means.T - 2 * np.eye(len(means))
    np.testing.assert_array_equal(likeness.argmax(axis=1), [1, 0, 3, 2, 5, 4, 7, 6])
