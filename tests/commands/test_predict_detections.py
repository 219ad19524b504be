"""`segjax predict` with a detector: files, pictures, and what it says."""

import dataclasses
import json
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from segjax import pretrained
from segjax.cli import main
from segjax.coco import run_lengths as rle
from segjax.data.augmentation.instance import ResizeShortSide
from segjax.data.instance_masks import CroppedMask
from segjax.models.detections import DetectionConfig
from segjax.pretrained.converted import Pretrained
from segjax.pretrained.instance_tasks import coco_task
from segjax.pretrained.preprocess import IMAGENET
from segjax.tasks.instance import InstanceView
from tests.models.mask_rcnn_tiny import CLASSES, tiny_model, variables_of

NAME = "torchvision/maskrcnn_resnet50_fpn"


@pytest.fixture(autouse=True)
def same_flags(monkeypatch):
    """Commands set XLA's flags for their process, which here is that of all tests."""
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


@pytest.fixture(scope="module")
def detector():
    """A small network of random weights that sees images of 64 pixels."""
    model = tiny_model()
    task = coco_task(model, classes=CLASSES, preprocess=IMAGENET, paste_rule="torchvision")
    view = InstanceView(ResizeShortSide((48,), 64))
    task = dataclasses.replace(task, views=(view,), buckets=((64, 64),))
    return Pretrained(model, variables_of(model), IMAGENET, task)


