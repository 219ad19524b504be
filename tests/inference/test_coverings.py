"""Properties of all coverings, and where WholeImage and SlidingWindow put their windows."""

import itertools

import numpy as np
import pytest

from segjax.inference.coverings import SlidingWindow, WholeImage
from segjax.inference.resizing import enlarged_size
from segjax.inference.tiling import Tiling
from segjax.inference.views import scales_and_flips

COVERINGS = [
    WholeImage((33, 49), multiple=16),
    SlidingWindow((20, 24), (12, 10)),
    Tiling((30, 36), (16, 20), multiple=4),
    Tiling((32, 38), (18, 22), multiple=4),  # outputs overlap by two pixels
]
SIZES = [(61, 83), (20, 24), (33, 49), (5, 7), (1, 40)]

of_all_coverings = pytest.mark.parametrize("covering", COVERINGS, ids=str)


def noise(height, width):
    return np.random.default_rng(height * width).random((height, width, 3), np.float32)


def kept(covering, window):
    """The kept part of the output of a network that returns its input."""
    height, width = covering.kept_size(window.shape[:2])
    top, left = (window.shape[0] - height) // 2, (window.shape[1] - width) // 2
    return window[top : top + height, left : left + width]


def windows(covering, image):
    return [covering.extract(image, position) for position in covering.positions(image.shape)]


@of_all_coverings
def test_windows_of_many_images_in_one_stream_make_up_the_images(covering):
    images = [noise(*size) for size in SIZES]
    stream = (kept(covering, window) for image in images for window in windows(covering, image))
    for image in images:
        count = len(covering.positions(image.shape))
        stitched = covering.stitch(itertools.islice(stream, count), image.shape)
        np.testing.assert_allclose(stitched, image, atol=1e-6)
    assert next(stream, None) is None


@of_all_coverings
def test_probabilities_still_sum_to_one_after_stitching(covering):
    shape = (61, 83, 3)
    outputs = [
        np.random.default_rng(place).dirichlet([1, 1, 1, 1], kept(covering, window).shape[:2])
        for place, window in enumerate(windows(covering, noise(61, 83)))
    ]
    stitched = covering.stitch(np.float32(outputs), shape)
    assert stitched.shape == (61, 83, 4)
    np.testing.assert_allclose(stitched.sum(-1), 1, atol=1e-6)


@of_all_coverings
@pytest.mark.parametrize(
    ("given", "returned"),
    [(np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)],
)
def test_outputs_without_channels_are_stitched_in_single_precision_or_better(
    covering, given, returned
):
    image = np.full((40, 50), 0.5, given)
    stitched = covering.stitch([kept(covering, w) for w in windows(covering, image)], image.shape)
    assert stitched.dtype == returned
    np.testing.assert_allclose(stitched, image, rtol=1e-6)


