"""The forms in JAX of normalisation, windows, resizing and pasting equal those in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from segjax.coco import run_lengths as rle
from segjax.data.augmentation.instance import resize_image
from segjax.data.augmentation.normalization import StandardizeBands, StretchPercentiles
from segjax.data.augmentation.photometric import to_eight_bits
from segjax.data.augmentation.semantic import Normalize, Standardize
from segjax.export.pasting import paste
from segjax.export.pixels import eight_bits, normalization
from segjax.export.resampling import resample
from segjax.export.windows import cover
from segjax.inference.coverings import SlidingWindow, WholeImage
from segjax.inference.paste import paste_to_rle
from segjax.inference.tiling import Tiling

TILING = Tiling((14, 16), (6, 8), multiple=4)
SLIDING = SlidingWindow((9, 12), (5, 7))
WHOLE = WholeImage((17, 17), multiple=8)


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


@pytest.mark.parametrize(
    "preprocess",
    [
        Normalize((10.0, 20.0, 30.0), 7.0),
        Standardize(),
        StandardizeBands((100.0, 120.0, 90.0), (30.0, 40.0, 50.0)),
        StretchPercentiles(1.0, 99.8),
    ],
    ids=lambda each: type(each).__name__,
)
def test_images_are_normalised_as_in_training(preprocess):
    images = noise(2, 23, 31, 3)
    images[1, ..., 2] = 7  # a flat band
    found = normalization(preprocess)(jnp.asarray(images))
    expected = [preprocess({"image": image}, None)["image"] for image in images]
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_a_flat_image_becomes_zero_and_a_bright_one_keeps_its_digits():
    flat = np.full((1, 8, 8, 1), 9, np.uint8)
    assert not np.any(normalization(Standardize())(jnp.asarray(flat)))
    bright = 60_000 + noise(1, 300, 400, 1, dtype=np.uint16)
    expected = Standardize()({"image": bright[0]}, None)["image"]
    found = normalization(Standardize())(jnp.asarray(bright))[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_grey_image_gets_the_channels_of_the_means():
    grey = noise(1, 4, 5, 1)
    preprocess = Normalize((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    found = normalization(preprocess)(jnp.asarray(grey))[0]
    np.testing.assert_allclose(found, preprocess({"image": grey[0]}, None)["image"], rtol=1e-6)


def test_sixteen_bits_become_eight_by_the_range():
    image = np.arange(0, 65536, 13, dtype=np.uint16).reshape(1, 1, -1, 1)
    found = eight_bits(jnp.asarray(image), (500.0, 60_000.0))
    np.testing.assert_array_equal(found, to_eight_bits(image, (500.0, 60_000.0)))


def test_an_unknown_preprocessing_is_refused():
    with pytest.raises(ValueError, match="the preprocessing function has no form"):
        normalization(lambda example, rng: example)


def network_of(covering):
    """A 'network' that sees its whole window: values depend on what lies around a pixel."""

    def run(windows):
        around = windows + 0.1 * jnp.roll(windows, (1, 2), axis=(1, 2))
        height, width = covering.kept_size(windows.shape[1:3])
        top, left = (windows.shape[1] - height) // 2, (windows.shape[2] - width) // 2
        return around[:, top : top + height, left : left + width]

    return run


@pytest.mark.parametrize("covering", [TILING, SLIDING, WHOLE], ids=lambda c: type(c).__name__)
def test_windows_of_open_sizes_cover_images_as_on_the_host(covering):
    network = network_of(covering)
    shape = export.symbolic_shape("batch, height, width, 2")
    exported = export.export(jax.jit(lambda images: cover(network, images, covering)))(
        jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    for height, width in [(5, 9), (31, 12)]:
        images = noise(2, height, width, 2, dtype=np.float32)
        windows = (
            covering.extract(image, place)
            for image in images
            for place in covering.positions(image.shape)
        )
        outputs = (np.asarray(network(jnp.asarray(window)[None]))[0] for window in windows)
        for image, found in zip(images, exported.call(images), strict=True):
            count = len(covering.positions(image.shape))
            expected = covering.stitch(itertools.islice(outputs, count), image.shape)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_images_are_resized_as_by_pillow_and_opencv(dtype, channels, antialias):
    image = noise(97, 131, channels, dtype=dtype)
    room = (193, 261)
    resized = jax.jit(lambda image, size: resample(image[None], size, room, antialias=antialias)[0])
    sizes = [(9, 110), (9, 45), (80, 12), (97, 131), (97, 60), (30, 261), (98, 130)]
    sizes += [(150, 200), (193, 261)]
    for height, width in sizes:
        expected = resize_image(image, (height, width), antialias=antialias)
        found = resized(image, jnp.array([height, width], jnp.int32))[:height, :width]
        difference = abs(np.asarray(found) - expected.astype(np.float32))
        shrinks = antialias and (height < 97 or width < 131)
        if dtype == np.float32:
            assert difference.max() < 1e-3
        elif dtype == np.uint8 and (channels == 3 or not shrinks):
            assert difference.max() == 0
        else:  # a value half way between two integers may go the other way
            assert difference.max() <= 1
            assert np.mean(difference > 0) < 0.03


@pytest.mark.parametrize("rule", ["detectron2", "torchvision"])
def test_masks_are_pasted_as_on_the_host(rule):
    rng = np.random.default_rng(1)
    size = (37, 52)
    corners = rng.uniform(-3, 30, (2, 6, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.5, 30, (2, 6, 2))], 2)
    boxes = boxes.clip(0, [52, 37, 52, 37]).astype(np.float32)
    boxes[0, 0] = 0  # an empty box
    masks = rng.uniform(0, 1, (2, 6, 5, 5)).astype(np.float32)
    found = np.asarray(
        jax.jit(lambda masks, boxes: paste(masks, boxes, size, rule=rule, threshold=0.5))(
            masks, boxes
        )
    )
    assert not found[0, 0].any()
    for image in range(2):
        encoded = paste_to_rle(masks[image], boxes[image], size, rule=rule, threshold=0.5)
        expected = np.stack([rle.decode(mask) for mask in encoded])
        assert np.mean(found[image] != expected) < 1e-4
