"""Tags of TIFF files that label maps keep, on files that Pillow writes."""

import re

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

from segjax.data.images import read_image, read_images
from segjax.data.tiff_metadata import PageTags, read_page_tags, write_label_tiff

DOUBLE, SHORT, ASCII, RATIONAL = 12, 3, 2, 5
MAP = {
    33550: (DOUBLE, (0.1, 1 / 3, 0.0)),
    33922: (DOUBLE, (0.0, 0.0, 0.0, 1e5 / 3, -2.5, 0.0)),
    34264: (DOUBLE, tuple(float(x) / 7 for x in range(16))),
    34735: (SHORT, (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633)),
    34736: (DOUBLE, (6378137.0, 298.257223563)),
    34737: (ASCII, "WGS 84 / café|"),
}
RESOLUTION = {282: (RATIONAL, IFDRational(300)), 283: (RATIONAL, IFDRational(150)), 296: (SHORT, 3)}
OME = (
    '<?xml version="1.0" encoding="UTF-8"?><OME><Image><Pixels SizeX="3" SizeC="2" '
    'PhysicalSizeX="0.25" PhysicalSizeXUnit="µm" PhysicalSizeY="0.5"><Channel/></Pixels></Image>'
    "</OME>"
).encode()


def save(path, *pages):
    """Writes pages of 4 × 6 pixels with tags, {number: (type, value)}."""
    images = []
    for page, tags in enumerate(pages):
        image = Image.fromarray(np.full((4, 6), page, np.uint8))
        directory = ImageFileDirectory_v2()
        for tag, (kind, value) in tags.items():
            value = value.encode("latin-1") if isinstance(value, str) else value
            directory.tagtype[tag], directory[tag] = kind, value
        image.encoderinfo = {"tiffinfo": directory}
        images.append(image)
    options = images[0].encoderinfo
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


def tags_of(path):
    with Image.open(path) as image:
        return {tag: (image.tag_v2.tagtype[tag], image.tag_v2[tag]) for tag in image.tag_v2}


