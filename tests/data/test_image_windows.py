"""Windows of image files, against the same files read as a whole."""

import numpy as np
import pytest
from PIL import Image

from segjax.data.image_arrays import count_images, read_arrays
from segjax.data.image_windows import Mapped, Turned, blocks, open_images, stored_sizes
from segjax.data.tiff_windows import Segments

tifffile = pytest.importorskip("tifffile")
H, W = 75, 90
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (H, W)).astype(np.uint8)
RGB = RNG.integers(0, 256, (H, W, 3)).astype(np.uint8)
SMOOTH = np.kron(RNG.integers(0, 256, (5, 6, 3)), np.ones((16, 16, 1)))[:H, :W].astype(np.uint8)
RGBA = np.dstack([RGB, np.full((H, W), 255, np.uint8)])
DEEP = RNG.integers(0, 65536, (H, W, 5)).astype(np.uint16)
ALPHA = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
TILES, STRIPS = {"tile": (16, 32)}, {"rowsperstrip": 7}
ZIP = {"compression": "zlib"}
STACK = np.stack([GREY, ~GREY, GREY // 2])
TIFFS = {
    "tiled grey": (GREY, TILES),
    "compressed tiles": (RGB, {"photometric": "rgb", **TILES, **ZIP}),
    "differences in strips": (GREY, {**STRIPS, **ZIP, "predictor": True}),
    "one strip": (RGB, {"photometric": "rgb"}),
    "one compressed strip": (GREY, {**ZIP, "rowsperstrip": H}),
    "planes in tiles": (
        RGB.transpose(2, 0, 1),
        {"photometric": "rgb", "planarconfig": "separate", **TILES, **ZIP},
    ),
    "planes in one piece": (
        RGB.transpose(2, 0, 1),
        {"photometric": "rgb", "planarconfig": "separate"},
    ),
    "16 bits": (DEEP[..., :3], {"photometric": "rgb", **TILES}),
    "bands": (DEEP, {"photometric": "minisblack", "planarconfig": "contig", **STRIPS, **ZIP}),
    "floats": (GREY.astype(np.float32) - 9.5, {**TILES, **ZIP}),
    "other byte order": (DEEP[..., 0].astype(">u2"), {"byteorder": ">", **STRIPS}),
    "integers": (GREY.astype(np.int32) - 100, TILES),
    "bits": (GREY > 99, TILES),
    "0 is white": (GREY, {"photometric": "miniswhite", **TILES}),
    "opaque alpha": (RGBA, {**ALPHA, **TILES}),
    "alpha": (np.dstack([RGB, GREY]), {**ALPHA, **TILES}),
    "pages": (STACK, {**TILES, "photometric": "minisblack", "metadata": None}),
    "OME bands": (STACK, {"ome": True, "metadata": {"axes": "CYX"}, **TILES, **ZIP}),
    "OME stack of bands": (
        np.stack([STACK, STACK + 1]),
        {"ome": True, "metadata": {"axes": "CZYX"}, **TILES},
    ),
    "OME planes": (STACK, {"ome": True, "metadata": {"axes": "ZYX"}, **TILES, **ZIP}),
    "ImageJ stack": (STACK, {"imagej": True, "metadata": {"axes": "ZYX"}}),
    "shaped bands": (STACK, {"metadata": {"axes": "CYX"}, "photometric": "minisblack"}),
    "BigTIFF": (GREY, {"bigtiff": True, **TILES}),
    "JPEG": (SMOOTH, {"photometric": "rgb", "tile": (32, 32), "compression": "jpeg"}),
}


def save(path, array, *, ome=False, imagej=False, bigtiff=False, byteorder=None, **options):
    with tifffile.TiffWriter(
        path, ome=ome, imagej=imagej, bigtiff=bigtiff, byteorder=byteorder
    ) as writer:
        writer.write(array, **options)
    return path


def check_windows(image, expected):
    """Windows inside, at the borders and over all of the image."""
    assert image.shape == expected.shape
    assert image.dtype == expected.dtype
    height, width = expected.shape[:2]
    rng = np.random.default_rng(1)
    windows = [(slice(None), slice(None)), (slice(height - 1, height), slice(0, 1))]
    for _ in range(8):
        rows, columns = (sorted(rng.integers(0, side + 1, 2)) for side in (height, width))
        windows.append((slice(*rows), slice(*columns)))
    for window in windows:
        np.testing.assert_array_equal(image[window], expected[window], strict=True)


@pytest.mark.parametrize("name", TIFFS)
def test_windows_of_a_tiff_are_parts_of_the_whole(name, tmp_path):
    array, options = TIFFS[name]
    path = save(tmp_path / "a.tif", array, **options)
    images, reason = open_images(path)
    assert reason is None
    expected = [*read_arrays(path)]
    assert len(images) == len(expected) == count_images(path)
    for number, (image, whole) in enumerate(zip(images, expected, strict=True)):
        check_windows(image, whole)
        (alone,) = read_arrays(path, only=number)
        np.testing.assert_array_equal(alone, whole)
    assert [*read_arrays(path, only=len(expected))] == []


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("orientation", ["upright", "stored"])
def test_a_turned_tiff_is_turned_in_its_windows(tag, orientation, tmp_path):
    extra = [(274, "H", 1, tag, True)]
    path = save(tmp_path / "a.tif", RGB, photometric="rgb", extratags=extra, **TILES)
    (image,), reason = open_images(path, orientation=orientation)
    assert reason is None
    check_windows(image, next(read_arrays(path, orientation=orientation)))


def test_other_files_are_decoded_as_a_whole_and_say_why(tmp_path):
    palette = Image.fromarray(GREY).convert("P")
    palette.putpalette(RNG.integers(0, 256, 768).tolist())
    palette.save(tmp_path / "palette.tif")
    Image.fromarray(RGBA, "CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for name, words in (
        ("palette.tif", "kind PALETTE"),
        ("cmyk.tif", "kind SEPARATED"),
        ("a.png", ".png files are compressed as a whole"),
    ):
        (image,), reason = open_images(tmp_path / name)
        assert words in reason
        np.testing.assert_array_equal(image, next(read_arrays(tmp_path / name)))
        assert stored_sizes(tmp_path / name) == [(H, W)]


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float64", "bool", ">f4"])
def test_windows_of_an_array_are_parts_of_the_whole(dtype, tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, GREY.astype(dtype))
    (image,), reason = open_images(path)
    assert reason is None
    check_windows(image, next(read_arrays(path)))
    assert stored_sizes(path) == [(H, W)]


def test_a_damaged_file_is_named(tmp_path):
    path = save(tmp_path / "a.tif", GREY, **TILES, **ZIP)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        place, count = tiff.pages[0].dataoffsets[3], tiff.pages[0].databytecounts[3]
    data[place : place + count] = b"\xff" * count
    path.write_bytes(data)
    (image,), _ = open_images(path)
    with pytest.raises(ValueError, match=r"a\.tif: damaged"):
        image[:, :]
    np.save(tmp_path / "a.npy", np.zeros((3, 50, 50)))
    with pytest.raises(ValueError, match="expected bands last"):
        open_images(tmp_path / "a.npy")


@pytest.mark.parametrize("options", [{}, {"metadata": {"axes": "ZYX"}, "imagej": True}])
def test_a_page_is_read_without_decoding_the_others(options, tmp_path):
    """The first page is damaged."""
    path = tmp_path / "a.tif"
    compressed = {} if options else ZIP
    save(path, STACK, photometric="minisblack", **compressed, **options)
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[place : place + 100] = b"\xff" * 100
    path.write_bytes(data)
    (page,) = read_arrays(path, only=1)
    np.testing.assert_array_equal(page[..., 0], STACK[1])
    assert count_images(path) == 3
    if not options:
        with pytest.raises(ValueError, match="damaged"):
            next(read_arrays(path))


def test_segments_are_decoded_once_while_they_fit(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    decoded = []

    def decode(data):
        decoded.append(data[0])
        return np.frombuffer(data, np.uint8)

    segments = Segments(path, capacity=25)
    for offset in (0, 10, 0, 10, 20, 10, 0):
        assert segments.get(offset, 10, decode)[0] == offset
    assert decoded == [0, 10, 20, 0]


def test_mapped_and_turned_images_know_their_shapes():
    image = Mapped(RGB, lambda pixels: pixels.mean(axis=2, keepdims=True).astype(np.float32))
    assert image.shape == (H, W, 1)
    assert image.dtype == np.float32
    turned = Turned(image, np.rot90)
    check_windows(turned, np.rot90(image[:, :]))
    assert turned.source(slice(0, 2), slice(0, 5)) == (slice(0, 5), slice(W - 2, W))
    with pytest.raises(ValueError, match="turns or mirrors"):
        _ = Turned(image, lambda array: array + 1).shape


def test_blocks_cover_an_image_once():
    seen = np.zeros((70, 33), int)
    for rows, columns in blocks(seen[..., None], 32):
        seen[rows, columns] += 1
    assert (seen == 1).all()
