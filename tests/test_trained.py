"""Runs loaded as models, and predictions of whole sources."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import segjax
from segjax.cli import main
from segjax.coco import run_lengths as rle
from segjax.data.images import match_channels, read_image
from segjax.inference.tiling import Tiling
from segjax.pretrained import Pretrained
from segjax.training.checkpoint import Checkpoints
from segjax.training.configuration import parse
from segjax.training.experiment import load_module
from segjax.training.run_directory import open_run
from segjax.training.state import TrainState
from tests.models.mask_rcnn_tiny import SIDE, variables_of
from tests.readme import readme_code
from tests.training import tiny
from tests.variables import random_variables

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
UNET = [
    *("--network.features", "2", "--network.depth", "1", "--network.tile", "64"),
    *("--prediction.min-cell-size", "1"),
]
DEEPLAB = [
    *("--network.backbone", "resnet18", "--network.multi-grid", "None"),
    *("--network.width-multiplier", "0.25", "--network.aspp-features", "16"),
    *("--prediction.size", "49", "65"),
]
MASK_RCNN = f"""
import dataclasses
from segjax.data.augmentation.instance import ResizeShortSide
from segjax.pretrained.instance_tasks import coco_task
from segjax.pretrained.preprocess import IMAGENET
from segjax.tasks.instance import InstanceView
from segjax.training.configuration import ExperimentConfig as Config
from segjax.training.experiment import Experiment
from tests.models.mask_rcnn_tiny import CLASSES, tiny_model

def build(config):
    task = coco_task(tiny_model(), classes=CLASSES, preprocess=IMAGENET, paste_rule="detectron2")
    views = (InstanceView(ResizeShortSide((48,), {SIDE})),)
    task = dataclasses.replace(task, views=views, buckets=(({SIDE}, {SIDE}),))
    splits = {{"val": lambda: []}}
    return Experiment(task, lambda: [], (), splits, best_metric="mask_AP")
"""


@pytest.fixture(autouse=True)
def same_flags(monkeypatch):
    """Commands set XLA's flags for their process, which here is that of all tests."""
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


def save_run(workdir, file, arguments=(), *, scores=None):
    """Writes a run with a checkpoint of random weights for each step of {step: score or None}."""
    module = load_module(file)
    variants = getattr(module, "VARIANTS", {})
    config = parse(module.Config, ["--workdir", str(workdir), *arguments], variants=variants)
    open_run(config, file)
    experiment = module.build(config)
    task = experiment.task
    if hasattr(task, "covering"):
        size = task.covering.input_size if isinstance(task.covering, Tiling) else (65, 65)
        picture = {"image": blobs(9, channels=task.channels, size=size)}
        image = task.preprocess(picture, None)["image"][None]
        variables = random_variables(task.model, image)
        # Without their means, the logits of all classes compete, and labels vary over an image.
        logits = jax.jit(task.model.apply)(variables, image)["logits"]
        variables["params"]["logits"]["bias"] -= logits.mean(axis=(0, 1, 2))
    else:
        variables = variables_of(task.model)
    name = experiment.best_metric
    with Checkpoints(workdir / "checkpoints", keep=9, best_metric=name) as checkpoints:
        for step, score in (scores or {5: None}).items():
            state = TrainState(
                step=jnp.int32(step),
                params=jax.tree.map(lambda x, factor=step / 5: factor * x, variables["params"]),
                batch_stats=variables.get("batch_stats", {}),
                opt_state={},
            )
            checkpoints.save(state, data={})
            if score is not None:
                checkpoints.add_metrics(step, {name: score})
    return workdir


def blobs(seed, *, channels=3, dtype=np.uint8, size=(50, 70)):
    """A smooth random picture."""
    rng = np.random.default_rng(seed)
    bands = [Image.fromarray(rng.integers(0, 256, (5, 7), np.uint8)) for _ in range(channels)]
    picture = np.stack([np.asarray(band.resize(size[::-1])) for band in bands], axis=-1)
    return picture * dtype(250) if dtype == np.uint16 else picture


def predict_files(run, images, folder):
    """Writes images to files and lets `segjax predict` write its own."""
    (folder / "images").mkdir()
    for name, image in images.items():
        pixels = image[..., 0] if image.shape[2] == 1 else image
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    main(["predict", str(run), str(folder / "images"), "--output", str(folder / "out")])
    return folder / "out"


