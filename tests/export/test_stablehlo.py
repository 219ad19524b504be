"""Exported functions find what `predict` finds, on images of any size."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.cli import main
from segjax.coco import run_lengths as rle
from segjax.data.augmentation.instance import Enlarge, ResizeShortSide, resized_size
from segjax.export.instances import _view, sizes_of
from segjax.export.model import image_function
from segjax.export.stablehlo import load_stablehlo, to_stablehlo
from segjax.inference.coverings import WholeImage
from segjax.inference.resizing import ShortSide
from segjax.inference.tiling import Tiling
from segjax.inference.views import View
from segjax.models import DeepLabV3Plus, UNet
from segjax.models.backbones.resnet import ResNet
from segjax.pretrained.converted import Pretrained
from segjax.pretrained.instance_tasks import coco_task
from segjax.pretrained.preprocess import IMAGENET
from segjax.tasks import SemanticTask
from segjax.tasks.instance import InstanceView
from segjax.training.loop import train
from tests.models.mask_rcnn_tiny import CLASSES, ellipses, tiny_model, variables_of
from tests.readme import readme_code
from tests.training import tiny
from tests.variables import random_variables


@pytest.fixture(autouse=True)
def same_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


def photos(number, *size):
    return np.stack([ellipses(seed, size=size)["image"] for seed in range(number)])


def semantic(model, covering, side, **options) -> Pretrained:
    classes = ("background", "red", "green")
    task = SemanticTask(model, classes, 3, covering, IMAGENET, **options)
    variables = random_variables(model, np.zeros((1, side, side, 3), np.float32))
    # Logits of the classes that compete, so that labels vary over an image.
    images = IMAGENET({"image": photos(1, side, side)[0]}, None)["image"][None]
    logits = np.asarray(jax.jit(model.apply)(variables, images)["logits"])
    scale = 1 / logits.std(axis=(0, 1, 2))
    head = variables["params"]["logits"]
    head["kernel"] = head["kernel"] * scale[None, None, None]
    head["bias"] = (head["bias"] - logits.mean(axis=(0, 1, 2))) * scale
    return Pretrained(model, variables, IMAGENET, task)


def unet() -> Pretrained:
    model = UNet(3, features=2, depth=1)
    return semantic(model, Tiling((36, 36), (20, 20), multiple=2), 36)


def deeplab() -> Pretrained:
    backbone = ResNet(stage_sizes=(1, 1, 1, 1), width=4, block="basic")
    model = DeepLabV3Plus(
        3,
        backbone=backbone,
        aspp_features=8,
        low_level_features=4,
        decoder_features=8,
        decoder_convolutions=1,
    )
    return semantic(model, WholeImage((33, 33), multiple=16), 33)


def detector(resize=None) -> Pretrained:
    model = tiny_model()
    task = coco_task(model, classes=CLASSES, preprocess=IMAGENET, paste_rule="detectron2")
    views = (InstanceView(resize or Enlarge(1.0)),)
    task = dataclasses.replace(task, views=views, buckets=((64, 64),))
    return Pretrained(model, variables_of(model), IMAGENET, task)


@pytest.mark.parametrize("make", [unet, deeplab])
def test_labels_and_probabilities_of_any_size_are_those_of_predict(make):
    model = make()
    exported = to_stablehlo(image_function(model))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    seen = set()
    for images in (photos(2, 30, 41), photos(1, 70, 33)):
        found = exported.call(images)
        assert {name: x.dtype.name for name, x in found.items()} == {
            "labels": "uint8",
            "probabilities": "float32",
        }
        for number, image in enumerate(images):
            expected = model.predict(image)
            seen |= {*np.unique(expected["labels"]).tolist()}
            np.testing.assert_array_equal(found["labels"][number], expected["labels"])
            np.testing.assert_allclose(
                found["probabilities"][number], expected["probabilities"], atol=1e-5
            )
    assert len(seen) > 1


def test_scales_flips_and_turns_are_averaged_for_images_of_one_size():
    model = unet()
    views = (View(), View(flip=True, scale=0.4), View(quarter_turns=1, scale=1.5))
    task = dataclasses.replace(model.task, views=views, input_size=ShortSide(40))
    model = dataclasses.replace(model, task=task)
    with pytest.raises(ValueError, match="give --size HEIGHT WIDTH"):
        image_function(model)
    image = photos(1, 30, 42)
    found = jax.jit(image_function(model, size=(30, 42)).call)(image)
    expected = model.predict(image[0])
    np.testing.assert_allclose(found["probabilities"][0], expected["probabilities"], atol=1e-5)
    np.testing.assert_array_equal(found["labels"][0], expected["labels"])


def test_detections_of_any_size_in_the_bucket_are_those_of_predict():
    model = detector()
    exported = to_stablehlo(image_function(model))
    images = photos(2, 50, 60)
    found = jax.device_get(exported.call(images))
    for number, image in enumerate(images):
        expected = model.predict(image)
        valid = found["valid"][number]
        assert valid.sum() == len(expected["scores"]) > 0
        for name, tolerance in (("boxes", 1e-3), ("scores", 1e-5), ("classes", 0)):
            np.testing.assert_allclose(found[name][number][valid], expected[name], atol=tolerance)
        masks = np.stack([rle.decode(mask) for mask in expected["masks"]])
        assert masks.any()
        assert np.mean(found["masks"][number][valid] != masks) < 1e-3
        assert not found["masks"][number][~valid].any()
    with pytest.raises(ValueError, match="height <= 64"):
        exported.call(photos(1, 70, 60))


def test_a_detector_that_resizes_finds_what_predict_finds():
    model = detector(ResizeShortSide((48,), 64))
    image = photos(1, 90, 110)
    function = image_function(model, size=(90, 110))
    assert not function.notes
    found = jax.device_get(jax.jit(function.call)(image))
    expected = model.predict(image[0])
    valid = found["valid"][0]
    assert valid.sum() == len(expected["scores"]) > 0
    for name, tolerance in (("boxes", 1e-3), ("scores", 1e-5), ("classes", 0)):
        np.testing.assert_allclose(found[name][0][valid], expected[name], atol=tolerance)


def test_images_of_any_size_get_the_size_and_a_bucket_of_prediction():
    resize = ResizeShortSide((48,), 64)
    for size in [(50, 60), (30, 77), (100, 41), (7, 7), (480, 640)]:
        found = _view(resize, *(jnp.asarray(side, jnp.int32) for side in size))
        assert tuple(map(int, found)) == resized_size(size, 48, 64)
    task = detector().task
    task = dataclasses.replace(task, views=(InstanceView(resize),), buckets=((48, 64),))
    assert sizes_of(task, None, "uint8").buckets == ((48, 64), (64, 64))
    assert sizes_of(task, (100, 41), "uint8").view == (64, 26)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny.Config(workdir=tmp_path_factory.mktemp("export") / "run")
    train(tiny.build(config), config, experiment_file=tiny.__file__)
    return config.workdir


def test_a_script_without_segjax_runs_the_file(run, tmp_path, capsys):
    output = tmp_path / "model.stablehlo"
    main(["export", str(run), "--output", str(output)])
    shown = capsys.readouterr().out
    assert str(output) in shown
    assert "images of any size, float32; cpu, cuda, tpu" in shown
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["inputs"]["images"]["shape"] == ["any", "any", "any", 1]
    assert facts["classes"] == ["ground", "square"]
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["model"]["step"] in (3, 6)
    assert facts["again"].endswith(facts["command"])
    import segjax

    images = np.stack([tiny.Squares(2)[index]["image"][:11] for index in range(2)])
    np.save(tmp_path / "images.npy", images)
    blocked = "import sys; sys.modules['segjax'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + readme_code("Export")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    trained = segjax.load_run(run)
    expected = np.stack([trained.predict(image)["labels"] for image in images])
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), expected)


def test_a_file_that_jax_refuses_names_the_command_that_makes_it_again(tmp_path):
    path = tmp_path / "model.stablehlo"
    path.write_bytes(b"of another version")
    again = "made by jax 0.1; export again with: segjax export runs/a --output model.stablehlo"
    path.with_suffix(".json").write_text(json.dumps({"again": again}))
    with pytest.raises(ValueError, match=f"jax {jax.__version__} refuses this file .*{again}"):
        load_stablehlo(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="export the model again with segjax export"):
        load_stablehlo(path)


def test_what_cannot_be_exported_is_refused_with_the_reason():
    model, found = unet(), detector()
    refine = partial(np.multiply, 1)
    cases = [
        (dataclasses.replace(model.task, refine=refine), "prediction.refine=false"),
        (dataclasses.replace(model.task, preprocess=dict), "the preprocessing dict|type has no"),
        (dataclasses.replace(model.task, covering=None), "the covering NoneType has no form"),
        (dataclasses.replace(found.task, views=2 * found.task.views), "merges 2 views"),
        (type("Own", (SemanticTask,), {})(**vars(model.task)), r"a task of your own \(Own\)"),
    ]
    for task, message in cases:
        with pytest.raises(ValueError, match=message):
            image_function(dataclasses.replace(model, task=task))
    with pytest.raises(ValueError, match="--dtype float32: this model reads uint8"):
        image_function(model, dtype="float32")


def test_the_command_refuses_bad_values_before_it_loads(tmp_path, capsys):
    there = tmp_path / "a.stablehlo"
    there.touch()
    for arguments, message in [
        (["--output", "model.pt"], "expected a name that ends in .stablehlo"),
        (["--output", "a.stablehlo", "--size", "0", "4"], "--size 0 4: expected at least 1"),
        (["--output", str(there)], "exists already"),
    ]:
        with pytest.raises(SystemExit):
            main(["export", "no_run", *arguments])
        assert message in capsys.readouterr().err
