"""Published folders predict as their runs do, anywhere, and say what they are."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import segjax
from segjax.cli import main
from segjax.coco.run_lengths import decode
from segjax.data.instance_masks import crop_mask, tight_boxes
from segjax.export.stablehlo import load_stablehlo
from segjax.pretrained.published import FACTS, WEIGHTS
from segjax.recipes.initial import InitialConfig
from segjax.recipes.unet_networks import UNetConfig
from segjax.weights.known import find
from tests.test_trained import EXPERIMENTS, MASK_RCNN, blobs, same_flags, save_run  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
UNET = ["--network.features", "2", "--network.depth", "1", "--network.tile", "32"]
# The experiments on folders with random weights: families, masks and flags.
RUNS = {
    "unet": ("unet", "classes", UNET),
    "cells": ("unet", "objects", [*UNET, "--holds", "instances"]),
    "v3plus": (
        "deeplab",
        "classes",
        [
            *("--variant", "v3plus", "--network.backbone", "resnet18"),
            *("--network.width-multiplier", "0.05", "--network.aspp-features", "4"),
            *("--network.decoder-features", "4", "--prediction.size", "49", "65"),
        ],
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three pictures of two squares with masks of classes and of numbered objects."""
    folder = tmp_path_factory.mktemp("own")
    for kind in ("images", "classes", "objects"):
        (folder / kind).mkdir()
    for number in range(3):
        objects = np.zeros((48, 64), np.uint8)
        objects[4 + number : 20, 8:24], objects[24:44, 30 + number : 50] = 100, 200
        image = blobs(number, channels=1, size=objects.shape)[..., 0] // 4 + objects // 2
        Image.fromarray(image).save(folder / "images" / f"n{number}.png")
        Image.fromarray(objects).save(folder / "objects" / f"n{number}.png")
        Image.fromarray(255 * (objects > 0).astype(np.uint8)).save(
            folder / "classes" / f"n{number}.png"
        )
    return folder


@pytest.fixture(scope="module")
def runs(files, tmp_path_factory):
    """Makes a run of `RUNS` on first use."""
    made = {}

    def make(name):
        if name not in made:
            family, masks, flags = RUNS[name]
            arguments = ["--images", str(files / "images"), "--masks", str(files / masks)]
            made[name] = save_run(
                tmp_path_factory.mktemp("runs") / name,
                EXPERIMENTS / family / "folder.py",
                [*arguments, *flags],
                scores={5: 0.9, 10: 0.1},
            )
        return made[name]

    return make


def publish(run, folder, *flags):
    main(["publish", str(run), "--output", str(folder), *flags])
    return folder


def evaluate(model, files, masks, output):
    own = ["--images", str(files / "images"), "--masks", str(files / masks)]
    main(["evaluate", str(model), *own, "--output", str(output), "--batch-size", "1"])
    return json.loads((output / "evaluation" / "images_images.json").read_text())["metrics"]


def without_nan(metrics):
    return {name: value for name, value in metrics.items() if value != "NaN"}


@pytest.mark.parametrize("name", RUNS)
def test_a_published_folder_scores_as_its_run_did_once_that_is_gone(
    name, runs, files, tmp_path, monkeypatch
):
    run = shutil.copytree(runs(name), tmp_path / "run")
    masks = RUNS[name][1]
    expected = evaluate(run, files, masks, tmp_path / "before")
    publish(run, tmp_path / "elsewhere" / "model")
    shutil.rmtree(run)
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = evaluate("model", files, masks, tmp_path / "after")
    assert found.keys() == expected.keys()
    assert len(without_nan(found)) > 5
    for metric, value in without_nan(found).items():
        np.testing.assert_allclose(value, expected[metric], rtol=0, atol=1e-6, err_msg=metric)
    loaded = segjax.load_run("model"), segjax.pretrained.load("model")
    jax.tree.map(np.testing.assert_array_equal, *(model.variables for model in loaded))
    assert loaded[0].classes == loaded[1].classes


