import struct
import zlib

import cv2
import numpy as np
import PIL
import pytest
from PIL import Image

from segjax.data.images import (
    find_images,
    note_other_files,
    read_image,
    read_images,
    write_labels,
)

RNG = np.random.default_rng(0)
RGB_16 = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
GREY_16 = RGB_16[..., :1]
RGB_8 = (RGB_16 >> 8).astype(np.uint8)
GREY_8 = RGB_8[..., :1]
ALPHA_8 = RNG.integers(0, 256, (5, 7, 1), dtype=np.uint8)
OPAQUE_8 = np.full((5, 7, 1), 255, np.uint8)
OPAQUE_16 = np.full((5, 7, 1), 65535, np.uint16)


def tiff_page(pixels, *, planar=False, **tags):
    """The strip and the tags of one uncompressed page; `tags` by their name below."""
    height, width, channels = pixels.shape
    values = {
        "subfile": 0,
        "width": width,
        "height": height,
        "bits": [8 * pixels.itemsize] * channels,
        "compression": 1,
        "photometric": 2 if channels == 3 else 1,
        "orientation": 1,
        "channels": channels,
        "planar": 2 if planar else 1,
        "format": [1] * channels,
    } | tags
    return (pixels.transpose(2, 0, 1) if planar else pixels).tobytes(), values


def write_tiff(path, *pages):
    """Writes a little-endian TIFF with tags and layouts that neither library can write."""
    numbers = {"subfile": 254, "width": 256, "height": 257, "bits": 258, "compression": 259}
    numbers |= {"photometric": 262, "strips": 273, "orientation": 274, "channels": 277}
    numbers |= {"rows": 278, "bytes": 279, "planar": 284, "format": 339}
    content = bytearray(b"II*\0" + bytes(4))
    link = 4
    for strip, values in pages:
        planes = values["channels"] if values["planar"] == 2 else 1
        size = len(strip) // planes
        starts = [len(content) + plane * size for plane in range(planes)]
        values = values | {"strips": starts, "rows": values["height"], "bytes": [size] * planes}
        content += strip + bytes(len(strip) % 2)
        entries = b""
        for name in sorted(values, key=numbers.get):
            array = np.atleast_1d(values[name]).astype("<u4").tobytes()
            if len(array) > 4:
                offset = len(content)
                content += array
            count, field = len(array) // 4, array if len(array) == 4 else struct.pack("<I", offset)
            entries += struct.pack("<HHI", numbers[name], 4, count) + field
        struct.pack_into("<I", content, link, len(content))
        content += struct.pack("<H", len(values)) + entries
        link = len(content)
        content += bytes(4)
    path.write_bytes(content)


def write_grey_png(path, rows, width, depth, colour_type):
    """Writes a PNG of a depth and type that neither library writes; `rows` are packed bytes."""

    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    data = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())  # each row after its filter, 0
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def opencv_order(pixels):
    return pixels[..., [2, 1, 0, *range(3, pixels.shape[-1])]]


