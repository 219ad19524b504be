"""Discs as a map of instances and as an example, shared by tests of objects."""

import numpy as np

from segjax.coco.masks import paste_mask
from segjax.data.instance_masks import InstancesToObjects

SIZE = (90, 120)
DISCS = {
    3: (30, 40, 18),
    7: (60, 90, 22),
    8: (70, 30, 12),
    1000: (2, 100, 10),
}  # row, column, radius


def draw(scale=1.0, size=SIZE):
    """Draws discs into a map of instances, at a scale."""
    rows, columns = (np.arange(side) + 0.5 for side in size)
    instances = np.zeros(size, np.int32)
    for number, (row, column, radius) in DISCS.items():
        distance = np.hypot(rows[:, None] - scale * row, columns - scale * column)
        instances[distance < scale * radius] = number
    return instances


def make_example(seed=0):
    """The discs as objects of class 2, white on black in the image."""
    instances = draw()
    image = np.repeat(np.uint8(255 * (instances > 0))[..., None], 3, axis=2)
    labels = np.where(instances > 0, 2, 0).astype(np.uint8)
    example = {"id": "discs", "image": image, "labels": labels, "instances": instances}
    return InstancesToObjects()(example, np.random.default_rng(seed))


def whole(example):
    """The masks of an example as whole images, bool [H, W]."""
    size = example["image"].shape[:2]
    return [paste_mask(mask, size) for mask in example["masks"]]


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def frozen(example):
    """Makes the arrays of an example read-only."""
    for value in (example["image"], example["boxes"], *(m.pixels for m in example["masks"])):
        value.flags.writeable = False
    return example
