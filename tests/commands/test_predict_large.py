"""`segjax predict` of images that are read, predicted and written part by part."""

import dataclasses
import os

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from segjax import pretrained
from segjax.cli import main
from segjax.commands import prediction_parts
from segjax.data import image_windows
from segjax.data.augmentation.normalization import StretchPercentiles
from segjax.data.augmentation.semantic import Normalize, Standardize
from segjax.data.images import read_image
from segjax.inference.coverings import SlidingWindow, WholeImage
from segjax.inference.tiling import Tiling
from segjax.inference.views import rotations_and_flips, seven_rotated_versions
from segjax.models import UNet
from segjax.pretrained.converted import Pretrained
from segjax.recipes.unet import CellInstances
from segjax.tasks import SemanticTask
from segjax.trained.parts import PartPredictor, why_not_in_parts

tifffile = pytest.importorskip("tifffile")
SIDE, TILE, H, W = 36, 24, 75, 131
BLUR = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(H, W)), 4)
IMAGE = np.interp(BLUR, (BLUR.min(), BLUR.max()), (0, 255)).astype(np.uint8)


@pytest.fixture(autouse=True)
def same_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


@pytest.fixture(scope="module")
def model():
    """A small U-Net of random weights."""
    network = UNet(num_classes=2, features=2, depth=1, padding="SAME", dropout_rate=0.0)
    task = SemanticTask(
        model=network,
        classes=("ground", "cell"),
        channels=1,
        covering=Tiling((SIDE, SIDE), (TILE, TILE), multiple=2),
        preprocess=Standardize(),
    )
    blank = np.zeros((1, SIDE, SIDE, 1), np.float32)
    params = jax.jit(network.init)(jax.random.key(2), blank)["params"]
    variables = {"batch_stats": {}, "params": jax.tree.map(np.asarray, params)}
    types = ("uint8", "uint16", "float32")
    found = Pretrained(network, variables, task.preprocess, task, types).predict(IMAGE)
    odds = np.log(found["probabilities"] + 1e-30)
    assert np.ptp(odds[..., 1] - odds[..., 0]) > 0.1
    # Shifted, so that half of the pixels are cells.
    variables["params"]["logits"]["bias"] = variables["params"]["logits"]["bias"] + np.array(
        [np.median(odds[..., 1] - odds[..., 0]), 0], np.float32
    )
    return Pretrained(network, variables, task.preprocess, task, types)


def changed(model, **changes):
    return dataclasses.replace(model, task=dataclasses.replace(model.task, **changes))


def predict(monkeypatch, model, image, output, *options):
    monkeypatch.setattr(pretrained, "load", lambda name, path: model)
    arguments = ["predict", "smp/unet_resnet34", image, "--weights", "a.npz", "--output", output]
    main([str(argument) for argument in (*arguments, *options)])


def save(path, **options):
    geo = [(33550, "d", 3, (0.5, 0.5, 0.0), True), (34737, "s", 0, "WGS 84|", True)]
    tifffile.imwrite(
        path, IMAGE, tile=(16, 32), resolution=(300, 100), extratags=geo, metadata=None, **options
    )
    return path


def test_labels_and_tags_are_those_of_the_ordinary_prediction(monkeypatch, model, tmp_path, capsys):
    path = save(tmp_path / "slide.tif", compression="zlib")
    options = ("--set", "prediction.flip=true", "--batch-size", "3", "--probabilities", "npy")
    predict(monkeypatch, model, path, tmp_path / "whole", *options)
    capsys.readouterr()
    monkeypatch.setattr(image_windows, "BLOCK", 50)
    predict(monkeypatch, model, path, tmp_path / "parts", *options, "--whole-pixels", "9000")
    shown = capsys.readouterr().out
    assert "slide: 9,825 pixels are more than 9,000 (--whole-pixels)" in shown
    assert "predicted in parts" in shown
    assert "(0 ground, 1 cell)" in shown
    files = sorted(each.name for each in (tmp_path / "parts").iterdir())
    assert files == ["labels_tiff", "overlays", "predict.json", "probabilities"]
    whole, parts = (tmp_path / name / "labels_tiff" / "slide.tif" for name in ("whole", "parts"))
    expected = read_image(tmp_path / "whole" / "labels" / "slide.png")
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(read_image(parts), expected)
    with Image.open(whole) as one, Image.open(parts) as other:
        for tag in (282, 283, 296, 33550, 34737):
            assert one.tag_v2[tag] == other.tag_v2[tag]
        assert 305 not in other.tag_v2
    with tifffile.TiffFile(parts) as tiff:
        assert tiff.pages[0].is_tiled
    one, other = (
        np.load(tmp_path / name / "probabilities" / "slide.npy") for name in ("whole", "parts")
    )
    np.testing.assert_array_equal(one, other)
    pictures = [
        read_image(tmp_path / name / "overlays" / "slide.png") for name in ("whole", "parts")
    ]
    np.testing.assert_array_equal(*pictures)  # an image of this size is not reduced