def test_a_published_detector_finds_and_scores_the_same_objects(tmp_path):
    (tmp_path / "tiny_detector.py").write_text(MASK_RCNN)
    run = save_run(tmp_path / "run", tmp_path / "tiny_detector.py")
    before = segjax.load_run(run)
    images = [blobs(0), blobs(1)]
    found = [before.predict(image) for image in images]
    # Some of the objects found count as the truth, so that the scores are neither 0 nor 1.
    examples = []
    for number, (image, prediction) in enumerate(zip(images, found, strict=True)):
        masks = tuple(crop_mask(decode(mask).astype(bool)) for mask in prediction["masks"][::2])
        masks = tuple(mask for mask in masks if mask.area)
        examples.append(
            {"id": f"photo_{number}", "image": image, "masks": masks, "boxes": tight_boxes(masks)}
            | {"classes": np.resize(prediction["classes"], len(masks)).astype(np.int32)}
            | {"crowd": np.zeros(len(masks), bool)}
            | {"areas": np.array([mask.area for mask in masks], np.float32)}
        )
    expected = scores_of(before, examples)
    assert 0 < expected["mask_AP"] < 1
    publish(run, tmp_path / "model")
    shutil.rmtree(run)
    after = segjax.load_run(tmp_path / "model")
    found_after = scores_of(after, examples)
    assert found_after.keys() == expected.keys()
    for metric, value in found_after.items():
        np.testing.assert_allclose(value, expected[metric], rtol=0, atol=1e-6, err_msg=metric)
    for image, one in zip(images, found, strict=True):
        other = after.predict(image)
        assert len(other["scores"]) > 0
        assert other["masks"] == one["masks"]
        for name in ("boxes", "scores", "classes"):
            np.testing.assert_array_equal(other[name], one[name])


def scores_of(model, examples):
    evaluator = model.task.evaluator()
    for example in examples:
        evaluator.update(example, model.predict(example["image"]))
    return evaluator.result()


def test_a_fresh_process_predicts_from_the_folder_without_the_experiment(
    runs, files, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    image = files / "images" / "n1.png"
    expected = segjax.load_run(runs("cells")).predict(np.array(Image.open(image)))
    publish(runs("cells"), Path("model"))
    # The folder has a module of its own, which nothing must run.
    for name in ("segjax_extra", "sitecustomize", "experiment"):
        (tmp_path / "model" / f"{name}.py").write_text("raise SystemExit('was run')")
    (tmp_path / "away").mkdir()
    (tmp_path / "model").rename(tmp_path / "away" / "renamed")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "segjax.cli", "predict", "renamed", str(image)),
            *("--output", "out"),
        ],
        cwd=tmp_path / "away",
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "predicting with renamed (published from cells, checkpoint of step 5)" in done.stdout
    for kind in ("labels", "instances"):
        written = np.array(Image.open(tmp_path / "away" / "out" / kind / "n1.png"))
        np.testing.assert_array_equal(written, expected[kind])


def test_the_card_and_the_files_say_what_the_run_recorded_and_name_no_place(runs, tmp_path, capsys):
    run = runs("unet")
    folder = publish(run, tmp_path / "without")
    assert "publish again" in capsys.readouterr().out
    assert "None were measured" in (folder / "README.md").read_text()
    main(["evaluate", str(run)])
    capsys.readouterr()
    folder = publish(run, tmp_path / "model", "--license", "CC-BY-4.0")
    out = capsys.readouterr().out
    assert f"published  {folder}" in out
    assert "not stated" not in out
    facts, card = json.loads((folder / FACTS).read_text()), (folder / "README.md").read_text()
    measured = json.loads((run / "evaluation" / "val.json").read_text())
    assert facts["scores"]["val"]["metrics"]["mean_iou"] == measured["metrics"]["mean_iou"]
    assert facts["scores"]["val"]["examples"] == len(measured["examples"])
    assert f"| mean_iou | {measured['metrics']['mean_iou']:.4f} |" in card
    assert facts["masks"] == {
        **{"holds": "classes", "values": ["0", "255"], "ignored": [], "class_masks": None}
    }
    assert re.match(r"---\nlibrary_name: segjax\n(.+\n)*license: cc-by-4.0\n(.+\n)*---\n", card)
    assert "| classes | 0 background, 1 foreground |" in card
    assert "(best mean_iou on val: 0.9000)" in card
    pictures = re.findall(r"!\[.*\]\((pictures/.+?)\)", card)
    assert 0 < len(pictures) == len({*pictures}) == len(list((folder / "pictures").iterdir()))
    for picture in pictures:
        assert (folder / picture).read_bytes() == (
            run / "predictions" / Path(picture).name
        ).read_bytes()
    for path in (folder / "README.md", folder / FACTS, folder / "training.json"):
        assert str(tmp_path.parent) not in path.read_text(), path
        assert str(ROOT) not in path.read_text(), path
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "model.safetensors", "pictures", "segjax.json", "training.json")
    ]


