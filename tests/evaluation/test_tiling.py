import itertools

import numpy as np
import pytest

from segjax.evaluation.tiling import (
    Tiling,
    extract_tile,
    single_tile,
    split,
    stitch,
    tile_positions,
)

PAPER = Tiling((572, 572), (388, 388), multiple=16)
# The shape law of `ToyUNet` without padding: 4b + 6 in, 4b − 14 out.
VALID = Tiling((46, 54), (26, 34), multiple=4)


class ToyUNet:
    """Two poolings, skips and an uneven up-sampling: only shifts by 4 commute with it."""

    def __init__(self, *, padded):
        self.padded = padded
        rng = np.random.default_rng(0)
        self.kernels = [rng.normal(0, 0.4, (3, 3, i, o)) for i, o in ((2, 4), (4, 4), (4, 4))]
        self.kernels += [rng.normal(0, 0.4, (3, 3, i, o)) for i, o in ((8, 4), (8, 3))]

    def convolve(self, x, kernel):
        if self.padded:
            x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1))
        return np.maximum(np.einsum("hwcij,ijco->hwo", windows, kernel, optimize=True), 0)

    def __call__(self, x):
        skips = []
        for kernel in self.kernels[:2]:
            x = self.convolve(x, kernel)
            skips.append(x)
            assert x.shape[0] % 2 == 0
            assert x.shape[1] % 2 == 0
            x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max((1, 3))
        x = self.convolve(x, self.kernels[2])
        for kernel in self.kernels[3:]:
            # Up-sampling that tells the four pixels of a block apart, as an up-convolution does.
            x = np.kron(x, np.array([[1.0, 0.5], [0.25, 0.8]])[..., None])
            skip = skips.pop()
            top, left = (skip.shape[0] - x.shape[0]) // 2, (skip.shape[1] - x.shape[1]) // 2
            skip = skip[top : top + x.shape[0], left : left + x.shape[1]]
            x = self.convolve(np.concatenate([x, skip], -1), kernel)
        return x


def noise(height, width, channels=2):
    return np.random.default_rng(height * width).normal(size=(height, width, channels))


def predict(network, image, tiling, **options):
    outputs = map(network, split(image, tiling))
    return stitch(outputs, image.shape, tiling, **options)


# Odd, even, smaller than a tile or than the mirrored margin, one pixel, exactly one and two tiles,
# one pixel more, and long and thin.
SIZES = [
    *[(61, 83), (64, 96), (17, 25), (5, 3), (1, 1), (1, 40)],
    *[(26, 34), (50, 66), (51, 67), (27, 2), (150, 9)],
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weighting", ["uniform", "gaussian"])
def test_tiles_of_a_valid_network_equal_the_whole_image_pass(size, weighting):
    image = noise(*size)
    network = ToyUNet(padded=False)
    whole = predict(network, image, single_tile(image.shape, VALID))
    tiled = predict(network, image, VALID, weighting=weighting)
    assert whole.shape == (*size, 3)
    assert whole.std() > 0.01
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-6 * np.abs(whole).max())


@pytest.mark.parametrize("size", [(61, 83), (9, 40), (1, 1)])
def test_more_overlap_changes_nothing_when_tiles_are_exact(size):
    image = noise(*size)
    network = ToyUNet(padded=False)
    whole = predict(network, image, single_tile(image.shape, VALID))
    tiling = Tiling(VALID.input_size, VALID.output_size, multiple=4, overlap=0.5)
    assert len(tile_positions(size, tiling)) >= len(tile_positions(size, VALID))
    tiled = predict(network, image, tiling, weighting="gaussian")
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-6 * np.abs(whole).max())


def test_tiles_off_the_grid_of_multiples_differ_from_the_whole_image_pass():
    image = noise(61, 83)
    network = ToyUNet(padded=False)
    whole = predict(network, image, single_tile(image.shape, VALID))
    tiled = predict(network, image, Tiling(VALID.input_size, VALID.output_size, multiple=1))
    assert np.abs(tiled - whole).max() > 0.1 * np.abs(whole).max()