@pytest.mark.parametrize(
    ("file", "arguments", "kinds", "sixteen_bits"),
    [
        ("unet/dic_hela.py", UNET, ("labels", "instances"), True),
        ("deeplab/v3_voc2012.py", DEEPLAB, ("labels",), False),
    ],
)
def test_a_loaded_semantic_run_predicts_what_the_command_writes(
    file, arguments, kinds, sixteen_bits, tmp_path
):
    path = save_run(tmp_path / "run", EXPERIMENTS / file, arguments)
    images = {"colour": blobs(0), "grey": blobs(1, channels=1)}
    images["third"] = blobs(2, channels=1, dtype=np.uint16 if sixteen_bits else np.uint8)
    output = predict_files(path, images, tmp_path)
    run = segjax.load_run(path)
    assert isinstance(run, Pretrained)
    assert run.classes == run.experiment.task.classes
    seen = set()
    for name, image in images.items():
        prediction = run.predict(image)
        for kind in kinds:
            written = read_image(output / kind / f"{name}.png")[..., 0]
            np.testing.assert_array_equal(written, prediction[kind])
        seen |= {*np.unique(prediction["labels"])}
    assert len(seen) > 1
    flat = run.predict(images["grey"][..., 0])["labels"]
    np.testing.assert_array_equal(flat, run.predict(images["grey"])["labels"])
    outputs = run.model.apply(run.variables, jnp.zeros((1, 188, 188, run.task.channels)))
    assert outputs["logits"].shape[-1] == len(run.classes)


def test_a_loaded_instance_run_finds_the_objects_that_the_command_writes(tmp_path):
    (tmp_path / "tiny_detector.py").write_text(MASK_RCNN)
    path = save_run(tmp_path / "run", tmp_path / "tiny_detector.py")
    images = {"colour": blobs(0), "grey": blobs(1, channels=1)}
    output = predict_files(path, images, tmp_path)
    results, content = (
        json.loads((output / f"{name}.json").read_text()) for name in ("detections", "images")
    )
    run = segjax.load_run(str(path))
    for image, name in zip(content["images"], images, strict=True):
        written = [x for x in results if x["image_id"] == image["id"]]
        found = run.predict(images[name])
        assert len(written) == len(found["scores"]) > 0
        for place, entry in enumerate(written):
            x_min, y_min, x_max, y_max = found["boxes"][place]
            box = [x_min, y_min, x_max - x_min, y_max - y_min]
            np.testing.assert_allclose(entry["bbox"], box, atol=1e-3)
            np.testing.assert_allclose(entry["score"], found["scores"][place], atol=1e-5)
            assert entry["category_id"] == found["classes"][place]
            masks = [rle.decode(mask) for mask in (entry["segmentation"], found["masks"][place])]
            assert (masks[0] != masks[1]).mean() < 1e-3


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """Checkpoints of three steps, of which the first is the best."""
    folder = tmp_path_factory.mktemp("runs") / "squares"
    return save_run(folder, Path(tiny.__file__), scores={5: 0.9, 10: 0.1, 20: None})


def test_a_checkpoint_is_the_best_the_last_or_that_of_a_step(tiny_run):
    before = sorted(tiny_run.rglob("*"))
    best = segjax.load_run(tiny_run)
    assert best.step == 5
    assert (
        best.description
        == f"{tiny_run}, checkpoint of step 5 (best mean_iou on validation: 0.9000)"
    )
    kernel = best.variables["params"]["Conv_0"]["kernel"]
    for checkpoint, step in (("last", 20), ("latest", 20), (10, 10), ("10", 10)):
        run = segjax.load_run(tiny_run, checkpoint)
        assert run.step == step
        np.testing.assert_allclose(
            run.variables["params"]["Conv_0"]["kernel"], step / 5 * kernel, rtol=1e-6
        )
    assert sorted(tiny_run.rglob("*")) == before


def test_the_readmes_lines_load_a_run_and_predict_an_image(tiny_run, tmp_path, monkeypatch):
    shutil.copytree(tiny_run, tmp_path / "runs" / "isbi2012")
    monkeypatch.chdir(tmp_path)
    names = {"segjax": segjax, "image": blobs(0)}
    exec(readme_code("A run in Python"), names)
    assert names["run"].step == 5
    assert names["labels"].shape == (50, 70)


