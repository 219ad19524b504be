"""Stored values are read as they are, in every form that masks come in."""

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from segjax.data.folders.stored_mask import read_stored_mask

LABELS = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


def save(path, image, **options):
    image.save(path, **options)
    return path


def test_grey_and_arrays_give_their_numbers(tmp_path):
    wide = LABELS.astype(np.uint16) * 300
    for name, image, expected in (
        ("a.png", Image.fromarray(LABELS), LABELS),
        ("b.png", Image.fromarray(wide), wide),
        ("c.tif", Image.fromarray(wide.astype(np.int32)), wide),
        ("d.tif", Image.fromarray(LABELS.astype(np.float32)), LABELS),
        ("e.bmp", Image.fromarray(LABELS), LABELS),
        ("f.png", Image.fromarray(np.repeat(LABELS[..., None], 3, axis=2)), LABELS),
    ):
        stored = read_stored_mask(save(tmp_path / name, image))
        assert stored.dtype == np.int32
        np.testing.assert_array_equal(stored, expected)
    for dtype in (np.uint8, np.int64, np.float64, bool):
        np.save(tmp_path / "g.npy", LABELS.astype(dtype))
        np.testing.assert_array_equal(
            read_stored_mask(tmp_path / "g.npy"), LABELS.astype(dtype).astype(np.int32)
        )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_not_stretched(tmp_path, bits):
    labels = np.minimum(LABELS, 2**bits - 1)
    image = Image.fromarray(labels).convert("P")
    image.putpalette([x for i in range(2**bits) for x in (i * 255 // (2**bits - 1),) * 3])
    path = save(tmp_path / "a.png", image, bits=bits)
    np.testing.assert_array_equal(read_stored_mask(path), labels)
    if bits == 1:
        path = save(tmp_path / "b.png", Image.fromarray(labels > 0))
        np.testing.assert_array_equal(read_stored_mask(path), labels)


def test_grey_pngs_of_4_bits_give_0_to_15(tmp_path):
    import struct
    import zlib

    def chunk(kind, data):
        content = kind + data
        return struct.pack(">I", len(data)) + content + struct.pack(">I", zlib.crc32(content))

    rows = bytes([0, 0x01, 0xF0, 0, 0xA5, 0x30])  # filter, then two pixels a byte: 0 1 15 / 10 5 3
    header = struct.pack(">IIBBBBB", 3, 2, 4, 0, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(read_stored_mask(path), [[0, 1, 15], [10, 5, 3]])


def test_the_indices_of_a_palette_count_and_not_its_colours(tmp_path):
    image = Image.fromarray(LABELS).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for name in ("a.png", "b.gif"):
        np.testing.assert_array_equal(read_stored_mask(save(tmp_path / name, image)), LABELS)


def test_colours_stay_colours(tmp_path):
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255]], np.uint8)[LABELS]
    path = save(tmp_path / "a.png", Image.fromarray(colors))
    np.testing.assert_array_equal(read_stored_mask(path), colors)
    opaque = np.concatenate([colors, np.full((2, 3, 1), 255, np.uint8)], axis=2)
    path = save(tmp_path / "b.png", Image.fromarray(opaque))
    np.testing.assert_array_equal(read_stored_mask(path), colors)


def test_an_alpha_channel_over_one_colour_is_the_mask(tmp_path):
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 3] = (LABELS > 0) * 255
    path = save(tmp_path / "a.png", Image.fromarray(rgba))
    np.testing.assert_array_equal(read_stored_mask(path), LABELS > 0)
    rgba[0, 0, 0] = 9  # now the colours differ: which is the mask?
    with pytest.raises(ValueError, match=r"b.png: the alpha channel has values from 0 to 255"):
        read_stored_mask(save(tmp_path / "b.png", Image.fromarray(rgba)))


def test_the_page_of_a_tiff(tmp_path):
    pages = [Image.fromarray(LABELS + i) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_stored_mask(tmp_path / "a.tif", page=2), LABELS + 2)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_tagged_mask_is_turned_unless_stored(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(LABELS).save(path, exif=exif)
    else:
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[0x0112] = 6
        Image.fromarray(LABELS).save(path, tiffinfo=tags)
    np.testing.assert_array_equal(read_stored_mask(path), np.rot90(LABELS, -1))
    np.testing.assert_array_equal(read_stored_mask(path, orientation="stored"), LABELS)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 2), 0.5), "floats from 0.5 to 0.5.*probabilities"),
        (np.array([[np.nan, 1.0]]), "floats"),
        (np.array([[-1, 1]]), "from -1 to 1.*Is -1 meant for ignored pixels"),
        (np.zeros((2, 2, 4)), r"shape \[2, 2, 4\]; expected \[height, width\]"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.array([["a"]]), "expected a mask"),
        (np.array([[2**40]]), "expected numbers from 0 on"),
    ],
)
def test_arrays_that_are_no_mask_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=f"a.npy.*{message}"):
        read_stored_mask(tmp_path / "a.npy")


def test_damaged_files_are_named(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(np.tile(LABELS, (50, 50))))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"a.png: damaged"):
        read_stored_mask(path)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b.png: damaged, cut short or no image"):
        read_stored_mask(tmp_path / "b.png")
    np.save(tmp_path / "c.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"c.npy: damaged or no array"):
        read_stored_mask(tmp_path / "c.npy")
    with pytest.raises(FileNotFoundError):
        read_stored_mask(tmp_path / "d.png")
