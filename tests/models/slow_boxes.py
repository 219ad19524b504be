"""Decoding and suppression of boxes one at a time, in float64."""

import numpy as np


def slow_decode(deltas, anchor, weights, size):
    """Moves an anchor [4] by deltas [4] and clips the box to an image."""
    dx, dy, dw, dh = np.asarray(deltas, np.float64) / weights
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x, y = anchor[0] + width / 2 + dx * width, anchor[1] + height / 2 + dy * height
    width, height = width * np.exp(dw) / 2, height * np.exp(dh) / 2
    box = [x - width, y - height, x + width, y + height]
    return np.clip(box, 0, [size[1], size[0], size[1], size[0]])


def slow_iou(a, b):
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    intersection = np.prod(np.maximum(sides, 0))
    areas = sum(np.prod(box[2:] - box[:2]) for box in (a, b))
    return intersection / (areas - intersection)


def slow_nms(candidates, threshold):
    """Keeps each (score, group, box) that no better kept box of its group overlaps, best first."""
    kept = []
    for score, group, box in sorted(candidates, key=lambda entry: -entry[0]):
        if all(group != g or slow_iou(box, b) <= threshold for _, g, b in kept):
            kept.append((score, group, box))
    return kept
