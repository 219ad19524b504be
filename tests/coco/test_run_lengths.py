"""Run lengths equal those of pycocotools byte for byte."""

import numpy as np
import pytest

from segjax.coco import run_lengths as rle


def encoded_by_coco(mask):
    coco_mask = pytest.importorskip("pycocotools.mask")
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def random_masks(count, largest):
    rng = np.random.default_rng(0)
    for _ in range(count):
        density = rng.choice([0, 0.01, 0.5, 0.99, 1])
        yield rng.random(rng.integers(1, largest, 2)) < density


def blocks():
    """Masks with short runs and runs of thousands of pixels, which take several characters."""
    mask = np.zeros((700, 900), bool)
    yield mask
    yield ~mask
    mask[5:690, 100:102] = True
    mask[350:352, 500:600] = True
    yield mask
    yield ~mask
    single = np.zeros((700, 900), bool)
    single[-1, -1] = True
    yield single


def test_masks_are_encoded_as_coco_does():
    for mask in [*random_masks(200, 60), *blocks()]:
        assert rle.encode(mask) == encoded_by_coco(mask)


def test_decoding_and_area_undo_encoding():
    for mask in [*random_masks(100, 60), *blocks()]:
        encoded = rle.encode(mask)
        np.testing.assert_array_equal(rle.decode(encoded), mask)
        assert rle.area(encoded) == mask.sum()
        as_bytes = {**encoded, "counts": encoded["counts"].encode()}
        np.testing.assert_array_equal(rle.decode(as_bytes), mask)
        uncompressed = {**encoded, "counts": rle.run_lengths(mask).tolist()}
        np.testing.assert_array_equal(rle.decode(uncompressed), mask)
        assert rle.area(uncompressed) == mask.sum()


def test_a_window_is_encoded_as_the_whole_image_would_be():
    rng = np.random.default_rng(1)
    for _ in range(500):
        size = rng.integers(1, 9, 2)
        extent = rng.integers(0, size + 1)
        top, left = rng.integers(0, size - extent + 1)
        window = rng.random(extent) < rng.choice([0.2, 0.8, 1])
        whole = np.zeros(size, bool)
        whole[top : top + extent[0], left : left + extent[1]] = window
        assert rle.encode(window, size=size, top=top, left=left) == rle.encode(whole)


def test_runs_go_down_the_columns_and_begin_with_background():
    mask = np.array([[1, 0, 1], [0, 0, 1]], bool)
    assert rle.run_lengths(mask).tolist() == [0, 1, 3, 2]
    # The fourth length is stored as its difference from the second.
    assert rle.encode(mask) == {"size": [2, 3], "counts": "0131"}


@pytest.mark.parametrize("size", [(0, 0), (0, 3), (3, 0)])
def test_an_image_without_pixels_has_one_empty_run(size):
    encoded = rle.encode(np.zeros(size, bool))
    assert encoded == {"size": list(size), "counts": "0"}
    assert rle.decode(encoded).shape == size
    assert rle.area(encoded) == 0


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("1 3", "expected compressed run lengths"),
        ("1X", "expected compressed run lengths"),  # the last number is cut short
        ("o" * 9 + "0", "expected compressed run lengths"),
        ("13", "runs that fill 2 × 3 pixels, found 4"),
        ("", "runs that fill 2 × 3 pixels, found 0"),
        ([1, 2], "runs that fill 2 × 3 pixels, found 3"),
        ([7, -1], "runs that fill"),
        ([1.0, 5.0], "as text or as integers"),
    ],
)
def test_wrong_counts_are_refused(counts, message):
    for function in (rle.decode, rle.area):
        with pytest.raises(ValueError, match=message):
            function({"size": [2, 3], "counts": counts})


def test_a_window_beyond_the_image_is_refused():
    with pytest.raises(ValueError, match=r"2 × 2 pixels at \(1, 0\) reaches out of .* 2 × 3"):
        rle.encode(np.ones((2, 2), bool), size=(2, 3), top=1)
    with pytest.raises(ValueError, match="expected a mask"):
        rle.encode(np.ones((2, 2, 1), bool))


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 3)])
def test_the_order_of_a_mask_in_memory_changes_nothing(size):
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.9, 1.0):
        mask = rng.random(size) < share
        expected = rle.encode(mask)
        np.testing.assert_array_equal(rle.decode(expected), mask)
        assert rle.encode(np.asfortranarray(mask)) == expected
        assert rle.encode(np.repeat(mask, 2, axis=1)[:, ::2]) == expected