def test_settings_of_prediction_may_differ_from_the_runs(tmp_path):
    path = save_run(tmp_path / "run", EXPERIMENTS / "deeplab" / "v3_voc2012.py", DEEPLAB)
    assert segjax.load_run(path).task.evaluation_model is None
    settings = {"prediction.output_stride": 8, "prediction.scales": [0.5, 1.0]}
    run = segjax.load_run(path, settings=settings)
    assert run.task.evaluation_model.output_stride == 8
    assert [view.scale for view in run.task.views] == [0.5, 1.0]
    assert run.config.prediction.output_stride == 8
    with pytest.raises(ValueError, match="unknown key 'stride'"):
        segjax.load_run(path, settings={"prediction.stride": 8})


def test_what_cannot_be_loaded_is_named_in_one_line_with_what_there_is(tiny_run, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    without = save_run(tmp_path / "new", Path(tiny.__file__), scores={5: None})
    (without / "checkpoints").rename(tmp_path / "moved")
    runs, kind = tiny_run.parent, r"is not a run directory \(the --workdir of a training\)"
    for error, path, checkpoint, message in (
        (FileNotFoundError, runs / "square", "best", rf"square {kind}: .*mean '{tiny_run}'\?"),
        (FileNotFoundError, runs / "v3", "best", rf"v3 {kind}: no such .*runs beside it: squares"),
        (FileNotFoundError, runs, "best", rf"{kind}: it has no config.json; .*the runs squares$"),
        (FileNotFoundError, empty, "best", rf"empty {kind}: .*it is empty"),
        (FileNotFoundError, tiny_run / "config.json", "best", rf"{kind}: it is a file"),
        (FileNotFoundError, without, "best", "new has no checkpoint yet; it holds config.json, en"),
        (ValueError, tiny_run, 7, "squares has no checkpoint of step 7; it has steps 5, 10, 20"),
        (ValueError, tiny_run, "newest", "newest: expected best, last or a step; .* 5, 10, 20"),
    ):
        with pytest.raises(error, match=message) as caught:
            segjax.load_run(path, checkpoint)
        assert "\n" not in str(caught.value)


class Photos:
    """Grey pictures of several sizes; like a data set, it has no last index of its own."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        image = match_channels(blobs(index), 1)[: 20 + 10 * (index % 3)]
        return {"id": f"photo_{index}", "image": image}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_all_examples_of_a_source_are_predicted_as_one_by_one_and_in_order(tiny_run, batch_size):
    run = segjax.load_run(tiny_run)
    found = list(segjax.predict_all(run, Photos(), batch_size=batch_size))
    assert [example["id"] for example, _ in found] == [f"photo_{i}" for i in range(5)]
    for example, prediction in found:
        expected = run.predict(example["image"])
        assert expected.keys() == prediction.keys()
        assert prediction["labels"].shape == example["image"].shape[:2]
        np.testing.assert_allclose(
            prediction["probabilities"], expected["probabilities"], atol=1e-5
        )


def test_examples_of_an_iterator_are_read_as_they_are_needed(tiny_run):
    read = []

    def examples():
        for index in range(100):
            read.append(index)
            yield Photos()[0] | {"id": index}

    predictions = segjax.predict_all(segjax.load_run(tiny_run), examples())
    assert [next(predictions)[0]["id"] for _ in range(3)] == [0, 1, 2]
    assert len(read) < 10


def test_predictions_can_be_exported_and_read_back(tiny_run):
    pytest.importorskip("flatbuffers")
    run = segjax.load_run(tiny_run)
    batch = {"image": np.random.default_rng(0).normal(size=(2, 16, 16, 1)).astype(np.float32)}
    exported = jax.export.export(jax.jit(run.segmenter.predict))(run.variables, batch)
    found = jax.export.deserialize(exported.serialize()).call(run.variables, batch)
    expected = jax.jit(run.segmenter.predict)(run.variables, batch)
    np.testing.assert_array_equal(found["probabilities"], expected["probabilities"])


def test_a_batch_size_below_one_is_refused_before_anything_is_read(tiny_run):
    with pytest.raises(ValueError, match="batch_size=0; expected at least 1"):
        segjax.predict_all(segjax.load_run(tiny_run), Photos(), batch_size=0)
