import numpy as np
import pytest

from segjax.evaluation.boundary import (
    boundary_counts,
    boundary_iou,
    boundary_iou_of_counts,
    trimap_counts,
)


def slow_boundary(mask, counted, distance):
    """Marks mask pixels within a chessboard distance of another class or of the image's outside."""
    outside = np.pad(counted & ~mask, distance, constant_values=True)
    boundary = np.zeros_like(mask)
    for y, x in np.argwhere(mask & counted):
        boundary[y, x] = outside[y : y + 2 * distance + 1, x : x + 2 * distance + 1].any()
    return boundary


def blobs(seed, num_classes=3):
    labels = np.random.default_rng(seed).integers(0, num_classes, (4, 5))
    return np.kron(labels, np.ones((5, 5), int)).astype(np.uint8)


@pytest.mark.parametrize(("ratio", "distance"), [(0.001, 1), (0.06, 2), (0.1, 3)])
def test_counts_agree_with_a_search_around_each_pixel(ratio, distance):
    labels, predictions = blobs(0), np.roll(blobs(0), 1, axis=1)
    labels[3:9, 8:13] = 255
    counted = labels != 255
    counts = boundary_counts(labels, predictions, num_classes=3, dilation_ratio=ratio)
    for class_id in range(3):
        true = slow_boundary(labels == class_id, counted, distance)
        predicted = slow_boundary(predictions == class_id, counted, distance)
        expected = [(true & predicted).sum(), (true | predicted).sum()]
        assert counts[class_id].tolist() == expected
        assert expected[0] > 0
    assert counts.dtype == np.int64


def test_hand_computed_square_shifted_by_one():
    # A 4×4 square has a ring of 12 boundary pixels. Two rings one column apart share 3 pixels in
    # the top row and 3 in the bottom row.
    labels = np.zeros((20, 20), int)
    labels[5:9, 5:9] = 1
    counts = boundary_counts(labels, np.roll(labels, 1, axis=1), num_classes=2)
    assert counts[1].tolist() == [6, 18]


def test_mask_cut_by_the_image_has_a_boundary_there():
    whole = np.zeros((10, 10), int)
    counts = boundary_counts(whole, whole, num_classes=2, dilation_ratio=0.01)
    assert counts.tolist() == [[36, 36], [0, 0]]


def test_edge_of_an_ignored_region_is_no_boundary():
    labels = np.zeros((11, 11), int)
    labels[4:7, 4:7] = 255
    counts = boundary_counts(labels, np.zeros_like(labels), num_classes=1, dilation_ratio=0.01)
    assert counts.tolist() == [[40, 40]]


def test_perfect_is_one_and_absent_is_nan():
    labels = blobs(1, num_classes=2)
    np.testing.assert_array_equal(boundary_iou(labels, labels, num_classes=3), [1, 1, np.nan])


def test_class_only_predicted_is_zero():
    labels = np.zeros((8, 8), int)
    predictions = labels.copy()
    predictions[2:5, 2:5] = 1
    assert boundary_iou(labels, predictions, num_classes=2)[1] == 0


def test_inner_mistakes_cost_the_mask_but_not_its_boundary():
    labels = np.ones((40, 40), int)
    predictions = labels.copy()
    predictions[20, 20] = 0
    iou = boundary_iou(labels, predictions, num_classes=2)
    ring = 40**2 - 38**2
    assert iou[1] == pytest.approx(ring / (ring + 8))


def test_sums_over_images_are_counts_of_the_set():
    counts = sum(boundary_counts(blobs(seed), blobs(seed + 5), num_classes=3) for seed in range(3))
    np.testing.assert_allclose(boundary_iou_of_counts(counts), counts[:, 0] / counts[:, 1])
    assert (counts[:, 0] < counts[:, 1]).all()


@pytest.mark.parametrize(
    ("labels", "predictions", "options", "message"),
    [
        (np.zeros((4, 4), int), np.zeros((4, 5), int), {}, r"\(4, 4\) and \(4, 5\)"),
        (np.zeros(4, int), np.zeros(4, int), {}, r"one shape \[height, width\]"),
        (np.zeros((4, 4), int), np.zeros((4, 4), int), {"dilation_ratio": 0}, "positive, not 0"),
        (np.full((4, 4), 2), np.zeros((4, 4), int), {}, r"labels .* found \[2\]"),
        (np.zeros((4, 4), int), np.full((4, 4), 9), {}, r"predictions .* found \[9\]"),
    ],
)
def test_bad_input_is_named(labels, predictions, options, message):
    with pytest.raises(ValueError, match=message):
        boundary_counts(labels, predictions, num_classes=2, **options)