@pytest.mark.parametrize("size", [(61, 83), (24, 32), (25, 33), (2, 3)])
def test_tiles_of_a_padded_network_equal_the_whole_image_pass_with_enough_context(size):
    image = noise(*size)
    network = ToyUNet(padded=True)

    def largest_difference(context):
        tiling = Tiling((24 + 2 * context, 32 + 2 * context), (24, 32), multiple=4)
        # The reference sees the wide context too, or its own padding would be the difference.
        wide = Tiling((48, 56), (24, 32), multiple=4)
        whole = predict(network, image, single_tile(image.shape, wide))
        return np.abs(predict(network, image, tiling) - whole).max() / np.abs(whole).max()

    assert largest_difference(12) < 1e-12
    assert largest_difference(0) > 1e-3


@pytest.mark.parametrize("length", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("position", [0, 4, 36])
def test_tiles_continue_the_image_as_a_mirror_without_repeating_the_border(length, position):
    image = np.arange(length * 3, dtype=np.uint16).reshape(length, 3, 1)
    tiling = Tiling((28, 9), (8, 5), multiple=4)
    before, after = 10, 60
    mirrored = np.pad(image, ((before, after), (2, 4), (0, 0)), mode="reflect")
    tile = extract_tile(image, (position, 0), tiling)
    assert tile.dtype == np.uint16
    np.testing.assert_array_equal(tile, mirrored[position : position + 28, :9])


def test_mirror_of_a_row_by_hand():
    row = np.array([[10, 20, 30]])
    tile = extract_tile(row, (0, 0), Tiling((1, 11), (1, 3)))
    np.testing.assert_array_equal(tile, [[10, 20, 30, 20, 10, 20, 30, 20, 10, 20, 30]])


def test_the_papers_tiles_stand_384_apart_and_read_92_pixels_of_context():
    assert PAPER.margin == (92, 92)
    assert PAPER.stride == (384, 384)
    assert tile_positions((512, 512), PAPER) == [(0, 0), (0, 384), (384, 0), (384, 384)]
    assert tile_positions((388, 388), PAPER) == [(0, 0)]
    assert tile_positions((389, 100), PAPER) == [(0, 0), (384, 0)]
    assert tile_positions((388 + 384, 1), PAPER) == [(0, 0), (384, 0)]


@pytest.mark.parametrize(
    ("length", "padded"), [(1, 188), (4, 188), (5, 204), (388, 572), (389, 588), (512, 700)]
)
def test_single_tile_of_the_papers_network_is_the_smallest_valid_size(length, padded):
    tiling = single_tile((length, 388, 1), PAPER)
    assert tiling.input_size == (padded, 572)
    assert tiling.margin == PAPER.margin
    assert tile_positions((length, 388), tiling) == [(0, 0)]


@pytest.mark.parametrize(
    ("output", "multiple", "overlap", "stride"),
    [
        ((388, 200), 16, 0.5, (192, 96)),
        ((80, 160), 16, 0.8, (16, 32)),  # 80 · (1 − 0.8) falls below 16 in floating point
        ((100, 100), 1, 0.25, (75, 75)),
        ((33, 33), 32, 0.0, (32, 32)),
    ],
)
def test_stride_is_the_largest_multiple_that_leaves_the_overlap(output, multiple, overlap, stride):
    assert Tiling(output, output, multiple, overlap).stride == stride


@pytest.mark.parametrize("weighting", ["uniform", "gaussian"])
def test_stitch_equals_a_weighted_mean_computed_pixel_by_pixel(weighting):
    tiling = Tiling((8, 12), (8, 12), multiple=2, overlap=0.6)
    assert tiling.stride == (2, 4)
    shape = (13, 21)
    positions = tile_positions(shape, tiling)
    outputs = np.random.default_rng(0).normal(size=(len(positions), 8, 12, 2))

    def weight(i, j):
        if weighting == "uniform":
            return 1.0
        return np.exp(-((i - 3.5) ** 2) / 2 / 1.0**2 - (j - 5.5) ** 2 / 2 / 1.5**2)

    expected = np.zeros((*shape, 2))
    for row, column in np.ndindex(shape):
        shares = [
            (weight(row - r, column - c), output[row - r, column - c])
            for (r, c), output in zip(positions, outputs, strict=True)
            if 0 <= row - r < 8 and 0 <= column - c < 12
        ]
        expected[row, column] = sum(w * y for w, y in shares) / sum(w for w, _ in shares)
    stitched = stitch(outputs, shape, tiling, weighting=weighting)
    np.testing.assert_allclose(stitched, expected, atol=1e-6)


def test_gaussian_weighting_hides_a_seam_that_uniform_weighting_leaves():
    tiling = Tiling((32, 32), (32, 32), overlap=0.5)
    outputs = np.stack([np.zeros((32, 32)), np.ones((32, 32))])
    steps = {
        weighting: np.abs(np.diff(stitch(outputs, (32, 48), tiling, weighting=weighting)[0])).max()
        for weighting in ("uniform", "gaussian")
    }
    assert steps["uniform"] == pytest.approx(0.5)
    assert steps["gaussian"] < 0.35


@pytest.mark.parametrize("weighting", ["uniform", "gaussian"])
def test_probabilities_still_sum_to_one_after_stitching(weighting):
    tiling = Tiling((20, 24), (16, 20), multiple=4, overlap=0.5)
    shape = (37, 53, 3)
    count = len(tile_positions(shape, tiling))
    outputs = np.random.default_rng(0).dirichlet([1, 1, 1, 1], (count, 16, 20)).astype(np.float32)
    stitched = stitch(outputs, shape, tiling, weighting=weighting)
    assert stitched.dtype == np.float32
    np.testing.assert_allclose(stitched.sum(-1), 1, atol=1e-6)


def test_tiles_of_many_images_pass_through_as_one_stream():
    images = [noise(61, 83), noise(5, 7), noise(40, 34)]
    tiles = (
        extract_tile(image, position, VALID)
        for image in images
        for position in tile_positions(image.shape, VALID)
    )
    outputs = (tile[10:36, 10:44] for tile in tiles)  # a network that returns its input
    for image in images:
        count = len(tile_positions(image.shape, VALID))
        stitched = stitch(itertools.islice(outputs, count), image.shape, VALID)
        np.testing.assert_array_equal(stitched, image)
    assert next(outputs, None) is None


def test_outputs_as_large_as_the_input_are_cropped_to_their_centre():
    image = noise(61, 83)
    np.testing.assert_array_equal(stitch(split(image, VALID), image.shape, VALID), image)


def test_stitch_keeps_outputs_without_channels_and_widens_half_precision():
    tiling = Tiling((4, 4), (4, 4))
    outputs = np.full((2, 4, 4), 0.5, np.float16)
    stitched = stitch(outputs, (3, 7), tiling)
    assert stitched.dtype == np.float32
    np.testing.assert_array_equal(stitched, np.full((3, 7), 0.5))


def test_a_tile_of_a_memory_map_is_an_array_in_memory(tmp_path):
    stored = np.memmap(tmp_path / "image", np.uint8, "w+", shape=(60, 70, 3))
    stored[:] = np.random.default_rng(0).integers(0, 256, stored.shape)
    tile = extract_tile(stored, (24, 32), VALID)
    np.testing.assert_array_equal(tile, extract_tile(np.array(stored), (24, 32), VALID))
    assert not np.shares_memory(tile, stored)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((571, 572), (388, 388)), "input height 571, output height 388"),
        (((572, 380), (388, 388)), "input width 380, output width 388"),
        (((572, 572), (0, 388)), "output height 0"),
        (((16, 16), (12, 12), 16), "multiples of 16"),
        (((32, 32), (32, 32), 16, 0.75), "smaller overlap"),
        (((32, 32), (32, 32), 16, 1.0), r"overlap must be in \[0, 1\), found 1.0"),
        (((32, 32), (32, 32), 0), "multiple must be at least 1"),
    ],
)
def test_impossible_tilings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tiling(*arguments)


def test_outputs_that_do_not_belong_to_the_image_are_refused():
    tiling = Tiling((4, 4), (4, 4))
    tiles = np.zeros((3, 4, 4, 2))
    with pytest.raises(ValueError, match=r"has 2 tiles .* found more outputs"):
        stitch(tiles, (4, 8), tiling)
    with pytest.raises(ValueError, match=r"has 4 tiles .* found fewer outputs"):
        stitch(tiles, (8, 8), tiling)
    with pytest.raises(ValueError, match=r"expected outputs of 4 × 4 pixels, found .*\(3, 4, 2\)"):
        stitch(tiles[:1, 1:], (4, 4), tiling)
    with pytest.raises(TypeError, match="found uint8"):
        stitch(tiles[:1].astype(np.uint8), (4, 4), tiling)
    with pytest.raises(ValueError, match="'linear'"):
        stitch(tiles[:1], (4, 4), tiling, weighting="linear")
    with pytest.raises(ValueError, match=r"found shape \(0, 4\)"):
        tile_positions((0, 4), tiling)
