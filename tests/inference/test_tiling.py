import numpy as np
import pytest

from segjax.inference.tiling import Tiling

PAPER = Tiling((572, 572), (388, 388), multiple=16)
# `ToyUNet` without padding maps a side of 4b + 6 to 4b − 14.
VALID = Tiling((46, 54), (26, 34), multiple=4)


class ToyUNet:
    """Two poolings, skips and an uneven up-sampling: it commutes only with shifts by 4."""

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
            # The four pixels of a block get different values, as in an up-convolution.
            x = np.kron(x, np.array([[1.0, 0.5], [0.25, 0.8]])[..., None])
            skip = skips.pop()
            top, left = (skip.shape[0] - x.shape[0]) // 2, (skip.shape[1] - x.shape[1]) // 2
            skip = skip[top : top + x.shape[0], left : left + x.shape[1]]
            x = self.convolve(np.concatenate([x, skip], -1), kernel)
        return x


def noise(height, width, channels=2):
    return np.random.default_rng(height * width).normal(size=(height, width, channels))


def predict(network, image, tiling):
    """Predicts an image tile by tile; the kept centre is cut out of each output."""

    def kept(position):
        output = network(tiling.extract(image, position))
        height, width = tiling.kept_size(tiling.input_size)
        top, left = (output.shape[0] - height) // 2, (output.shape[1] - width) // 2
        return output[top : top + height, left : left + width]

    return tiling.stitch(map(kept, tiling.positions(image.shape)), image.shape)


# Odd and even; smaller than a tile, and than the mirrored margin; one pixel; exactly one and two
# tiles, and one pixel more; long and thin.
SIZES = [
    *[(61, 83), (64, 96), (17, 25), (5, 3), (1, 1), (1, 40)],
    *[(26, 34), (50, 66), (51, 67), (27, 2), (150, 9)],
]


@pytest.mark.parametrize("size", SIZES)
def test_tiles_of_a_valid_network_equal_the_whole_image_pass(size):
    image = noise(*size)
    network = ToyUNet(padded=False)
    whole = predict(network, image, VALID.single(image.shape))
    tiled = predict(network, image, VALID)
    assert whole.shape == (*size, 3)
    assert whole.std() > 0.01
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-6 * np.abs(whole).max())


def test_tiles_off_the_grid_of_multiples_differ_from_the_whole_image_pass():
    image = noise(61, 83)
    network = ToyUNet(padded=False)
    whole = predict(network, image, VALID.single(image.shape))
    tiled = predict(network, image, Tiling(VALID.input_size, VALID.output_size, multiple=1))
    assert np.abs(tiled - whole).max() > 0.1 * np.abs(whole).max()


@pytest.mark.parametrize("size", [(61, 83), (24, 32), (25, 33), (2, 3)])
def test_tiles_of_a_padded_network_equal_the_whole_image_pass_with_enough_context(size):
    image = noise(*size)
    network = ToyUNet(padded=True)

    def largest_difference(context):
        tiling = Tiling((24 + 2 * context, 32 + 2 * context), (24, 32), multiple=4)
        # The reference has the wide context too; otherwise its own padding would differ.
        wide = Tiling((48, 56), (24, 32), multiple=4)
        whole = predict(network, image, wide.single(image.shape))
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
    tile = tiling.extract(image, (position, 0))
    assert tile.dtype == np.uint16
    np.testing.assert_array_equal(tile, mirrored[position : position + 28, :9])


def test_mirror_of_a_row_by_hand():
    row = np.array([[10, 20, 30]])
    tile = Tiling((1, 11), (1, 3)).extract(row, (0, 0))
    np.testing.assert_array_equal(tile, [[10, 20, 30, 20, 10, 20, 30, 20, 10, 20, 30]])


def test_the_papers_tiles_stand_384_apart_and_read_92_pixels_of_context():
    assert PAPER.margin == (92, 92)
    assert PAPER.stride == (384, 384)
    assert PAPER.positions((512, 512)) == [(0, 0), (0, 384), (384, 0), (384, 384)]
    assert PAPER.positions((388, 388)) == [(0, 0)]
    assert PAPER.positions((389, 100)) == [(0, 0), (384, 0)]
    assert PAPER.positions((388 + 384, 1)) == [(0, 0), (384, 0)]


@pytest.mark.parametrize(
    ("length", "padded"), [(1, 188), (4, 188), (5, 204), (388, 572), (389, 588), (512, 700)]
)
def test_single_tile_of_the_papers_network_is_the_smallest_valid_size(length, padded):
    tiling = PAPER.single((length, 388, 1))
    assert tiling.input_size == (padded, 572)
    assert tiling.margin == PAPER.margin
    assert tiling.positions((length, 388)) == [(0, 0)]


@pytest.mark.parametrize(
    ("output", "multiple", "stride"),
    [
        ((388, 200), 16, (384, 192)),
        ((100, 100), 1, (100, 100)),
        ((33, 33), 32, (32, 32)),
    ],
)
def test_stride_is_the_largest_multiple_within_the_output(output, multiple, stride):
    assert Tiling(output, output, multiple).stride == stride


def test_stitch_equals_a_mean_computed_pixel_by_pixel():
    tiling = Tiling((8, 12), (8, 12), multiple=5)
    assert tiling.stride == (5, 10)
    shape = (13, 21)
    positions = tiling.positions(shape)
    outputs = np.random.default_rng(0).normal(size=(len(positions), 8, 12, 2))
    expected = np.zeros((*shape, 2))
    for row, column in np.ndindex(shape):
        found = [
            output[row - r, column - c]
            for (r, c), output in zip(positions, outputs, strict=True)
            if 0 <= row - r < 8 and 0 <= column - c < 12
        ]
        expected[row, column] = np.mean(found, axis=0)
    stitched = tiling.stitch(outputs, shape)
    np.testing.assert_allclose(stitched, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((571, 572), (388, 388)), "input height 571, output height 388"),
        (((572, 380), (388, 388)), "input width 380, output width 388"),
        (((572, 572), (0, 388)), "output height 0"),
        (((16, 16), (12, 12), 16), "multiples of 16"),
        (((32, 32), (32, 32), 0), "multiple must be at least 1"),
    ],
)
def test_impossible_tilings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tiling(*arguments)