@pytest.mark.parametrize("gap", [0, 2])
def test_objects_are_those_of_the_ordinary_prediction(monkeypatch, model, tmp_path, gap):
    model = changed(model, decode=CellInstances(gap=gap, min_size=20))
    monkeypatch.setattr(prediction_parts, "PICTURE_SIDE", 40)
    np.save(tmp_path / "slide.npy", IMAGE.astype(np.float32))
    for name, limit in (("whole", 10**6), ("parts", 0)):
        predict(
            monkeypatch, model, tmp_path / "slide.npy", tmp_path / name, "--whole-pixels", limit
        )
    for kind in ("instances", "labels"):
        expected = read_image(tmp_path / "whole" / kind / "slide.png")
        found = read_image(tmp_path / "parts" / f"{kind}_tiff" / "slide.tif")
        assert expected.dtype == found.dtype
        np.testing.assert_array_equal(found, expected)
    assert read_image(tmp_path / "whole" / "instances" / "slide.png").max() > 3
    assert not [*(tmp_path / "parts").glob(".parts_*")]
    picture = read_image(tmp_path / "parts" / "overlays" / "slide.png")
    assert picture.shape == (H // 4, W // 4, 3)  # whole cells of 4 × 4 pixels


@dataclasses.dataclass(eq=False)
class Counting:
    """An image that counts the pixels of the windows that are read."""

    image: np.ndarray
    largest: int = 0
    total: int = 0

    @property
    def shape(self):
        return self.image.shape

    @property
    def dtype(self):
        return self.image.dtype

    def __getitem__(self, window):
        pixels = self.image[window]
        count = pixels.shape[0] * pixels.shape[1]
        self.largest, self.total = max(self.largest, count), self.total + count
        return pixels


VIEWS = {"eight": rotations_and_flips(), "seven": seven_rotated_versions()}


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocess": StretchPercentiles()},
        {"views": VIEWS["eight"]},
        {"views": VIEWS["seven"][:1], "preprocess": Normalize(100.0, 50.0)},
        {"covering": SlidingWindow((SIDE, SIDE), (20, 14))},
    ],
    ids=["percentiles", "eight views", "a turned view", "sliding windows"],
)
def test_no_window_is_larger_than_a_tile_and_probabilities_are_equal(
    monkeypatch, model, tmp_path, changes
):
    monkeypatch.setattr(image_windows, "BLOCK", 32)
    model = changed(model, **changes)
    image = Counting(IMAGE[..., None])
    expected = model.predict(IMAGE)["probabilities"]
    found = np.full_like(expected, np.nan)
    predictor = PartPredictor(model, batch_size=2)
    for row, column, part in predictor(image, scratch=tmp_path):
        found[row : row + part.shape[0], column : column + part.shape[1]] = part
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert image.largest <= SIDE**2
    assert image.total > H * W


def test_what_needs_the_whole_image_is_refused_by_one_line(monkeypatch, model, tmp_path, capsys):
    np.save(tmp_path / "slide.npy", IMAGE)
    for changes, options, complaint in (
        ({"covering": WholeImage((32, 32), 16)}, (), "predicts an image in one pass; windows"),
        ({}, ("--set", "prediction.scales=[1,2]"), "resizes the whole image (prediction.scales)"),
        ({}, ("--set", "prediction.refine=true"), "CRF connects all pixels"),
        ({}, ("--probabilities", "png"), "--probabilities png cannot be written in parts"),
        ({"decode": lambda probabilities: {}}, (), "its decoding (function) needs the whole"),
        ({"preprocess": lambda example, rng: example}, (), "preprocessing (function) needs"),
    ):
        with pytest.raises(SystemExit):
            predict(
                *(monkeypatch, changed(model, **changes), tmp_path / "slide.npy", tmp_path / "out"),
                *("--whole-pixels", "1000", *options),
            )
        said = capsys.readouterr().err
        assert "slide.npy: images of more than 1,000 pixels are predicted in parts" in said
        assert complaint in said
    with pytest.raises(SystemExit):
        predict(
            monkeypatch, model, tmp_path / "slide.npy", tmp_path / "out", "--whole-pixels", "-1"
        )
    assert "--whole-pixels -1: expected" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert "finds objects" in why_not_in_parts(object())


def test_a_file_that_is_decoded_as_a_whole_says_so(monkeypatch, model, tmp_path, capsys):
    Image.fromarray(IMAGE).save(tmp_path / "photo.png")
    predict(
        *(monkeypatch, model, tmp_path / "photo.png", tmp_path / "out", "--whole-pixels", "0"),
        *("--set", "prediction.size=[36,36]", "prediction.window_stride=[20,20]"),
    )
    assert ".png files are compressed as a whole" in capsys.readouterr().out
    assert (tmp_path / "out" / "labels_tiff" / "photo.tif").exists()