@pytest.fixture
def photos(tmp_path):
    """A folder of a colour and a grey photograph, and what the network should see of them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    blobs = cv2.resize(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8), (120, 90))
    cv2.imwrite(str(folder / "colour.png"), blobs[..., ::-1])
    cv2.imwrite(str(folder / "grey.png"), blobs[..., 1])
    return folder, {"colour": blobs, "grey": blobs[..., 1:2].repeat(3, axis=2)}


def predict(monkeypatch, found, photos, output, *options):
    """Runs the command with what the conversion of a file would give."""
    monkeypatch.setattr(pretrained, "load", lambda name, path: found)
    arguments = ["predict", NAME, photos, "--weights", "weights.npz", "--output", output, *options]
    main([str(argument) for argument in arguments])
    return [json.loads((output / f"{name}.json").read_text()) for name in ("detections", "images")]


def test_objects_are_those_that_the_converted_model_finds(
    monkeypatch, detector, photos, tmp_path, capsys
):
    folder, images = photos
    results, content = predict(monkeypatch, detector, folder, tmp_path / "out")
    shown = capsys.readouterr().out
    assert f"predicting with {NAME} from weights.npz" in shown
    assert "converted to RGB for the model: 1 of 2 files" in shown
    assert [category["name"] for category in content["categories"]] == list(CLASSES[1:])
    assert [image["file_name"] for image in content["images"]] == [
        str(folder / "colour.png"),
        str(folder / "grey.png"),
    ]
    total = 0
    for image, name in zip(content["images"], images, strict=True):
        objects = [x for x in results if x["image_id"] == image["id"]]
        expected = detector.predict(images[name])
        assert len(objects) == len(expected["scores"]) > 0
        total += len(objects)
        for place, entry in enumerate(objects):
            x_min, y_min, x_max, y_max = expected["boxes"][place]
            box = [x_min, y_min, x_max - x_min, y_max - y_min]
            np.testing.assert_allclose(entry["bbox"], box, atol=1e-3)
            np.testing.assert_allclose(entry["score"], expected["scores"][place], atol=1e-5)
            assert entry["category_id"] == expected["classes"][place]
            mask = rle.decode(entry["segmentation"])
            assert mask.shape == (90, 120)
            theirs = rle.decode(expected["masks"][place])
            assert (mask != theirs).mean() < 1e-3
        picture = cv2.imread(str(tmp_path / "out" / "overlays" / f"{name}.png"))
        assert picture.shape[0] % 90 == picture.shape[1] % 120 == 0
    assert f"{total} objects with scores" in shown


def test_detections_get_the_ids_of_an_annotation_file(
    monkeypatch, detector, photos, tmp_path, capsys
):
    folder, _ = photos
    names = list(CLASSES[1:])
    listing = {
        "images": [
            {"id": 700, "file_name": "colour.png", "height": 90, "width": 120},
            {"id": "g", "file_name": "somewhere/grey.png"},
            {"id": 3, "file_name": "other.png"},
        ],
        "categories": [{"id": 40 + i, "name": name} for i, name in enumerate(names)],
    }
    path = tmp_path / "listing.json"
    path.write_text(json.dumps(listing))
    plain, _ = predict(monkeypatch, detector, folder, tmp_path / "plain")
    results, table = predict(monkeypatch, detector, folder, tmp_path / "out", "--annotations", path)
    assert [image["id"] for image in table["images"]] == [700, "g"]
    assert table["categories"] == listing["categories"]
    own = {1: 700, 2: "g"}
    for row, other in zip(results, plain, strict=True):
        assert row["image_id"] == own[other["image_id"]]
        assert row["category_id"] == other["category_id"] + 39
        assert row["bbox"] == other["bbox"]
    assert f"category ids: those of {path}, by name" in capsys.readouterr().out

    listing["images"].pop(0)
    path.write_text(json.dumps(listing))
    with pytest.raises(SystemExit):
        predict(monkeypatch, detector, folder, tmp_path / "none", "--annotations", path)
    assert "1 of 2 images are not in" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_settings_of_a_converted_model_are_those_that_it_has(
    monkeypatch, detector, photos, tmp_path, capsys
):
    photo = photos[0] / "colour.png"
    plain, _ = predict(monkeypatch, detector, photo, tmp_path / "plain")
    threshold = plain[1]["score"]
    name = "network.detections.score_threshold"
    found, _ = predict(
        monkeypatch, detector, photo, tmp_path / "out", "--set", f"{name}={threshold}"
    )
    assert found == [row for row in plain if row["score"] > threshold]
    assert f"settings: {name}={threshold}" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert (record["model"], record["step"]) == (NAME, None)
    assert record["weights"].endswith("weights.npz")
    assert record["settings"] == {name: threshold}
    for setting, message in (
        (
            "score_threshold=0.5",
            f"weights without a run have no such setting; did you mean {name!r}",
        ),
        ("colour=1", "no such setting; there is prediction.short_sides, prediction.max_size"),
        (f"{name}=2", "score_threshold=2.0; expected 0 to 1"),
        ("network.pixel_range=[0,9]", "take --pixel-range LOW HIGH"),
    ):
        with pytest.raises(SystemExit):
            predict(monkeypatch, detector, photo, tmp_path / "none", "--set", setting)
        shown = capsys.readouterr().err
        assert message in shown
        assert shown.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_sixteen_bits_are_predicted_as_the_eight_that_they_stand_for(
    monkeypatch, detector, photos, tmp_path, capsys
):
    folder, images = photos
    wide = tmp_path / "wide" / "colour.png"
    wide.parent.mkdir()
    cv2.imwrite(str(wide), images["colour"][..., ::-1] * np.uint16(257))
    plain, _ = predict(monkeypatch, detector, folder / "colour.png", tmp_path / "plain")
    options = ("--pixel-range", "0", "65535")
    found, _ = predict(monkeypatch, detector, wide, tmp_path / "out", *options)
    assert found == plain != []
    with_range = dataclasses.replace(
        detector, task=dataclasses.replace(detector.task, pixel_range=(0, 65535))
    )
    scores = with_range.predict(images["colour"] * np.uint16(257))["scores"]
    np.testing.assert_array_equal(scores, detector.predict(images["colour"])["scores"])
    for arguments, message in (
        ((), "colour.png has 16 bits; the model is for photographs of 8 bits. --pixel-range LOW"),
        (("--pixel-range", "9", "9"), "pixel_range=9 9; expected the lowest and the highest"),
    ):
        with pytest.raises(SystemExit):
            predict(monkeypatch, detector, wide, tmp_path / "none", *arguments)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_detectors_have_no_probability_maps(monkeypatch, detector, photos, tmp_path, capsys):
    with pytest.raises(SystemExit):
        predict(monkeypatch, detector, photos[0], tmp_path / "out", "--probabilities", "npy")
    message = capsys.readouterr().err
    assert message.startswith("error: --probabilities is for models that label pixels")
    assert not (tmp_path / "out").exists()


def test_images_with_an_orientation_are_predicted_upright_or_stored_as_asked(
    monkeypatch, detector, photos, tmp_path, capsys
):
    folder, images = photos
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "turned").mkdir()
    turned = tmp_path / "turned" / "colour.png"
    Image.fromarray(images["colour"]).save(turned, exif=exif)
    (turned.parent / "notes.txt").touch()
    plain, _ = predict(monkeypatch, detector, folder / "colour.png", tmp_path / "plain")
    capsys.readouterr()
    _, table = predict(monkeypatch, detector, turned.parent, tmp_path / "upright")
    shown = capsys.readouterr().out
    assert (table["images"][0]["height"], table["images"][0]["width"]) == (120, 90)
    assert "1 of 1 images carry an EXIF orientation, such as colour.png (6): they are" in shown
    assert "set --orientation to stored" in shown
    assert "1 of 2 files in" in shown
    assert "are no images, skipped: notes.txt" in shown
    stored = ("--orientation", "stored")
    found, _ = predict(monkeypatch, detector, turned, tmp_path / "stored", *stored)
    assert found == plain

    listing = {"images": [{"id": 1, "file_name": "colour.png", "height": 90, "width": 120}]}
    path = tmp_path / "listing.json"
    path.write_text(json.dumps(listing))
    with pytest.raises(SystemExit):
        predict(monkeypatch, detector, turned, tmp_path / "none", "--annotations", path)
    assert "stored bitmap? Set --orientation to stored" in capsys.readouterr().err
    predict(monkeypatch, detector, turned, tmp_path / "listed", "--annotations", path, *stored)


def test_a_converted_detector_scores_what_it_finds(detector, photos):
    """Against its own detections, and against the same with boxes further right."""
    image = photos[1]["colour"]
    found = detector.predict(image)
    masks = [rle.decode(mask) for mask in found["masks"]]
    example = {
        "id": "colour",
        "image": image,
        "boxes": found["boxes"],
        "classes": found["classes"],
        "masks": tuple(CroppedMask(0, 0, mask) for mask in masks),
        "crowd": np.zeros(len(masks), bool),
        "areas": np.array([mask.sum() for mask in masks], np.float32),
    }
    scores = []
    for shift in (0, 60):
        evaluator = detector.task.evaluator()
        moved = example | {"boxes": example["boxes"] + np.float32([shift, 0, shift, 0])}
        evaluator.update(moved, found)
        scores.append(evaluator.result()["box_AP"])
    assert scores[0] == pytest.approx(1)
    assert scores[1] < 0.5


def test_a_photograph_without_objects_is_shown_as_it_is(
    monkeypatch, detector, photos, tmp_path, capsys
):
    folder, images = photos
    model = detector.model.clone(detections=DetectionConfig(score_threshold=1.0, max_detections=5))
    task = dataclasses.replace(detector.task, model=model)
    blind = dataclasses.replace(detector, model=model, task=task)
    results, content = predict(monkeypatch, blind, folder / "colour.png", tmp_path / "out")
    assert results == []
    assert [image["id"] for image in content["images"]] == [1]
    assert "0 objects with scores" in capsys.readouterr().out
    picture = cv2.imread(str(tmp_path / "out" / "overlays" / "colour.png"))[..., ::-1]
    factor = picture.shape[0] // 90
    np.testing.assert_array_equal(picture[::factor, ::factor], images["colour"])


def test_predictions_that_are_there_are_not_replaced_unasked(
    monkeypatch, detector, photos, tmp_path, capsys
):
    folder, _ = photos
    (tmp_path / "detections.json").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        predict(monkeypatch, detector, folder, tmp_path)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "detections.json exists already" in message
    assert "--overwrite" in message
    assert (tmp_path / "detections.json").read_text() == "mine"
    assert not (tmp_path / "overlays").exists()