@of_all_coverings
def test_a_window_of_a_memory_map_is_an_array_in_memory(covering, tmp_path):
    stored = np.memmap(tmp_path / "image", np.uint8, "w+", shape=(60, 70, 3))
    stored[:] = np.random.default_rng(0).integers(0, 256, stored.shape)
    for found, expected in zip(
        windows(covering, stored), windows(covering, np.array(stored)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.uint8
        assert not np.shares_memory(found, stored)


@of_all_coverings
def test_outputs_that_do_not_belong_to_the_image_are_refused(covering):
    shape = (61, 83)
    outputs = [kept(covering, window) for window in windows(covering, noise(*shape))]
    count = len(outputs)
    with pytest.raises(ValueError, match=rf"has {count} windows with .* found more outputs"):
        covering.stitch([*outputs, outputs[0]], shape)
    with pytest.raises(ValueError, match=rf"has {count} windows with .* found fewer outputs"):
        covering.stitch(outputs[:-1], shape)
    height, width = outputs[0].shape[:2]
    message = rf"expected outputs of {height} × {width} pixels, found shape \({height - 1}, {width}"
    with pytest.raises(ValueError, match=message):
        covering.stitch([output[1:] for output in outputs], shape)
    with pytest.raises(TypeError, match="found uint8"):
        covering.stitch([output.astype(np.uint8) for output in outputs], shape)
    with pytest.raises(ValueError, match=r"found shape \(0, 4\)"):
        covering.positions((0, 4))


# --- WholeImage


@pytest.mark.parametrize(
    ("covering", "image", "padded"),
    [
        (WholeImage(), (375, 500), (513, 513)),
        (WholeImage(), (513, 1), (513, 513)),
        (WholeImage(), (514, 500), (529, 513)),
        (WholeImage(), (529, 530), (529, 545)),
        (WholeImage((1025, 2049)), (1024, 2048), (1025, 2049)),
        (WholeImage(multiple=32), (600, 800), (609, 801)),
        (WholeImage((520, 520), multiple=8), (520, 693), (520, 696)),
    ],
)
def test_whole_images_are_padded_to_the_size_or_to_the_next_beyond_it(covering, image, padded):
    assert covering.positions(image) == [(0, 0)]
    assert covering.extract(np.zeros(image, bool), (0, 0)).shape == padded
    assert covering.kept_size(padded) == padded


def test_padding_is_zero_below_and_on_the_right():
    image = noise(20, 30)
    window = WholeImage((33, 33)).extract(image, (0, 0))
    np.testing.assert_array_equal(window, np.pad(image, ((0, 13), (0, 3), (0, 0))))


def test_the_probabilities_of_a_whole_image_are_not_copied():
    output = np.random.default_rng(0).random((513, 513, 2), np.float32)
    stitched = WholeImage().stitch([output], (375, 500, 3))
    assert np.shares_memory(stitched, output)
    np.testing.assert_array_equal(stitched, output[:375, :500])


def test_a_scaled_size_keeps_corners_on_corners_at_the_papers_scales():
    sides = [WholeImage().scaled(view.scale).size for view in scales_and_flips(flip=False)]
    assert sides == [(side, side) for side in (257, 385, 513, 641, 769, 897)]
    assert WholeImage((1025, 2049)).scaled(0.75) == WholeImage((769, 1537))
    assert WholeImage((1025, 2049)).scaled(2.0) == WholeImage((2049, 4097))
    assert WholeImage((520, 520), multiple=8).scaled(0.75).size == (392, 392)
    assert WholeImage().scaled(0.3).size == (161, 161)
    assert WholeImage().scaled(0.01).size == (17, 17)
    assert WholeImage((801, 801)).scaled(1.1).size == (881, 881)  # 50 · 1.1 is 55.00000000000001


def test_all_of_voc_has_one_shape_at_each_scale():
    for view in scales_and_flips(flip=False):
        covering = WholeImage().scaled(view.scale)
        shapes = {
            covering.input_size(enlarged_size((height, 500), view.scale))
            for height in range(1, 501)
        }
        assert shapes == {covering.size}


# --- SlidingWindow


@pytest.mark.parametrize(
    ("length", "starts"),
    [
        (1, [0]),
        (4, [0]),
        (5, [0, 1]),
        (7, [0, 3]),
        (8, [0, 3, 4]),
        (10, [0, 3, 6]),
        (11, [0, 3, 6, 7]),
    ],
)
def test_windows_begin_at_multiples_of_the_stride_and_the_last_ends_with_the_image(length, starts):
    assert SlidingWindow((4, 9), (3, 9)).positions((length, 9)) == [(start, 0) for start in starts]
    assert SlidingWindow((9, 4), (9, 3)).positions((9, length)) == [(0, start) for start in starts]


def test_the_windows_of_mmsegmentation_on_cityscapes():
    positions = SlidingWindow((769, 769), (513, 513)).positions((1024, 2048, 3))
    assert positions == list(itertools.product((0, 255), (0, 513, 1026, 1279)))


def test_sliding_windows_are_averaged_with_equal_weight():
    covering, shape = SlidingWindow((7, 8), (5, 3)), (13, 17)
    positions = covering.positions(shape)
    outputs = np.random.default_rng(0).normal(size=(len(positions), 7, 8, 2))
    expected = np.zeros((*shape, 2))
    for row, column in np.ndindex(shape):
        expected[row, column] = np.mean(
            [
                output[row - r, column - c]
                for (r, c), output in zip(positions, outputs, strict=True)
                if 0 <= row - r < 7 and 0 <= column - c < 8
            ],
            axis=0,
        )
    np.testing.assert_allclose(covering.stitch(outputs, shape), expected, atol=1e-6)


def test_an_image_smaller_than_a_window_is_padded_with_zeros_below_and_on_the_right():
    image = noise(5, 20)
    first, second = windows(SlidingWindow((8, 12), (8, 12)), image)
    padded = np.pad(image, ((0, 3), (0, 0), (0, 0)))
    np.testing.assert_array_equal(first, padded[:, :12])
    np.testing.assert_array_equal(second, padded[:, 8:])


@pytest.mark.parametrize("covering", [COVERINGS[1], COVERINGS[2]], ids=str)
def test_windows_keep_their_size_at_every_scale(covering):
    assert covering.scaled(1.75) == covering


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WholeImage((0, 5)), r"WholeImage: size must be at least 1, found \(0, 5\)"),
        (lambda: WholeImage(multiple=0), "WholeImage: multiple must be at least 1, found 0"),
        (lambda: SlidingWindow((5, 5), (5, 0)), r"stride must be at least 1, found \(5, 0\)"),
        (lambda: SlidingWindow((5, 5), (5, 6)), r"stride \(5, 6\) would leave gaps"),
    ],
)
def test_impossible_coverings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