def assert_reads(path, expected):
    image = read_image(path)
    assert image.dtype == expected.dtype
    np.testing.assert_array_equal(image, expected)
    assert image.flags.writeable


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("pixels", [RGB_8, GREY_8])
def test_8_bit_values_come_back_exactly_in_rgb_order(tmp_path, suffix, pixels):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(pixels.squeeze()).save(path)
    assert_reads(path, pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("pixels", [RGB_16, GREY_16])
def test_16_bit_values_come_back_exactly_in_rgb_order(tmp_path, suffix, pixels):
    path = tmp_path / f"image{suffix}"
    cv2.imwrite(str(path), opencv_order(pixels) if pixels.shape[-1] == 3 else pixels)
    assert_reads(path, pixels)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("pixels", [RGB_8, GREY_16])
def test_compressed_tiff_is_read_exactly(tmp_path, compression, pixels):
    path = tmp_path / "image.tiff"
    Image.fromarray(pixels.squeeze()).save(path, compression=compression)
    assert_reads(path, pixels)


def test_big_endian_16_bit_tiff_is_read_in_native_order(tmp_path):
    path = tmp_path / "image.tif"
    pixels = Image.frombytes("I;16B", (7, 5), GREY_16.astype(">u2").tobytes())
    pixels.save(path, big_tiff=False)
    assert path.read_bytes()[:2] == b"MM"
    assert_reads(path, GREY_16)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("colours", [RGB_8, GREY_8])
def test_8_bit_alpha_is_dropped_where_it_is_opaque(tmp_path, colours, suffix):
    if suffix == ".webp":
        colours = RGB_8  # the format has no grey
    path = tmp_path / f"image{suffix}"
    Image.fromarray(np.concatenate([colours, OPAQUE_8], -1)).save(path, lossless=True)
    assert_reads(path, colours)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_alpha_is_dropped_where_it_is_opaque(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    cv2.imwrite(str(path), opencv_order(np.concatenate([RGB_16, OPAQUE_16], -1)))
    assert_reads(path, RGB_16)


def test_16_bit_grey_png_with_opaque_alpha_is_grey(tmp_path):
    path = tmp_path / "image.png"
    pixels = np.concatenate([GREY_16, OPAQUE_16], -1)
    write_grey_png(path, pixels.astype(">u2").view(np.uint8).reshape(5, -1), 7, 16, 4)
    assert_reads(path, GREY_16)


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_transparent_entries_of_a_palette_are_refused_where_pixels_have_them(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    image = Image.fromarray(np.array([[0, 1], [1, 1]], np.uint8), "P")
    image.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0])
    image.save(path, transparency=0)
    with pytest.raises(ValueError, match="values from 0 to 255 of 255: transparency, a mask"):
        read_image(path)
    image.save(path, transparency=2)
    assert read_image(path).shape[:2] == (2, 2)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(
    ("colours", "channel", "opaque"),
    [(RGB_8, ALPHA_8, 255), (GREY_8, ALPHA_8, 255), (RGB_16, GREY_16, 65535)],
)
def test_a_further_channel_that_is_not_opaque_is_refused(
    tmp_path, suffix, colours, channel, opaque
):
    path = tmp_path / f"image{suffix}"
    pixels = np.concatenate([colours, channel], -1)
    if opaque == 255:
        Image.fromarray(pixels).save(path)
    else:
        cv2.imwrite(str(path), opencv_order(pixels))
    message = f"values from {channel.min()} to {channel.max()} of {opaque}: transparency, a mask"
    with pytest.raises(ValueError, match=message):
        read_image(path)


def test_webp_is_read_exactly(tmp_path):
    path = tmp_path / "image.webp"
    Image.fromarray(RGB_8).save(path, lossless=True)
    assert_reads(path, RGB_8)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_becomes_rgb(tmp_path, suffix):
    """Of one colour, since JPEG changes others: ink c, m, y, k gives (255 − ink)(255 − k) / 255."""
    ink = np.full((16, 16, 4), (0, 200, 100, 55), np.uint8)
    path = tmp_path / f"image{suffix}"
    Image.fromarray(ink, mode="CMYK").save(path)
    image = read_image(path)
    assert np.abs(image.astype(int) - [200, 43, 122]).max() <= 2


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_shallow_grey_is_stretched_to_255(tmp_path, depth):
    values = RNG.integers(0, 2**depth, (5, 8), dtype=np.uint8)
    bits = np.unpackbits(values[..., None], axis=-1)[..., -depth:]
    write_grey_png(tmp_path / "image.png", np.packbits(bits.reshape(5, -1), axis=-1), 8, depth, 0)
    assert_reads(tmp_path / "image.png", values[..., None] * np.uint8(255 // (2**depth - 1)))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".gif", ".bmp"])
def test_a_palette_becomes_rgb_and_a_palette_of_greys_grey(tmp_path, suffix):
    indices = RNG.integers(0, 4, (5, 7), dtype=np.uint8)
    colours = np.array([[9, 8, 7], [255, 0, 0], [0, 255, 1], [3, 2, 250]], np.uint8)
    greys = np.repeat(np.array([[200], [30], [5], [255]], np.uint8), 3, axis=1)
    for palette, channels in ((colours, 3), (greys, 1)):
        image = Image.fromarray(indices)
        image.putpalette(palette.tobytes())
        image.save(tmp_path / f"image{suffix}")
        assert_reads(tmp_path / f"image{suffix}", palette[indices][..., :channels])


def test_a_one_bit_tiff_is_stretched_to_0_and_255(tmp_path):
    mask = GREY_8 > 99
    Image.fromarray(mask[..., 0]).save(tmp_path / "mask.tif")
    assert_reads(tmp_path / "mask.tif", np.where(mask, np.uint8(255), np.uint8(0)))


def test_a_gif_of_a_grey_image_is_grey(tmp_path):
    Image.fromarray(GREY_8[..., 0]).save(tmp_path / "mask.gif")
    assert_reads(tmp_path / "mask.gif", GREY_8)


def test_jpeg_is_rgb_within_the_error_of_its_compression(tmp_path):
    smooth = np.indices((16, 24)).transpose(1, 2, 0) * [9, 4]
    pixels = np.dstack([smooth, np.full((16, 24), 200)]).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "colour.jpg", quality=98, subsampling=0)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.JPEG", quality=98)
    difference = read_image(tmp_path / "colour.jpg").astype(int) - pixels
    assert np.abs(difference).max() <= 4
    assert read_image(tmp_path / "grey.JPEG").shape == (16, 24, 1)


def test_files_that_are_no_images_are_counted_and_three_named(tmp_path):
    for name in ("a.png", "B.JPG", ".hidden", "notes.txt", "x.npy", "y.csv", "z.raw"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    assert note_other_files(tmp_path) == [
        f"4 of 6 files in {tmp_path} are no images, skipped: notes.txt, x.npy, y.csv and 1 more"
    ]
    (note,) = note_other_files(tmp_path, suffixes=(".png",), kind="label maps")
    assert note.startswith(f"5 of 6 files in {tmp_path} are no label maps, skipped: B.JPG, notes")
    others = [tmp_path / name for name in ("notes.txt", "x.npy", "y.csv", "z.raw")]
    assert note_other_files(tmp_path, without=others) == []
    assert note_other_files(tmp_path / "a.png") == note_other_files(tmp_path / "none") == []


def upright(pixels, orientation):
    """Applies an orientation tag; its eight values say where row 0 and column 0 lie."""
    transposed = pixels.swapaxes(0, 1)
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: transposed,
        6: transposed[:, ::-1],
        7: transposed[::-1, ::-1],
        8: transposed[::-1],
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_tags_are_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(RGB_8).save(tmp_path / "image.png", exif=exif)
    assert_reads(tmp_path / "image.png", upright(RGB_8, orientation))
    for pixels in (RGB_8, GREY_8, GREY_16):
        write_tiff(tmp_path / "image.tif", tiff_page(pixels, orientation=orientation))
        assert_reads(tmp_path / "image.tif", upright(pixels, orientation))
    blocks = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((8, 16), np.uint8))
    Image.fromarray(blocks).save(tmp_path / "image.jpg", exif=exif)
    difference = read_image(tmp_path / "image.jpg")[..., 0] - upright(blocks, orientation).astype(
        int
    )
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("pixels", [GREY_8, GREY_16])
def test_a_tiff_with_0_for_white_is_inverted(tmp_path, pixels):
    write_tiff(tmp_path / "image.tif", tiff_page(pixels, photometric=0))
    assert_reads(tmp_path / "image.tif", np.iinfo(pixels.dtype).max - pixels)


def test_8_bit_colour_planes_are_joined(tmp_path):
    write_tiff(tmp_path / "image.tif", tiff_page(RGB_8, planar=True))
    assert_reads(tmp_path / "image.tif", RGB_8)


@pytest.mark.parametrize("pixels", [RGB_8, GREY_8, RGB_16, GREY_16])
def test_pages_of_a_tiff_come_in_order_each_in_its_size(tmp_path, pixels):
    path = tmp_path / "stack.tif"
    expected = [pixels, pixels[::-1, 1:].copy(), pixels[:2].copy()]
    write_tiff(path, *map(tiff_page, expected))
    pages = list(read_images(path))
    assert len(pages) == 3
    for page, values in zip(pages, expected, strict=True):
        assert page.dtype == values.dtype
        np.testing.assert_array_equal(page, values)
    with pytest.raises(ValueError, match=r"stack\.tif: expected one image.*several pages"):
        read_image(path)


def test_a_single_image_is_its_own_only_page(tmp_path):
    Image.fromarray(RGB_8).save(tmp_path / "image.png")
    (page,) = read_images(tmp_path / "image.png")
    np.testing.assert_array_equal(page, RGB_8)


def test_thumbnails_and_masks_in_a_tiff_are_not_pages(tmp_path):
    thumbnail, mask = tiff_page(RGB_8[::2, ::2].copy(), subfile=1), tiff_page(GREY_8, subfile=4)
    page = tiff_page(RGB_8, subfile=2)
    write_tiff(tmp_path / "image.tif", page, thumbnail, mask)
    assert_reads(tmp_path / "image.tif", RGB_8)


def test_only_the_first_picture_of_a_telephones_jpeg_is_read(tmp_path):
    first, second = Image.new("RGB", (16, 8), (200, 10, 10)), Image.new("RGB", (4, 2))
    first.save(tmp_path / "image.jpg", format="MPO", save_all=True, append_images=[second])
    image = read_image(tmp_path / "image.jpg")
    assert image.shape == (8, 16, 3)
    assert np.abs(image.astype(int) - [200, 10, 10]).max() <= 2


def test_slides_larger_than_pillows_limit_may_be_read():
    assert PIL.Image.MAX_IMAGE_PIXELS is None


def float_tiff(path):
    Image.fromarray(GREY_16[..., 0].astype(np.float32)).save(path, format="TIFF")


def integer_tiff(path):
    Image.fromarray(GREY_16[..., 0].astype(np.int32)).save(path, format="TIFF")


def animated_gif(path):
    frames = [Image.fromarray(GREY_8[..., 0]), Image.fromarray(255 - GREY_8[..., 0])]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.touch(), "empty .0 bytes."),
        (lambda path: path.write_text("not an image at all, but a text"), "cannot identify"),
        (float_tiff, "expected 8- or 16-bit grey or RGB.*found float pixels"),
        (integer_tiff, "found 32-bit or signed integer pixels"),
        (animated_gif, "expected a still image, found an animated GIF"),
        (
            lambda path: write_tiff(path, tiff_page(RGB_16, planar=True)),
            "found separate planes",
        ),
        (
            lambda path: write_tiff(path, tiff_page(RGB_16, orientation=6)),
            "expected a TIFF of 16-bit colour to be upright, found orientation 6",
        ),
    ],
)
def test_unreadable_files_are_refused_by_name(tmp_path, write, message):
    path = tmp_path / "image.png"
    write(path)
    with pytest.raises(ValueError, match=rf"image\.png: .*{message}"):
        read_image(path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        *[(".png", np.uint8), (".jpg", np.uint8), (".tif", np.uint8), (".bmp", np.uint8)],
        *[(".gif", np.uint8), (".png", np.uint16), (".tif", np.uint16)],
    ],
)
def test_files_cut_short_are_refused_by_name(tmp_path, suffix, dtype, keep):
    path = tmp_path / f"image{suffix}"
    pixels = RNG.integers(0, np.iinfo(dtype).max, (64, 48, 3), dtype=dtype)
    if dtype == np.uint8:
        Image.fromarray(pixels).save(path)
    else:
        cv2.imwrite(str(path), pixels)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=rf"image\{suffix}: damaged, cut short"):
        read_image(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        read_image(tmp_path / "absent.png")


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_folders_give_their_images_in_natural_order_and_files_stay_in_place(tmp_path):
    touch(tmp_path / "frames", "t10.png", "T2.TIF", "t1.jpeg", "notes.txt", "._t3.png", ".t4.png")
    touch(tmp_path / "frames" / "predictions", "t1.png")
    touch(tmp_path, "b.bmp", "a.gif")
    (tmp_path / "folder.png").mkdir()
    touch(tmp_path / "folder.png", "inside.png")
    frames = tmp_path / "frames"
    found = find_images([tmp_path / "b.bmp", str(frames), frames / "../frames/t1.jpeg", tmp_path])
    assert [str(file.relative_to(tmp_path)) for file in found] == [
        *["b.bmp", "frames/t1.jpeg", "frames/T2.TIF", "frames/t10.png", "a.gif"],
    ]
    assert find_images(str(tmp_path / "a.gif")) == [tmp_path / "a.gif"]


def test_paths_without_images_are_named(tmp_path):
    touch(tmp_path / "empty")
    touch(tmp_path / "outer" / "inner", "a.png")
    touch(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match=r"empty: expected images \(\.png .*found none$"):
        find_images([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"outer: .*found none; it has folders.*: inner"):
        find_images([tmp_path / "outer"])
    with pytest.raises(ValueError, match=r"notes\.txt: expected an image \(\.png"):
        find_images([tmp_path / "notes.txt"])
    with pytest.raises(FileNotFoundError, match=r"absent: no such file or folder"):
        find_images([tmp_path / "absent"])


@pytest.mark.parametrize(
    ("dtype", "highest", "stored"),
    [
        (np.uint8, 255, np.uint8),
        (bool, 1, np.uint8),
        (np.uint16, 65535, np.uint16),
        (np.int32, 3, np.uint16),
        (np.int64, 65535, np.uint16),
    ],
)
def test_labels_come_back_exactly_from_any_reader(tmp_path, dtype, highest, stored):
    labels = RNG.integers(0, highest, (5, 7), endpoint=True).astype(dtype)
    write_labels(tmp_path / "labels.png", labels)
    assert_reads(tmp_path / "labels.png", labels.astype(stored)[..., None])
    by_opencv = cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(by_opencv, labels.astype(stored))


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("labels.jpg", np.zeros((2, 3), np.uint8), "ending in .png"),
        ("labels.png", np.zeros((2, 3, 1), np.uint8), r"found uint8 of shape \(2, 3, 1\)"),
        ("labels.png", np.zeros((2, 3)), "found float64"),
        ("labels.png", np.full((2, 3), -1), "found -1 to -1"),
        ("labels.png", np.full((2, 3), 65536), "found 65536 to 65536"),
    ],
)
def test_labels_that_a_png_cannot_hold_are_refused_by_name(tmp_path, name, labels, message):
    with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
        write_labels(tmp_path / name, labels)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("file", "shape", "dtype"),
    [
        ("drive/training/images/21_training.tif", (584, 565, 3), np.uint8),
        ("drive/training/1st_manual/21_manual1.gif", (584, 565, 1), np.uint8),
        ("ctc/DIC-C2DH-HeLa/01_GT/SEG/man_seg002.tif", (512, 512, 1), np.uint16),
    ],
)
def test_real_files_are_read(real_data, file, shape, dtype):
    image = read_image(real_data / file)
    assert image.shape == shape
    assert image.dtype == dtype
    assert image.max() > 1


def test_the_real_isbi_2012_stack_has_30_slices(real_data):
    pages = list(read_images(real_data / "isbi2012" / "train-volume.tif"))
    assert {page.shape for page in pages} == {(512, 512, 1)}
    assert len(pages) == 30
