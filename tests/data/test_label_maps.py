import numpy as np
import pytest
from PIL import Image

from segjax.data.label_maps import read_label_map, read_stored_values, to_class_ids

VALUES = np.array([[0, 1, 2], [7, 1, 255]], np.uint8)
CLASS_IDS = {0: 255, 1: 0, 2: 1, 7: 5, 255: 255}


def palette_image(palette):
    image = Image.fromarray(VALUES, mode="P")
    image.putpalette(palette)
    return image


@pytest.mark.parametrize("kind", ["grey", "coloured palette", "grey palette"])
def test_stored_values_become_class_ids_whatever_their_colours(kind, tmp_path):
    image = {
        "grey": Image.fromarray(VALUES),
        "coloured palette": palette_image([value % 256 for value in range(7, 775)]),
        "grey palette": palette_image(np.repeat(range(255, -1, -1), 3).tolist()),
    }[kind]
    image.save(tmp_path / "labels.png")
    labels = read_label_map(tmp_path / "labels.png", CLASS_IDS)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [[255, 0, 1], [5, 0, 255]])


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_stored_values_may_be_negative_or_large(dtype):
    stored = np.array([[-1, 0], [300, 7]], dtype)
    labels = to_class_ids(stored, {-1: 255, 0: 0, 7: 1, 300: 2}, origin="here")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [[255, 0], [2, 1]])
    with pytest.raises(ValueError, match="here: value -1; expected 0 to 1, 7, 300"):
        to_class_ids(stored, {0: 0, 1: 0, 7: 1, 300: 2}, origin="here")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_palette_that_was_expanded_to_colours_is_refused_by_name(mode, tmp_path):
    palette_image(list(range(256)) * 3).convert(mode).save(tmp_path / "labels.png")
    with pytest.raises(ValueError, match=r"labels\.png: .*found colours\. Was it saved again"):
        read_label_map(tmp_path / "labels.png", CLASS_IDS)


def test_16_bit_label_maps_are_refused_by_name(tmp_path):
    Image.fromarray(VALUES.astype(np.uint16)).save(tmp_path / "labels.png")
    with pytest.raises(ValueError, match=r"labels\.png: .*8 bits; found I;16 pixels"):
        read_stored_values(tmp_path / "labels.png")


def test_a_stack_of_label_maps_is_refused_by_name(tmp_path):
    page = Image.fromarray(VALUES)
    page.save(tmp_path / "labels.tif", save_all=True, append_images=[page])
    with pytest.raises(ValueError, match=r"labels\.tif: expected one label map, found 2 pages"):
        read_stored_values(tmp_path / "labels.tif")


def test_values_that_should_not_occur_are_named_with_the_file_and_those_that_may(tmp_path):
    Image.fromarray(VALUES).save(tmp_path / "labels.png")
    with pytest.raises(ValueError, match=r"labels\.png: values 2, 7; expected 0 to 1, 3, 255$"):
        read_label_map(tmp_path / "labels.png", dict.fromkeys((0, 1, 3, 255), 0))


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_unreadable_label_maps_are_named(content, tmp_path):
    (tmp_path / "labels.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"labels\.png: damaged, cut short or no image"):
        read_stored_values(tmp_path / "labels.png")


def test_a_label_map_that_was_cut_short_is_refused(tmp_path):
    path = tmp_path / "labels.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:800])
    with pytest.raises(ValueError, match=r"labels\.png: damaged"):
        read_stored_values(path)
