"""`segjax predict` of a run that labels pixels: probability maps, and TIFF files with tags."""

import os

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

import segjax
from segjax.cli import main
from segjax.data.images import read_image
from segjax.training.loop import train
from tests.training import tiny

SCALE = {33550: (0.5, 0.5, 0.0), 34735: (1, 1, 0, 1, 1024, 0, 1, 1), 34737: b"WGS 84|"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny.Config(workdir=tmp_path_factory.mktemp("maps") / "run")
    train(tiny.build(config), config, experiment_file=tiny.__file__)
    return config.workdir


@pytest.fixture(autouse=True)
def same_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


@pytest.fixture
def pixels():
    return tiny.Squares(1)[0]["image"][:10, :, 0].astype(np.uint8)


def save_map(path, pixels, *, orientation=1):
    directory = ImageFileDirectory_v2()
    directory.tagtype.update({33550: 12, 34735: 3, 34737: 2})
    for tag, value in SCALE.items():
        directory[tag] = value
    directory[274] = orientation
    Image.fromarray(pixels).save(path, tiffinfo=directory, dpi=(300, 100))
    return path


def predict(run, images, output, *options):
    main(["predict", str(run), str(images), "--output", str(output), *options])


def test_arrays_hold_the_probabilities_as_predicted(run, pixels, tmp_path, capsys):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    predict(run, tmp_path / "a.png", tmp_path / "out", "--probabilities", "npy")
    written = np.load(tmp_path / "out" / "probabilities" / "a.npy")
    expected = segjax.load_run(run).predict(pixels)["probabilities"]
    assert (written.dtype, written.shape) == (np.float32, (*pixels.shape, 2))
    np.testing.assert_allclose(written, expected, atol=1e-6)
    labels = read_image(tmp_path / "out" / "labels" / "a.png")[..., 0]
    np.testing.assert_array_equal(written.argmax(axis=-1), labels)
    assert "float32 [height, width, classes]" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        predict(run, tmp_path / "a.png", tmp_path / "out", "--probabilities", "npy")
    assert "exists already" in capsys.readouterr().err


def test_pictures_of_16_bits_hold_the_rounded_probabilities_of_a_class(run, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    predict(run, tmp_path / "a.png", tmp_path / "out", "--probabilities", "png")
    folder = tmp_path / "out" / "probabilities"
    assert sorted(path.name for path in folder.iterdir()) == ["a_ground.png", "a_square.png"]
    expected = segjax.load_run(run).predict(pixels)["probabilities"]
    for number, name in enumerate(("ground", "square")):
        written = read_image(folder / f"a_{name}.png")[..., 0]
        assert written.dtype == np.uint16
        difference = written / 65535 - expected[..., number].astype(np.float64)
        assert abs(difference).max() <= 1 / 131070 + 1e-6


def test_label_maps_keep_the_place_of_their_images(run, pixels, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    save_map(folder / "map.tif", pixels)
    Image.fromarray(pixels).save(folder / "plain.tif")
    predict(run, folder, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "labels_tiff").iterdir()] == ["map.tif"]
    path = tmp_path / "out" / "labels_tiff" / "map.tif"
    labels = read_image(tmp_path / "out" / "labels" / "map.png")
    np.testing.assert_array_equal(read_image(path), labels)
    with Image.open(path) as image:
        found = {tag: image.tag_v2[tag] for tag in SCALE}
        assert found == SCALE | {34737: "WGS 84|"}
        assert image.info["dpi"] == (300, 100)
    assert "with the resolution and the place of TIFF images" in capsys.readouterr().out
    (tmp_path / "out" / "labels" / "map.png").unlink()
    (tmp_path / "out" / "overlays" / "map.png").unlink()
    with pytest.raises(SystemExit):
        predict(run, folder / "map.tif", tmp_path / "out")
    assert "map.tif exists already" in capsys.readouterr().err


def test_a_turned_image_gives_no_place_that_is_not_its_own(run, pixels, tmp_path, capsys):
    path = save_map(tmp_path / "turned.tif", pixels, orientation=6)
    predict(run, path, tmp_path / "upright")
    shown = capsys.readouterr().out
    assert "label maps of 1 of 1 files do not keep the place on the map" in shown
    predict(run, path, tmp_path / "stored", "--orientation", "stored")
    assert "do not keep" not in capsys.readouterr().out
    for name, dpi, shape, tags in (
        ("upright", (100, 300), (16, 10), set()),
        ("stored", (300, 100), (10, 16), {*SCALE}),
    ):
        written = tmp_path / name / "labels_tiff" / "turned.tif"
        assert read_image(written).shape[:2] == shape
        with Image.open(written) as image:
            assert image.info["dpi"] == dpi
            assert {*image.tag_v2} & {*SCALE, 274} == tags