def write(path, tags, *, shape=(4, 6), dtype=np.uint8):
    labels = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    write_label_tiff(path, labels, tags)
    np.testing.assert_array_equal(read_image(path)[..., 0], labels)
    return tags_of(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_a_label_map_keeps_the_place_and_the_resolution(tmp_path, dtype):
    [tags] = read_page_tags(save(tmp_path / "map.tif", MAP | RESOLUTION))
    written = write(tmp_path / "labels.tif", tags, dtype=dtype)
    for tag, expected in MAP.items():
        assert written[tag] == expected, tag
    assert [written[tag][1] for tag in (282, 283, 296)] == [300, 150, 3]
    assert written[258][1] == (8,) if dtype is np.uint8 else (16,)
    assert tags.left_out == ()


def test_each_page_has_its_own_tags(tmp_path):
    path = save(tmp_path / "stack.tif", MAP, RESOLUTION, {})
    first, second, third = read_page_tags(path)
    assert first == PageTags(geo=MAP)
    assert second == PageTags(resolution=(300, 150, 3))
    assert not third
    assert len([*read_images(path)]) == 3
    thumbnail = save(tmp_path / "thumbnail.tif", MAP, {254: (4, 1)})
    assert [*map(bool, read_page_tags(thumbnail))] == [True] * len([*read_images(thumbnail)])


def test_a_turned_page_loses_its_place_and_a_quarter_turn_exchanges_the_resolutions(tmp_path):
    for orientation, resolution in ((1, (300, 150, 3)), (3, (300, 150, 3)), (6, (150, 300, 3))):
        tags = MAP | RESOLUTION | {274: (SHORT, orientation), 270: (ASCII, OME)}
        path = save(tmp_path / "turned.tif", tags)
        [upright] = read_page_tags(path)
        [stored] = read_page_tags(path, orientation="stored")
        assert upright.resolution == resolution
        assert stored.geo == MAP
        assert stored.resolution == (300, 150, 3)
        if orientation == 1:
            assert upright == stored
            continue
        assert upright.geo == {}
        assert upright.left_out == ("the place on the map, which is that of the stored bitmap",)
        written = write(tmp_path / "labels.tif", upright, shape=read_image(path).shape[:2])
        assert not written.keys() & {*MAP, 274}
        sizes = {"PhysicalSizeX": "0.25", "PhysicalSizeY": "0.5"}
        if orientation == 6:
            sizes = {"PhysicalSizeY": "0.25", "PhysicalSizeX": "0.5"}
        assert {name: upright.ome[name] for name in sizes} == sizes


def test_gdals_tags_are_kept_where_they_cannot_falsify_labels(tmp_path):
    item = '<GDALMetadata><Item name="DATE">2020</Item></GDALMetadata>'
    band = '<GDALMetadata><Item name="STATISTICS_MEAN" sample="0">7</Item></GDALMetadata>'
    for metadata, value, kept in (
        (item, "-9999", {42112, 42113}),
        (item, "nan", {42112, 42113}),
        (item, "0", {42112}),
        (band, "255", set()),
        (band, "-1", {42113}),
    ):
        own = {42112: (ASCII, metadata), 42113: (ASCII, value)}
        [tags] = read_page_tags(save(tmp_path / "map.tif", own | MAP))
        assert tags.geo == {tag: content for tag, content in own.items() if tag in kept} | MAP
        assert len(tags.left_out) == 2 - len(kept)
        assert write(tmp_path / "labels.tif", tags).keys() & own.keys() == kept


def test_the_unit_of_imagej_is_kept_without_its_channels(tmp_path):
    text = "ImageJ=1.54f\nimages=3\nchannels=3\nunit=\\u00B5m\nmin=0.0\nmax=9.0\n"
    resolution = RESOLUTION | {296: (SHORT, 1)}
    pages = read_page_tags(save(tmp_path / "stack.tif", {270: (ASCII, text)} | resolution, {}))
    written = write(tmp_path / "labels.tif", pages[0])
    assert written[270][1] == "ImageJ=1.54f\nunit=\\u00B5m\n"
    assert written[282][1] == 300
    assert pages[1].imagej == pages[0].imagej  # the description is that of all pages


def test_the_pixel_size_of_ome_is_kept_for_one_page(tmp_path):
    [tags] = read_page_tags(save(tmp_path / "image.ome.tif", {270: (ASCII, OME)}))
    written = write(tmp_path / "labels.tif", tags)[270][1].encode("latin-1").decode()
    for attribute in (
        'PhysicalSizeX="0.25"',
        'PhysicalSizeXUnit="µm"',
        'PhysicalSizeY="0.5"',
        'SizeX="6"',
        'SizeY="4"',
        'SizeC="1"',
        'Type="uint8"',
    ):
        assert len(re.findall(rf"\b{attribute}", written)) == 1
    two = OME.replace(b"</Image>", b"</Image><Image><Pixels/></Image>")
    [tags] = read_page_tags(save(tmp_path / "two.ome.tif", {270: (ASCII, two)}))
    assert not tags


def test_files_without_a_resolution_have_nothing_to_keep(tmp_path):
    one = {282: (RATIONAL, IFDRational(1)), 283: (RATIONAL, IFDRational(1)), 296: (SHORT, 1)}
    zero = RESOLUTION | {282: (RATIONAL, IFDRational(0))}
    for tags in ({}, one, zero, {282: RESOLUTION[282]}, {270: (ASCII, "a drawing")}):
        assert [*map(bool, read_page_tags(save(tmp_path / "plain.tif", tags)))] == [False]
    png = tmp_path / "image.png"
    Image.new("L", (3, 3)).save(png, dpi=(300, 300))
    assert read_page_tags(png) == []
    (tmp_path / "broken.tif").write_bytes(b"II*\0\0")
    assert read_page_tags(tmp_path / "broken.tif") == []