@pytest.mark.parametrize(
    ("license", "lines"),
    [
        ("MIT", ["license: mit"]),
        ("my own: ask me", ["license: other", 'license_name: "my-own-ask-me"']),
    ],
)
def test_a_licence_that_the_hub_does_not_know_is_another(license, lines, runs, tmp_path):
    folder = publish(runs("unet"), tmp_path / "model", "--license", license)
    front = (folder / "README.md").read_text().split("---\n")[1].splitlines()
    assert [line for line in front if line.startswith("license")] == lines
    assert segjax.load_run(folder).license == license


@pytest.mark.parametrize(("checkpoint", "step"), [("best", 5), ("last", 10), ("10", 10)])
def test_the_variables_are_those_that_evaluation_uses(checkpoint, step, runs, tmp_path):
    folder = publish(runs("unet"), tmp_path / "model", "--checkpoint", checkpoint)
    expected = segjax.load_run(runs("unet"), checkpoint)
    found = segjax.load_run(folder)
    assert found.step == expected.step == step
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
    assert (found.classes, found.dtypes) == (expected.classes, expected.dtypes)
    assert (found.orientation, found.eval_batch_size, found.matmul_precision) == (
        *(expected.orientation, expected.eval_batch_size, expected.matmul_precision),
    )
    with pytest.raises(AttributeError, match="has no experiment"):
        _ = found.experiment

    network = UNetConfig(features=2, depth=1, tile=32)
    random = jax.tree.map(lambda x: 0 * x, expected.variables)
    initial = InitialConfig(run=folder).initialize(random, network=network)
    jax.tree.map(np.testing.assert_array_equal, initial, expected.variables)


def test_settings_of_prediction_may_differ_and_others_stay(runs, files, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs("unet"), run)
    config = json.loads((run / "config.json").read_text())
    config["config"]["prediction"]["average_over"] = "seven"
    (run / "config.json").write_text(json.dumps(config))
    folder, image = publish(run, tmp_path / "model"), str(files / "images" / "n0.png")
    assert len(segjax.load_run(folder).task.views) == 7

    from segjax.commands.models import load_trained_run

    changed = load_trained_run(folder, "best", settings=["prediction.scales=[1,1.5]"])
    assert [view.scale for view in changed.task.views] == [1, 1.5]
    changed = load_trained_run(folder, "best", settings=["prediction.refine=true"])
    assert (len(changed.task.views), changed.task.refine is None) == (7, False)
    with pytest.raises(SystemExit):
        main(["predict", str(folder), image, "--output", str(tmp_path / "o"), "--set", "a.b=1"])


def test_a_published_folder_is_exported_as_its_run(runs, files, tmp_path):
    image = np.asarray(Image.open(files / "images" / "n0.png"))
    folder, output = publish(runs("unet"), tmp_path / "model"), tmp_path / "model.stablehlo"
    size = [str(side) for side in image.shape[:2]]
    main(["export", str(folder), "--output", str(output), "--size", *size])
    images = image.reshape(1, *image.shape[:2], -1)
    found = load_stablehlo(output).call(images)
    labels = segjax.load_run(folder).predict(images[0])["labels"]
    np.testing.assert_array_equal(found["labels"][0], labels)
    facts = json.loads(output.with_suffix(".json").read_text())
    assert facts["model"]["folder"] == str(folder)


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(each) for each in arguments])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def test_code_of_ones_own_is_refused_and_its_scores_are_left_out(tmp_path, capsys):
    own = EXPERIMENTS / "extending" / "attention_unet.py"
    flags = ["--network.features", "2", "--network.depth", "2", "--network.tile", "100"]
    run = save_run(tmp_path / "run", own, flags)
    message = refused(["publish", run, "--output", tmp_path / "model"], capsys)
    assert "task.model is AttentionUNet of attention_unet, which is not a part of segjax" in message
    assert "Share the run directory" in message
    assert not (tmp_path / "model").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_cannot_be_published_or_used_is_refused_in_one_line(runs, files, tmp_path, capsys):
    run, full, folder = runs("unet"), tmp_path / "full", tmp_path / "model"
    full.mkdir()
    (full / "a.txt").write_text("mine")
    assert "full exists already" in refused(["publish", run, "--output", full], capsys)
    assert [path.name for path in full.iterdir()] == ["a.txt"]
    assert "needs --output" in refused(["publish", run], capsys)
    assert "has no checkpoint of step 7" in refused(
        ["publish", run, "--output", folder, "--checkpoint", "7"], capsys
    )
    assert "--private is for --push" in refused(
        ["publish", run, "--output", folder, "--private"], capsys
    )
    assert "is not a run directory" in refused(
        ["publish", tmp_path / "none", "--output", folder], capsys
    )
    (tmp_path / "model").mkdir()  # an empty folder may be there
    publish(run, folder)
    capsys.readouterr()
    own = ["--images", files / "images", "--masks", files / "classes"]
    for arguments, message in (
        (["evaluate", folder], "is a published folder, which has no splits"),
        (["evaluate", folder, *own], "a published folder needs --output DIR"),
        (["crf", folder], "is a published folder, which has no splits"),
        (["publish", folder, "--output", tmp_path / "again"], "is a published folder"),
        (
            ["predict", folder, files / "images", "--output", full, "--checkpoint", "last"],
            "is a published folder, which has one checkpoint",
        ),
    ):
        assert message in refused(arguments, capsys)


