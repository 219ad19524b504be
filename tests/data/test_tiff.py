"""TIFFs of any bands and types, tiled, in planes, and with the axes of OME and ImageJ."""

import sys

import numpy as np
import pytest
import tifffile

from segjax.data.image_arrays import read_array, read_arrays
from segjax.data.images import read_image, read_images
from segjax.data.orientation import turn

RNG = np.random.default_rng(0)
TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float16", "float32"]
TYPES += ["float64"]
AS_READ = {"int8": "int16", "int64": "int32", "float16": "float32", "float64": "float32"}
VALUES = RNG.integers(0, 100, (4, 7, 20, 24))  # images, bands, height, width


def values(*shape, dtype="uint16"):
    return VALUES.reshape(-1)[: np.prod(shape)].reshape(shape).astype(dtype)


def assert_reads(path, *expected):
    found = [*read_arrays(path)]
    assert len(found) == len(expected)
    for image, pixels in zip(found, expected, strict=True):
        assert image.dtype == pixels.dtype
        np.testing.assert_array_equal(image, pixels)
        assert image.flags.c_contiguous


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_bands_of_any_type_are_read_exactly(tmp_path, dtype, bands, planar, tile):
    pixels = values(20, 24, bands, dtype=dtype)
    if dtype == "uint32":
        pixels = pixels + np.uint32(2**31)
    written = pixels[..., 0] if bands == 1 else np.moveaxis(pixels, 2, 0) if planar else pixels
    config = None if bands == 1 else "separate" if planar else "contig"
    path = tmp_path / "a.tif"
    settings = {"photometric": "minisblack", "planarconfig": config, "tile": tile}
    tifffile.imwrite(path, written, metadata=None, **settings)
    assert_reads(path, pixels.astype(AS_READ.get(dtype, dtype)))


@pytest.mark.parametrize("bands", [4, 5])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_bands_behind_rgb_are_not_dropped(tmp_path, bands, dtype, planar):
    """Pillow drops bands behind RGB where they are no alpha."""
    pixels = values(20, 24, bands, dtype=dtype)
    written = pixels if planar == "contig" else np.moveaxis(pixels, 2, 0)
    path, extra = tmp_path / "a.tif", [0] * (bands - 3)
    settings = {"photometric": "rgb", "planarconfig": planar, "extrasamples": extra}
    tifffile.imwrite(path, written, metadata=None, **settings)
    assert_reads(path, pixels)
    with pytest.raises(ValueError, match=rf"a\.tif: .*(found {bands} bands of {dtype}|damaged)"):
        read_image(path)


def test_read_image_refuses_a_second_band_and_a_sign_that_pillow_drops(tmp_path):
    path = tmp_path / "a.tif"
    settings = {"photometric": "minisblack", "metadata": None}
    tifffile.imwrite(path, values(20, 24, 2, dtype="uint8"), planarconfig="contig", **settings)
    with pytest.raises(ValueError, match=r"a\.tif: expected 8- or 16.*found 2 bands of uint8"):
        read_image(path)
    tifffile.imwrite(path, values(20, 24, dtype="int8"), **settings)
    with pytest.raises(ValueError, match=r"a\.tif: expected 8- or 16.*found 1 band of int8"):
        read_image(path)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "zstd", "packbits"])
@pytest.mark.parametrize("predictor", [False, True])
def test_compressed_bands_are_read_exactly(tmp_path, compression, predictor):
    pixels = values(20, 24, 5)
    settings = {"photometric": "minisblack", "planarconfig": "contig", "metadata": None}
    if compression != "packbits":
        settings["predictor"] = predictor
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression=compression, **settings)
    assert_reads(tmp_path / "a.tif", pixels)