def slow_band(labels, width, border):
    """Marks the counted pixels within a chessboard distance of void or of another class."""
    band = np.zeros(labels.shape, bool)
    for y, x in np.argwhere(labels != 255):
        window = labels[max(y - width, 0) : y + width + 1, max(x - width, 0) : x + width + 1]
        void = window == 255
        band[y, x] = (void if border == "void" else ~void & (window != labels[y, x])).any()
    return band


@pytest.mark.parametrize("border", ["void", "classes"])
def test_trimaps_agree_with_a_search_around_each_pixel(border):
    labels, predictions = blobs(0), np.roll(blobs(0), 1, axis=1)
    labels[3:9, 8:13] = 255
    widths = (1, 2, 3, 40)
    counts = trimap_counts(labels, predictions, num_classes=3, widths=widths, border=border)
    for width, matrix in zip(widths, counts, strict=True):
        band = slow_band(labels, width, border)
        for true, predicted in np.ndindex(3, 3):
            both = (labels == true) & (predictions == predicted)
            assert matrix[true, predicted] == (both & band).sum()
    assert counts.dtype == np.int64
    assert (np.diff(counts.sum((1, 2))) > 0).all()
    assert counts[-1].sum() == (labels != 255).sum()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.int64])
def test_counts_are_those_of_the_classes_whatever_integers_hold_them(dtype):
    labels = 120 * blobs(0).astype(np.int64)  # 0, 120 and 240, the last beyond int8
    predictions = np.roll(labels, 1, axis=1)
    labels[3:9, 8:13] = 255
    given = labels.astype(dtype), predictions.astype(dtype)
    for border in ("void", "classes"):
        options = {"num_classes": 241, "widths": (1, 3), "border": border}
        expected = trimap_counts(labels, predictions, **options)
        assert expected.any()
        np.testing.assert_array_equal(trimap_counts(*given, **options), expected)
    expected = boundary_counts(labels, predictions, num_classes=241)
    np.testing.assert_array_equal(boundary_counts(*given, num_classes=241), expected)


def test_trimap_of_a_void_line_by_hand():
    labels = np.zeros((6, 9), np.uint8)
    labels[:, 4], labels[:, 5:] = 255, 1
    predictions = np.zeros_like(labels)
    options = {"num_classes": 2, "widths": (1, 3)}
    assert trimap_counts(labels, predictions, **options).tolist() == [
        [[6, 0], [6, 0]],
        [[18, 0], [18, 0]],
    ]
    # The two classes do not touch: their nearest pixels are two apart.
    assert trimap_counts(labels, predictions, **options, border="classes").tolist() == [
        [[0, 0], [0, 0]],
        [[12, 0], [12, 0]],
    ]


@pytest.mark.parametrize("border", ["void", "classes"])
def test_one_class_without_void_has_no_border(border):
    labels = np.full((5, 5), 2)
    counts = trimap_counts(labels, labels, num_classes=3, widths=(1, 9), border=border)
    assert not counts.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (2, 0)}, r"widths must be at least 1 pixel, found \(2, 0\)"),
        ({"widths": ()}, "widths must be at least 1"),
        ({"border": "edges"}, '"void" or "classes", found \'edges\''),
        ({"num_classes": 1}, r"labels .* found \[1\]"),
        ({"labels": np.zeros((4, 5), np.uint8)}, r"\(4, 5\) and \(4, 4\)"),
        ({"predictions": np.full((4, 4), 9), "border": "classes"}, r"predictions .* found \[9\]"),
    ],
)
def test_impossible_trimaps_are_refused(options, message):
    labels = np.uint8([[0, 0, 1, 1]] * 4)
    given = {"labels": labels, "predictions": labels, "num_classes": 2, "widths": (1,)} | options
    with pytest.raises(ValueError, match=message):
        trimap_counts(**given)