def edited(folder, **changes):
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps(facts | changes))


def test_damaged_and_newer_folders_say_what_to_do(runs, tmp_path):
    good = publish(runs("unet"), tmp_path / "good")
    task = json.loads((good / FACTS).read_text())["task"]
    content = (good / WEIGHTS).read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for number, (change, message) in enumerate(
        [
            (lambda f: edited(f, format=2, segjax="9.0"), "format 2; .* use segjax 9.0 or newer"),
            (
                lambda f: edited(f, segjax="9.0", task=task | {"calm": 1}),
                r"SemanticTask has no field calm in segjax \S+; segjax 9.0 wrote the folder: use",
            ),
            (
                lambda f: edited(f, task={"class": "os.system"}),
                "task: os.system is no name of a network or a step of segjax",
            ),
            (lambda f: edited(f, task=task["model"]), "expected a task of segjax, found UNet"),
            (lambda f: edited(f, task=None), r"segjax.json is damaged: .*TypeError"),
            (lambda f: edited(f, images=None), r"segjax.json is damaged: .*TypeError"),
            (lambda f: (f / FACTS).write_text("{"), "segjax.json is damaged: .*JSONDecodeError"),
            (lambda f: (f / WEIGHTS).write_bytes(content[:-1]), "not the file that was published"),
            (lambda f: (f / WEIGHTS).write_bytes(pointer), "run `git lfs install` and"),
            (lambda f: (f / WEIGHTS).unlink(), "model.safetensors: no such file"),
        ]
    ):
        bad = shutil.copytree(good, tmp_path / f"bad{number}")
        change(bad)
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            segjax.load_run(bad)
        assert "\n" not in str(caught.value)
        assert f"bad{number}" in str(caught.value)


def test_masks_whose_classes_were_in_a_second_folder_need_one_again(runs, files, tmp_path, capsys):
    folder = publish(runs("unet"), tmp_path / "model")
    second = {"holds": "instances", "values": ["0", "1"], "ignored": [], "class_masks": "kinds"}
    edited(folder, masks=second)
    own = ["--images", files / "images", "--masks", files / "objects", "--output", tmp_path / "o"]
    capsys.readouterr()
    message = refused(["evaluate", folder, *own], capsys)
    assert "classes in a second folder, kinds; give that of these masks by --class-masks" in message


def test_a_failure_leaves_nothing_behind(runs, tmp_path, monkeypatch):
    def full_disk(*arguments):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("segjax.export.published.write_text", full_disk)
    with pytest.raises(SystemExit):
        publish(runs("unet"), tmp_path / "model")
    assert [*tmp_path.iterdir()] == []


def test_weights_of_another_package_are_published_with_their_publishers_facts(
    real_data, tmp_path, monkeypatch
):
    name, file = "tf/deeplabv3_mobilenetv2", "deeplabv3_mobilenetv2_dm05_voc.npz"
    path = real_data / "weights" / file
    if not path.is_file():
        pytest.skip(f"no {path}")
    main(["publish", name, "--weights", str(path), "--output", str(tmp_path / "own")])
    found, expected = segjax.load_run(tmp_path / "own"), segjax.pretrained.load(name, path)
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
    assert (found.classes, found.dtypes, found.step) == (expected.classes, expected.dtypes, None)
    assert found.license is None

    known = find(name)
    monkeypatch.setattr("segjax.commands.publish.find_weights", lambda *_, **__: path)
    main(["publish", name, "--output", str(tmp_path / "known")])
    card = (tmp_path / "known" / "README.md").read_text()
    assert segjax.load_run(tmp_path / "known").license == known.licence
    assert f"| address | {known.address} |" in card
    assert f"| published score | {known.score} |" in card