def test_a_missing_codec_is_named_with_what_to_install(tmp_path, monkeypatch):
    settings = {"photometric": "minisblack", "planarconfig": "contig", "compression": "lzw"}
    tifffile.imwrite(tmp_path / "a.tif", values(20, 24, 5), **settings)

    def decode(*args, **kwargs):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", decode)
    message = r"a\.tif: .*LZW.*'imagecodecs' package; to install it: pip install 'segjax\[tiff\]'$"
    with pytest.raises(ValueError, match=message):
        read_array(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_pages_are_images_without_thumbnails_and_masks(tmp_path, dtype):
    pages = [values(20, 24, 5, dtype=dtype), values(9, 8, 5, dtype=dtype)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        settings = {"photometric": "minisblack", "planarconfig": "contig", "metadata": None}
        tiff.write(pages[0], **settings)
        tiff.write(pages[0][::2, ::2].copy(), subfiletype=1, **settings)
        tiff.write(pages[1], subfiletype=2, **settings)
        tiff.write(values(20, 24) > 50, subfiletype=4, photometric="minisblack", metadata=None)
    assert_reads(tmp_path / "a.tif", *pages)
    with pytest.raises(ValueError, match=r"several pages; pages are read as bands only if"):
        read_array(tmp_path / "a.tif")


# The shape and axes as written, and the places of images, height, width and bands among them.
AXES = [
    ("YX", (20, 24), None),
    ("CYX", (3, 20, 24), (1, 2, 0)),
    ("ZYX", (4, 20, 24), (0, 1, 2)),
    ("TYX", (4, 20, 24), (0, 1, 2)),
    ("ZCYX", (4, 2, 20, 24), (0, 2, 3, 1)),
    ("TCYX", (4, 5, 20, 24), (0, 2, 3, 1)),
    ("CZYX", (2, 4, 20, 24), (1, 2, 3, 0)),
]


def expected_images(pixels, axes, order):
    if order is None:
        return [pixels[..., None]]
    moved = pixels.transpose(order)
    if "C" not in axes:
        return [page[..., None] for page in moved]
    return [moved] if moved.ndim == 3 else [*moved]


@pytest.mark.parametrize(("axes", "shape", "order"), AXES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_the_channels_of_ome_are_bands_and_its_planes_images(
    tmp_path, axes, shape, order, dtype, tile
):
    pixels = values(*shape, dtype=dtype)
    settings = {"metadata": {"axes": axes}, "photometric": "minisblack", "tile": tile}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, ome=True, **settings)
    assert_reads(tmp_path / "a.ome.tif", *expected_images(pixels, axes, order))


@pytest.mark.parametrize(("axes", "shape", "order"), AXES[:-1])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_channels_of_imagej_are_bands_and_its_planes_images(
    tmp_path, axes, shape, order, dtype
):
    pixels = values(*shape, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": axes})
    assert_reads(tmp_path / "a.tif", *expected_images(pixels, axes, order))


@pytest.mark.parametrize(("axes", "shape", "order"), AXES)
def test_the_axes_that_tifffile_writes_are_followed(tmp_path, axes, shape, order):
    pixels = values(*shape)
    settings = {"metadata": {"axes": axes}, "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", pixels, **settings)
    assert_reads(tmp_path / "a.tif", *expected_images(pixels, axes, order))


def test_pages_without_named_axes_are_images_as_in_read_images(tmp_path):
    pixels = values(4, 20, 24, dtype="uint8")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack")
    assert_reads(tmp_path / "a.tif", *pixels[..., None])
    np.testing.assert_array_equal([*read_images(tmp_path / "a.tif")], pixels[..., None])


def test_colour_in_ome_is_its_samples(tmp_path):
    pixels = values(4, 20, 24, 3)
    settings = {"metadata": {"axes": "ZYXS"}, "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "a.tif", pixels, ome=True, **settings)
    assert_reads(tmp_path / "a.tif", *pixels)


def test_an_imagej_stack_above_4_gb_is_read_behind_its_first_page(tmp_path):
    """ImageJ writes the planes of such a stack one after another, and lists the first only."""
    pixels = values(4, 20, 24, dtype=">u2")
    description = "ImageJ=1.54f\nimages=4\nslices=4\n"
    with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=">") as tiff:
        tiff.write(pixels[0], photometric="minisblack", description=description, metadata=None)
    content = (tmp_path / "a.tif").read_bytes()
    assert content.endswith(pixels[0].tobytes())
    (tmp_path / "a.tif").write_bytes(content + pixels[1:].tobytes())
    assert_reads(tmp_path / "a.tif", *pixels.astype("uint16")[..., None])


@pytest.mark.parametrize(
    ("pixels", "settings", "message"),
    [
        (
            values(3, 20, 24, 3),
            {"ome": True, "metadata": {"axes": "CYXS"}, "photometric": "rgb"},
            r"axes CYXS of lengths \(3, 20, 24, 3\)",
        ),
        (
            values(3, 2, 20, 24),
            {"metadata": {"axes": "HCYX"}, "photometric": "minisblack"},
            r"found axes HCYX of lengths \(3, 2, 20, 24\)",
        ),
        (
            values(3, 20, 24),
            {"volumetric": True, "photometric": "minisblack", "tile": (16, 16, 16)},
            r"found axes ZYX of lengths \(3, 20, 24\)",
        ),
    ],
)
def test_ambiguous_axes_are_refused_by_name(tmp_path, pixels, settings, message):
    if settings.get("volumetric"):
        pixels = pixels.astype("uint32")
    tifffile.imwrite(tmp_path / "a.tif", pixels, **settings)
    with pytest.raises(ValueError, match=rf"a\.tif: expected .*{message}"):
        read_array(tmp_path / "a.tif")


def test_several_series_of_ome_are_refused_with_their_axes(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as tiff:
        for _ in range(2):
            tiff.write(values(3, 20, 24), metadata={"axes": "CYX"}, photometric="minisblack")
    with pytest.raises(ValueError, match=r"expected one series of images, found 2: CYX .3, 20, 24"):
        read_array(tmp_path / "a.tif")


def test_lower_resolutions_in_ome_are_left_out(tmp_path):
    pixels = values(3, 20, 24)
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as tiff:
        settings = {"photometric": "minisblack", "tile": (16, 16)}
        tiff.write(pixels, subifds=1, metadata={"axes": "CYX"}, **settings)
        tiff.write(pixels[:, ::2, ::2].copy(), subfiletype=1, **settings)
    assert_reads(tmp_path / "a.tif", np.moveaxis(pixels, 0, 2))


def test_an_ome_file_whose_planes_lie_in_other_files_is_refused(tmp_path):
    pixels, path = values(3, 20, 24), tmp_path / "a.ome.tif"
    settings = {"metadata": {"axes": "CYX"}, "photometric": "minisblack", "ome": True}
    tifffile.imwrite(path, pixels, **settings)
    tifffile.imwrite(tmp_path / "b.ome.tif", pixels, **settings)
    with tifffile.TiffFile(path) as tiff, tifffile.TiffFile(tmp_path / "b.ome.tif") as second:
        xml = tiff.ome_metadata
        uuid = second.ome_metadata.split('UUID="')[1][:45]
    data = '<TiffData IFD="0" PlaneCount="3"/>'
    assert data in xml
    other = f'<UUID FileName="b.ome.tif">{uuid}</UUID>'
    changed = xml.replace(data, f'<TiffData IFD="0" PlaneCount="3">{other}</TiffData>')
    tifffile.imwrite(path, pixels, description=changed, metadata=None, photometric="minisblack")
    with pytest.raises(ValueError, match=r"a\.ome\.tif: expected all planes .* in other files"):
        read_array(path)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize(
    ("bands", "dtype", "photometric"), [(5, "uint16", "minisblack"), (3, "uint16", "rgb")]
)
def test_orientation_tags_are_applied(tmp_path, tag, bands, dtype, photometric):
    pixels = values(20, 24, bands, dtype=dtype)
    settings = {"photometric": photometric, "planarconfig": "contig", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=[(274, 3, 1, tag, True)], **settings)
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif"), turn(pixels, tag))
    found = read_array(tmp_path / "a.tif", orientation="stored")
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_pixels_of_which_0_is_white_are_inverted(tmp_path, dtype):
    pixels = values(20, 24, 5, dtype=dtype)
    settings = {"photometric": "miniswhite", "planarconfig": "contig", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", pixels, **settings)
    assert_reads(tmp_path / "a.tif", np.iinfo(dtype).max - pixels)


@pytest.mark.parametrize(
    ("photometric", "dtype"), [("miniswhite", "int16"), ("separated", "uint16"), ("cielab", "int8")]
)
def test_other_kinds_of_colour_are_refused_by_name(tmp_path, photometric, dtype):
    settings = {"photometric": photometric, "planarconfig": "contig", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", values(20, 24, 4, dtype=dtype), **settings)
    message = rf"a\.tif: expected grey.*kind {photometric.upper()} and type {dtype}"
    with pytest.raises(ValueError, match=message):
        read_array(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", ["int16", "float32", "uint32"])
def test_opaque_alpha_is_dropped_and_other_alpha_a_band(tmp_path, dtype):
    pixels = values(20, 24, 5, dtype=dtype)
    opaque = 1 if dtype == "float32" else np.iinfo(dtype).max
    pixels[..., 3] = opaque
    settings = {"photometric": "rgb", "planarconfig": "contig", "extrasamples": [2, 0]}
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None, **settings)
    assert_reads(tmp_path / "a.tif", pixels[..., [0, 1, 2, 4]])
    pixels[3, 5, 3] = 0
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None, **settings)
    assert_reads(tmp_path / "a.tif", pixels)


@pytest.mark.parametrize(("colours", "dtype"), [(3, "uint8"), (1, "uint8"), (3, "uint16")])
@pytest.mark.parametrize("alpha", [1, 2])
def test_the_alpha_of_a_photograph_follows_the_same_rule(
    tmp_path, monkeypatch, colours, dtype, alpha
):
    pixels = values(20, 24, colours + 1, dtype=dtype)
    photometric = "rgb" if colours == 3 else "minisblack"
    settings = {"photometric": photometric, "planarconfig": "contig", "extrasamples": [alpha]}
    tifffile.imwrite(tmp_path / "band.tif", pixels, metadata=None, **settings)
    pixels[..., -1] = np.iinfo(dtype).max
    tifffile.imwrite(tmp_path / "opaque.tif", pixels, metadata=None, **settings)
    if alpha == 2:  # Pillow and OpenCV keep the values
        monkeypatch.setitem(sys.modules, "tifffile", None)
    assert_reads(tmp_path / "opaque.tif", pixels[..., :-1])
    assert_reads(tmp_path / "band.tif", values(20, 24, colours + 1, dtype=dtype))
    with pytest.raises(
        ValueError, match=r"band\.tif: expected .*(an opaque image|found La pixels)"
    ):
        read_image(tmp_path / "band.tif")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("installed", [True, False])
def test_files_cut_short_are_refused_by_name(
    tmp_path, monkeypatch, keep, tile, compression, installed
):
    settings = {"photometric": "minisblack", "planarconfig": "contig", "metadata": None}
    pixels = RNG.integers(0, 65536, (40, 40, 5), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=tile, compression=compression, **settings)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: int(len(content) * keep)])
    if not installed:
        monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"a\.tif: damaged"):
        read_array(tmp_path / "a.tif")


def test_a_file_that_lists_too_few_strips_is_refused_by_name(tmp_path):
    settings = {"photometric": "minisblack", "planarconfig": "contig", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", values(20, 24, 5), rowsperstrip=5, **settings)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        rows = tiff.pages[0].tags["RowsPerStrip"].valueoffset
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[rows] = 1
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tif: damaged, .*\(4 of 20 strips or tiles\)"):
        read_array(tmp_path / "a.tif")
