"""Detections of several views of an image are merged."""

import numpy as np
import pytest

from segjax.inference.instance_views import merge_views, to_original_frame
from segjax.inference.paste import paste

OPTIONS = {"iou_threshold": 0.5, "max_detections": 10}


def make_view(boxes, scores, classes=None, value=1.0):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return {
        "boxes": boxes,
        "scores": np.array(scores, np.float32),
        "classes": np.ones(len(boxes), np.int32) if classes is None else np.array(classes),
        "masks": np.full((len(boxes), 28, 28), value, np.float32),
    }


def test_one_view_is_kept_as_it_is_where_nothing_overlaps():
    rng = np.random.default_rng(0)
    view = make_view([[0, 0, 9, 9], [20, 0, 30, 9], [0, 20, 9, 30]], [0.2, 0.9, 0.5], [1, 2, 1])
    view["masks"] = rng.random((3, 28, 28)).astype(np.float32)
    merged = merge_views([view], **OPTIONS)
    order = [1, 2, 0]
    for name, values in merged.items():
        np.testing.assert_array_equal(values, view[name][order])
    assert merged["classes"].dtype == np.int32


def test_boxes_are_suppressed_by_higher_scores_of_their_class_in_any_view():
    first = make_view([[0, 0, 10, 10], [50, 50, 60, 60]], [0.6, 0.7], [1, 1])
    second = make_view([[0, 0, 10, 9], [0, 0, 10, 9], [4, 0, 14, 10]], [0.9, 0.8, 0.5], [1, 2, 1])
    merged = merge_views([first, second], **OPTIONS)
    np.testing.assert_array_equal(merged["scores"], np.float32([0.9, 0.8, 0.7, 0.5]))
    np.testing.assert_array_equal(merged["classes"], [1, 2, 1, 1])
    np.testing.assert_array_equal(merged["boxes"][0], [0, 0, 10, 9])
    top = merge_views([first, second], iou_threshold=0.5, max_detections=2)
    np.testing.assert_array_equal(top["boxes"], merged["boxes"][:2])


def test_an_overlap_at_the_threshold_suppresses_nothing():
    view = make_view([[0, 0, 10, 10], [0, 0, 10, 5]], [0.9, 0.8])
    assert len(merge_views([view], **OPTIONS)["scores"]) == 2
    assert len(merge_views([view], iou_threshold=0.49, max_detections=10)["scores"]) == 1


def test_masks_are_averaged_over_views_with_one_of_each():
    first = make_view([[0, 0, 100, 100]], [0.9], value=1.0)
    # Both boxes of the second view are suppressed; only the mask of the more similar one counts.
    second = make_view([[0, 0, 100, 100], [0, 0, 100, 90]], [0.8, 0.85], value=0.4)
    second["masks"][1] = 0
    # Suppressed, but too different to be the same object.
    third = make_view([[0, 0, 100, 60]], [0.7], value=0.0)
    merged = merge_views([first, second, third], **OPTIONS)
    np.testing.assert_allclose(merged["masks"], np.full((1, 28, 28), 0.7), atol=1e-6)
    np.testing.assert_array_equal(merged["boxes"], [[0, 0, 100, 100]])


def test_masks_of_other_boxes_are_moved_into_the_frame_of_the_kept_box():
    """A disc seen in two slightly different frames is the same disc."""
    frames = np.array([[10, 10, 90, 90], [14, 6, 90, 94]], np.float32)
    views = []
    for frame, score in zip(frames, (0.9, 0.8), strict=True):
        x, y = (
            frame[side] + (np.arange(28) + 0.5) / 28 * (frame[side + 2] - frame[side])
            for side in (0, 1)
        )
        distance = np.hypot(x - 52, (y - 48)[:, None])
        views.append(make_view(frame, [score]))
        views[-1]["masks"][0] = 1 / (1 + np.exp((distance - 30) / 4))
    merged = merge_views(views, **OPTIONS)
    difference = np.abs(merged["masks"][0] - views[0]["masks"][0])[2:-2, 2:-2]
    assert 0 < difference.max() < 0.02
    assert np.abs(views[1]["masks"] - views[0]["masks"]).max() > 0.1


def test_a_mirrored_and_enlarged_view_is_mapped_back_to_the_image():
    size, view_size = (40, 60), (80, 120)
    mask = np.random.default_rng(0).random((1, 28, 28)).astype(np.float32)
    box = np.array([[5, 10, 25, 30]], np.float32)
    seen = {"boxes": np.array([[120 - 50, 20, 120 - 10, 60]]), "masks": mask[:, :, ::-1]}
    restored = to_original_frame(
        seen | {"scores": 1}, view_size=view_size, size=size, mirrored=True
    )
    np.testing.assert_array_equal(restored["boxes"], box)
    np.testing.assert_array_equal(restored["masks"], mask)
    assert restored["scores"] == 1
    # Pasting into the mirrored image and mirroring back equals pasting directly.
    drawn = paste(seen["masks"][0], seen["boxes"][0], view_size, rule="detectron2")[:, ::-1]
    direct = paste(mask[0], 2 * box[0], view_size, rule="detectron2")
    np.testing.assert_allclose(drawn, direct, atol=1e-6)


def test_boxes_are_cut_at_the_border_of_the_image():
    view = {"boxes": np.array([[-8.0, -4.0, 130.0, 81.0]]), "masks": np.zeros((1, 28, 28))}
    restored = to_original_frame(view, view_size=(80, 120), size=(40, 60))
    np.testing.assert_array_equal(restored["boxes"], [[0, 0, 60, 40]])


def test_views_without_detections_and_no_views():
    empty, view = make_view([], []), make_view([[0, 0, 9, 9]], [0.9])
    merged = merge_views([empty, empty], **OPTIONS)
    assert [merged[name].shape for name in ("boxes", "masks")] == [(0, 4), (0, 28, 28)]
    np.testing.assert_array_equal(merge_views([empty, view], **OPTIONS)["boxes"], view["boxes"])
    with pytest.raises(ValueError, match="at least one view"):
        merge_views([], **OPTIONS)


def test_empty_boxes_are_kept_and_suppress_nothing():
    view = make_view([[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9]], [0.9, 0.8, 0.7])
    assert len(merge_views([view], **OPTIONS)["scores"]) == 3
