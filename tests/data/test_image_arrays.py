"""Images with any bands and types of pixels: NumPy files, plain TIFFs, photographs."""

import sys

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from segjax.data.image_arrays import ARRAY_SUFFIXES, read_array, read_arrays
from segjax.data.images import find_images, read_image

RNG = np.random.default_rng(0)
VALUES = RNG.integers(0, 100, (20, 24, 5))


def assert_reads(path, expected):
    image = read_array(path)
    assert image.dtype == expected.dtype
    np.testing.assert_array_equal(image, expected)
    assert image.flags.c_contiguous


@pytest.fixture
def without_tifffile(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        *[("uint8", "uint8"), ("uint16", "uint16"), ("uint32", "uint32"), ("uint64", "int32")],
        *[("int8", "int16"), ("int16", "int16"), ("int32", "int32"), ("int64", "int32")],
        *[("float16", "float32"), ("float32", "float32"), ("float64", "float32")],
        *[(">u2", "uint16"), (">i4", "int32"), (">f8", "float32")],
    ],
)
@pytest.mark.parametrize("bands", [None, 1, 2, 5])
def test_numpy_files_of_any_bands_have_one_of_six_types(tmp_path, stored, read, bands):
    low = -50 if np.dtype(stored).kind in "if" else 0
    array = (VALUES[..., 0] if bands is None else VALUES[..., :bands]) + low
    np.save(tmp_path / "a.npy", array.astype(stored))
    assert_reads(tmp_path / "a.npy", array.reshape(20, 24, -1).astype(read))


def test_numpy_files_in_fortran_order_and_of_booleans_are_read(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(VALUES.astype(np.uint8)))
    assert_reads(tmp_path / "a.npy", VALUES.astype(np.uint8))
    np.save(tmp_path / "a.npy", VALUES[..., 0] > 50)
    assert_reads(tmp_path / "a.npy", np.where(VALUES[..., :1] > 50, 255, 0).astype(np.uint8))


def test_integers_of_64_bits_are_read_up_to_the_ends_of_int32(tmp_path):
    ends = np.array([[-(2**31), 2**31 - 1]])
    np.save(tmp_path / "a.npy", ends)
    assert_reads(tmp_path / "a.npy", ends.astype(np.int32)[..., None])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[1, None]]), "no array of numbers .*allow_pickle"),
        (np.array([[1j]]), "expected integers or floats, found complex128"),
        (np.array([["a"]]), "expected integers or floats, found <U1"),
        (np.zeros((4, 4), [("x", "f4")]), "expected integers or floats, found .*'x'"),
        (np.zeros(4), r"found shape \(4,\)"),
        (np.zeros((1, 4, 4, 3)), r"found shape \(1, 4, 4, 3\)"),
        (np.zeros((0, 4)), r"found shape \(0, 4\)"),
        (np.zeros((5, 20, 24)), r"\(5, 20, 24\) looks like \[bands, height, width\]. Save array.t"),
        (np.zeros((16, 17, 17)), "looks like"),
        (np.array([[1.0, np.nan], [np.inf, 0]]), "expected finite values, .* in 2 of 4"),
        (np.array([[1e39]]), r"expected values that float32 holds, found 1e\+39"),
        (np.array([[2**31]]), "expected integers that fit 32 bits, found int64 from 2147483648"),
        (np.array([[-(2**31) - 1]]), "expected integers that fit 32 bits"),
    ],
)
def test_arrays_that_are_no_image_are_refused_by_name(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"a\.npy: .*{message}"):
        read_array(tmp_path / "a.npy")


def test_an_image_of_few_rows_or_many_bands_is_not_taken_for_bands_first(tmp_path):
    for shape in ((17, 40, 40), (16, 40, 5), (5, 5, 40), (40, 40, 200)):
        np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
        assert read_array(tmp_path / "a.npy").shape == shape


@pytest.mark.parametrize("keep", [7, 40, 200])
def test_a_numpy_file_cut_short_is_refused_by_name(tmp_path, keep):
    np.save(tmp_path / "a.npy", VALUES)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.npy: damaged, cut short"):
        read_array(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".jpg", ".webp"])
@pytest.mark.parametrize("bands", [1, 3])
def test_photographs_are_read_as_by_read_image(tmp_path, suffix, bands, without_tifffile):
    path = tmp_path / f"a{suffix}"
    pixels = VALUES[..., :bands].astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels.squeeze()).save(path, **({} if suffix == ".bmp" else {"exif": exif}))
    for orientation in ("upright", "stored"):
        found = read_array(path, orientation=orientation)
        np.testing.assert_array_equal(found, read_image(path, orientation=orientation))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bands", [1, 3])
def test_16_bit_photographs_need_no_tifffile(tmp_path, suffix, bands, without_tifffile):
    pixels = (VALUES[..., :bands] * 600).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"a{suffix}"), pixels[..., ::-1])
    assert_reads(tmp_path / f"a{suffix}", pixels)


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
@pytest.mark.parametrize("order", "<>")
def test_grey_tiffs_of_16_and_32_bits_need_no_tifffile(tmp_path, dtype, order, without_tifffile):
    pages = [(VALUES[..., :1] - 50).astype(dtype) * 300, VALUES[:9, :, :1].astype(dtype)]
    with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=order) as tiff:
        for page in pages:
            tiff.write(page[..., 0], photometric="minisblack", metadata=None)
    found = [*read_arrays(tmp_path / "a.tif")]
    for image, page in zip(found, pages, strict=True):
        assert image.dtype == page.dtype
        np.testing.assert_array_equal(image, page)
    with pytest.raises(ValueError, match=r"a\.tif: expected one image, found a TIFF with several"):
        read_array(tmp_path / "a.tif")


def test_a_grey_float_tiff_with_nan_is_refused_by_name(tmp_path):
    pixels = VALUES[..., 0].astype(np.float32)
    pixels[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    with pytest.raises(ValueError, match=r"a\.tif: expected finite values, .* in 1 of 480"):
        read_array(tmp_path / "a.tif")


def test_without_tifffile_one_line_says_what_to_install(tmp_path, without_tifffile):
    pixels = VALUES.astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ValueError, match=r"a\.tif: .*pip install 'segjax\[tiff\]'$"):
        read_array(tmp_path / "a.tif")


def test_damaged_photographs_and_missing_files_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.npy").write_text("not an array, but a text of some length")
    with pytest.raises(ValueError, match=r"a\.png: the file is empty"):
        read_array(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"b\.npy: damaged, cut short or of an unsupported kind"):
        read_array(tmp_path / "b.npy")
    with pytest.raises(FileNotFoundError, match=r"absent\.npy"):
        read_array(tmp_path / "absent.npy")


def test_folders_of_numpy_files_are_found_with_their_suffixes(tmp_path):
    for name in ("a2.npy", "a10.npy", "b.tif", "c.npz"):
        (tmp_path / name).touch()
    found = [path.name for path in find_images(tmp_path, suffixes=ARRAY_SUFFIXES)]
    assert found == ["a2.npy", "a10.npy", "b.tif"]
    assert [path.name for path in find_images(tmp_path)] == ["b.tif"]
    with pytest.raises(ValueError, match=r"c\.npz: expected an image \(.*\.npy\)"):
        find_images(tmp_path / "c.npz", suffixes=ARRAY_SUFFIXES)
