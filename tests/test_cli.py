"""The command line, on a run of a few steps: numbers, files, refusals and exit statuses."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segjax import pretrained
from segjax.cli import main
from segjax.commands.prediction_names import output_names
from segjax.data.images import match_channels, read_image
from segjax.training.checkpoint import Checkpoints
from segjax.training.experiment import load_experiment, load_module
from segjax.training.logging import read_metrics
from segjax.training.loop import train
from segjax.training.parallel import DataParallel
from segjax.training.state import TrainState
from tests.data.official_layouts import write_chasedb1
from tests.fixtures.reference_weights import reference_state
from tests.pretrained.source_shapes import source_shapes
from tests.training import tiny

# Of the larger negative log-likelihood, the checkpoint early in the run is the best.
EXPERIMENT = """
import dataclasses
import numpy as np
from segjax.data.instances import label_components
from tests.training import tiny
from tests.training.tiny import Config

def decode(probabilities):
    return {"instances": label_components(probabilities.argmax(axis=-1) == 1)}

def build(config):
    experiment = tiny.build(config)
    task = dataclasses.replace(experiment.task, decode=decode)
    return dataclasses.replace(experiment, task=task, best_metric="negative_log_likelihood")
"""


@pytest.fixture(autouse=True)
def same_flags(monkeypatch):
    """Commands set XLA's flags for their process, which here is that of all tests."""
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with evaluations at steps 3 and 6 and checkpoints of 3 (the best), 4 and 6."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "instances.py").write_text(EXPERIMENT)
    module = load_module(folder / "instances.py")
    config = module.Config(workdir=folder / "run", norm="batch")
    settings = dataclasses.replace(config.train, ema_decay=0.5)
    config = dataclasses.replace(config, train=settings)
    train(module.build(config), config, experiment_file=module.__file__)
    return config.workdir


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, as it would lie there if killed before its last evaluation."""
    copy = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(copy / "evaluation")
    shutil.rmtree(copy / "predictions")
    return copy


@pytest.fixture
def images(tmp_path):
    """8-bit, 16-bit, RGB and a stack of two sizes, and what the network should see of them."""
    folder = tmp_path / "images"
    folder.mkdir()
    grey = [tiny.Squares(5, 300)[i]["image"].astype(np.uint8) for i in range(5)]
    wide = np.tile(grey[3], (1, 2, 1))[:, :27]
    Image.fromarray(grey[0][..., 0]).save(folder / "eight.png")
    Image.fromarray(grey[1][..., 0] * np.uint16(250)).save(folder / "sixteen.tif")
    Image.fromarray(np.repeat(grey[2], 3, axis=2)).save(folder / "colour.png")
    first, second = Image.fromarray(wide[..., 0]), Image.fromarray(grey[4][..., 0])
    first.save(folder / "stack.tif", save_all=True, append_images=[second])
    return folder, {
        "eight": grey[0],
        "sixteen": grey[1] * np.uint16(250),
        "colour": grey[2],
        "stack_page0": wide,
        "stack_page1": grey[4],
    }


def fails(arguments, capsys, *, status=2):
    """Runs a command that should end with a status, and returns what it said."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert stop.value.code == status
    assert "Traceback" not in captured.err
    return captured.err if status == 2 else captured.out


def logged(run, step, split):
    """The scores that the run itself logged."""
    [line] = [
        line
        for line in read_metrics(run / "metrics.jsonl")
        if (line["step"], line["split"]) == (step, split)
    ]
    return {k: v for k, v in line.items() if k not in ("step", "split", "elapsed_seconds")}


def evaluated(run, split):
    """The step and the scores of a split as `segjax evaluate` left them."""
    values = json.loads((run / "evaluation" / f"{split}.json").read_text())
    scores = {k: v for k, v in values["metrics"].items() if isinstance(v, int | float)}
    return values["step"], scores


def label_files(folder):
    return sorted(path.name for path in (folder / "labels").iterdir())


def test_help_lists_the_commands_and_an_unknown_one_names_the_nearest(capsys):
    shown = fails(["--help"], capsys, status=0)
    assert all(f"• {command}" in shown for command in ("data", "evaluate", "predict", "report"))
    assert "did you mean 'evaluate'" in fails(["evalute", "run"], capsys)
    assert "did you mean 'prepare'" in fails(["data", "prepair"], capsys)
    assert "--checkpoint" in fails(["evaluate", "run", "--chekpoint", "best"], capsys)
    assert "--output" in fails(["predict", "run", "image.png"], capsys)


def test_help_and_data_commands_import_neither_jax_nor_tensorflow(tmp_path):
    program = (
        "import sys; from segjax.cli import main\n"
        f"main(['data', 'list', '--data-dir', {str(tmp_path)!r}])\n"
        "print([name for name in ('jax', 'flax', 'tensorflow') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "isbi2012" in done.stdout


def test_evaluating_the_last_checkpoint_gives_the_numbers_that_the_run_logged(run, capsys):
    unfinished = run / "checkpoints" / "8.orbax-checkpoint-tmp"  # of a run that is going on
    unfinished.mkdir()
    main(["evaluate", str(run), "--checkpoint", "last"])
    shown = capsys.readouterr()
    for split in ("validation", "test"):
        assert evaluated(run, split) == (6, logged(run, 6, split))
        assert f"{logged(run, 6, split)['mean_iou']:.4f}" in shown.out
    assert unfinished.is_dir()
    assert "negative log likelihood" in (run / "report.html").read_text()
    assert list((run / "predictions").glob("test_*.png"))


def test_evaluating_the_best_checkpoint_gives_the_numbers_of_its_step(run, capsys):
    assert logged(run, 3, "validation") != logged(run, 6, "validation")
    main(["evaluate", str(run), "--split", "validation"])
    assert evaluated(run, "validation") == (3, logged(run, 3, "validation"))
    assert not (run / "evaluation" / "test.json").exists()
    assert "step 3 (best negative_log_likelihood on validation" in capsys.readouterr().out


def test_predictions_are_those_of_the_task_at_the_size_of_the_images(
    run, images, tmp_path, capsys, monkeypatch
):
    def no_data(*_, **__):
        raise FileNotFoundError("prediction needs no data set")

    monkeypatch.setattr(tiny, "Squares", no_data)
    folder, expected = images
    before = sorted(run.rglob("*"))
    main(["predict", str(run), str(folder), "--output", str(tmp_path / "out")])
    assert sorted(run.rglob("*")) == before
    assert label_files(tmp_path / "out") == sorted(f"{name}.png" for name in expected)
    experiment, _ = load_experiment(run)
    parallel = DataParallel()
    predict = parallel.predict_step(experiment.task.predict)
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        variables = TrainState(**checkpoints.read(3, parallel.replicated)).variables
    values = set()
    for name, image in expected.items():
        tiles = experiment.task.inputs({"image": image})
        batches = ({"image": np.stack([tile["image"]] * 4)} for tile in tiles)
        outputs = (predict(variables, batch)()["probabilities"][0] for batch in batches)
        prediction = experiment.task.merge(
            {"image": image}, ({"probabilities": output} for output in outputs)
        )
        for kind in ("labels", "instances"):
            written = read_image(tmp_path / "out" / kind / f"{name}.png")[..., 0]
            np.testing.assert_array_equal(written, prediction[kind])
        overlay = read_image(tmp_path / "out" / "overlays" / f"{name}.png")
        assert overlay.shape == (*image.shape[:2], 3)
        values |= set(np.unique(prediction["labels"]))
    assert values == {0, 1}
    shown = capsys.readouterr().out
    assert "converted to grey for the model: 1 of 4 files" in shown
    assert "was trained on images of float32 with values 0 to 1" in shown
    assert "; 4 of 4 are uint8, such as" in shown
    assert "0 ground, 1 square" in shown


def test_predictions_replace_nothing_unless_asked_to(run, images, tmp_path, capsys):
    image, output = images[0] / "eight.png", tmp_path / "out"
    main(["predict", str(run), str(image), "--output", str(output)])
    (output / "labels" / "eight.png").write_text("mine")
    message = fails(["predict", run, image, "--output", output], capsys)
    assert str(output / "labels" / "eight.png") in message
    assert "--overwrite" in message
    assert (output / "labels" / "eight.png").read_text() == "mine"
    main(["predict", str(run), str(image), "--output", str(output), "--overwrite"])
    labels = read_image(output / "labels" / "eight.png")
    own = shutil.copytree(output, tmp_path / "own")
    arguments = ["predict", run, own / "labels", "--output", own, "--overwrite"]
    assert "replace the images themselves" in fails(arguments, capsys)
    np.testing.assert_array_equal(read_image(own / "labels" / "eight.png"), labels)


@pytest.fixture
def weights(tmp_path):
    """A file of the weights of an eighth of MobileNetV2, for three classes."""
    hints = {
        "MobilenetV2/expanded_conv_16/project/weights": (1, 1, 120, 40),
        "MobilenetV2/expanded_conv_1/project/weights": (1, 1, 12, 3),
        "logits/semantic/weights": (1, 1, 256, 3),
    }
    shapes = source_shapes("tf/deeplabv3_mobilenetv2", hints)
    np.savez(tmp_path / "weights.npz", **reference_state(shapes))
    return tmp_path / "weights.npz"


def test_weights_trained_elsewhere_label_photographs(weights, images, tmp_path, capsys):
    folder, expected = images
    output, name = tmp_path / "out", "tf/deeplabv3_mobilenetv2"
    photos = [folder / "colour.png", folder / "eight.png"]
    arguments = ["predict", name, *photos, "--weights", weights, "--output", output]
    main([str(argument) for argument in arguments])
    converted = pretrained.load(name, weights)
    for stem in ("colour", "eight"):
        written = read_image(output / "labels" / f"{stem}.png")[..., 0]
        photo = match_channels(expected[stem], 3)
        np.testing.assert_array_equal(written, converted.predict(photo)["labels"])
        picture = read_image(output / "overlays" / f"{stem}.png")
        assert picture.shape[0] > written.shape[0]  # the legend
    shown = capsys.readouterr().out
    assert f"predicting with {name} from {weights}" in shown
    assert "0 class 0, 1 class 1, 2 class 2" in shown
    assert "converted to RGB for the model: 1 of 2 files" in shown


def test_mistakes_about_weights_are_named_before_anything_is_written(
    weights, images, tmp_path, capsys
):
    folder, _ = images
    (tmp_path / "cut.npz").write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "other.npz").write_bytes((folder / "eight.png").read_bytes())
    np.savez(tmp_path / "backbone.npz", **dict.fromkeys(["conv1.weight"], np.zeros(3)))
    name, trunk = "tf/deeplabv3_mobilenetv2", "tf/mobilenet_v2"
    with np.load(weights) as arrays:
        of_trunk = {key: array for key, array in arrays.items() if key.startswith("Mobilenet")}
    np.savez(tmp_path / "trunk.npz", **of_trunk)
    photo, sixteen = folder / "colour.png", folder / "sixteen.tif"
    for arguments, named in (
        (["tf/deeplabv3_mobilenet", photo, "--weights", weights], f"did you mean '{name}'"),
        ([name, photo, "--weights", tmp_path / "no.npz"], "no.npz: no such file"),
        ([name, photo, "--weights", tmp_path / "cut.npz"], "cut.npz: damaged or not an archive"),
        ([name, photo, "--weights", tmp_path / "other.npz"], "other.npz: damaged or not"),
        ([name, photo, "--weights", tmp_path / "backbone.npz"], "backbone.npz: the weights do not"),
        ([trunk, photo, "--weights", tmp_path / "trunk.npz"], "backbone without a classifier"),
        ([name, sixteen, "--weights", weights], "sixteen.tif has 16 bits"),
        (
            [name, photo, "--weights", weights, "--checkpoint", "last"],
            "--checkpoint is for a run",
        ),
        ([name, photo], "its file is not on this machine"),
    ):
        message = fails(["predict", *arguments, "--output", tmp_path / "out"], capsys)
        assert named in message, arguments
        assert message.startswith("error: "), arguments
    assert not (tmp_path / "out").exists()


def test_outputs_are_named_after_the_images_and_never_alike(tmp_path):
    def names(*paths, pages=1):
        return output_names([tmp_path / path for path in paths], [pages] * len(paths))

    assert names("a.png", "b.TIF") == [("a",), ("b",)]
    assert names("a.png", "a.jpg", "b.png") == [("a_png",), ("a_jpg",), ("b_png",)]
    assert names("A.png", "a.tif") == [("A_png",), ("a_tif",)]
    assert names("01/t0.tif", "02/t0.tif") == [("01_t0",), ("02_t0",)]
    assert names("x/01/t0.tif", "y/01/t0.tif") == [("x_01_t0",), ("y_01_t0",)]
    assert names("s.tif", pages=11)[0][::10] == ("s_page00", "s_page10")
    paths = [tmp_path / "s.tif", tmp_path / "s_page0.png"]
    assert output_names(paths, [2, 1]) == [("s_tif_page0", "s_tif_page1"), ("s_page0_png",)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_channels_are_matched_as_luma_and_grey_comes_back(dtype):
    rgb = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (9, 8, 3), dtype, endpoint=True)
    grey = match_channels(rgb, 1)
    assert grey.dtype == dtype
    rounding = 0.5 + np.iinfo(dtype).max * 2**-15  # OpenCV's weights have 15 bits
    np.testing.assert_allclose(grey[..., 0], rgb @ [0.299, 0.587, 0.114], rtol=0, atol=rounding)
    assert match_channels(grey, 3).shape == (9, 8, 3)
    np.testing.assert_array_equal(match_channels(match_channels(grey, 3), 1), grey)
    assert match_channels(rgb, 3) is rgb


def test_mistakes_are_named_before_anything_is_written(run, images, tmp_path, capsys):
    folder, _ = images
    output, empty, cut = tmp_path / "out", tmp_path / "empty", tmp_path / "cut.png"
    empty.mkdir()
    cut.write_bytes((folder / "eight.png").read_bytes()[:80])
    predict = ["--output", output]
    for arguments, named in (
        (["predict", run, empty, *predict], "empty: expected images"),
        (["predict", run, *predict], "no images"),
        (["predict", run, folder / "no.png", *predict], "no.png"),
        (["predict", run, folder, cut, *predict], "cut.png: damaged"),
        (["predict", run, folder, "--output", cut], "cut.png"),
        (["predict", empty, folder, *predict], "empty is not a run directory"),
        (["predict", "torchvision/deeplabv3", folder, *predict], "--workdir of a training"),
        (["predict", run, folder, *predict, "--checkpoint", "5"], "it has steps 3, 4, 6"),
        (["predict", run, folder, *predict, "--checkpoint", "lates"], "best, last or a step"),
        (["evaluate", run, "--split", "valid"], "--split valid: the experiment"),
        (["evaluate", run, "--batch-size", "0"], "--batch-size 0"),
        (["evaluate", empty], "empty is not a run directory"),
        (["data", "check", "isbi2013"], "isbi2012"),
        (["data", "check", "isbi2012", "--data-dir", empty], "data prepare isbi2012"),
        (["data", "prepare", "drive", "--data-dir", empty], "--source"),
        (["report"], "no run directory"),
        (["report", tmp_path / "nowhere"], "nowhere"),
        (["report", run, "--output", output], ".html"),
    ):
        message = fails(arguments, capsys)
        assert named in message, arguments
        assert message.startswith("error: "), arguments
        assert message.count("\n") == 1, arguments
    assert not output.exists()
    assert not list(run.glob("evaluation/*"))


def test_a_run_without_a_checkpoint_or_its_experiment_says_so(run, capsys):
    shutil.move(run / "checkpoints", run / "moved")
    assert "no checkpoint yet" in fails(["evaluate", run], capsys)
    config = json.loads((run / "config.json").read_text()) | {"experiment": "/gone/away.py"}
    (run / "config.json").write_text(json.dumps(config))
    assert "/gone/away.py" in fails(["evaluate", run], capsys)


def test_data_sets_are_checked_prepared_and_listed(tmp_path, capsys):
    source, data = tmp_path / "source", str(tmp_path / "data")
    source.mkdir()
    write_chasedb1(source)
    main(["data", "check", "chasedb1", "--source", str(source), "--data-dir", data])
    shown = capsys.readouterr().out
    assert "problems: none" in shown
    sheet = Path(data) / "contact_sheets" / "chasedb1.png"
    assert str(sheet) in shown
    assert cv2.imread(str(sheet)) is not None

    main(["data", "prepare", "chasedb1", "--source", str(source), "--data-dir", data])
    capsys.readouterr()
    main(["data", "list", "--data-dir", data])
    lines = [line for line in capsys.readouterr().out.splitlines() if "train (20)" in line]
    assert [line.split()[0] for line in lines] == ["chasedb1"]
    picture = tmp_path / "sheet.png"
    main(["data", "check", "chasedb1", "--data-dir", data, "--contact-sheet", str(picture)])
    assert picture.is_file()

    (source / "Image_03L_1stHO.png").unlink()
    arguments = ["data", "check", "chasedb1", "--source", source, "--data-dir", data]
    shown = fails(arguments, capsys, status=1)
    assert "Image_03L_1stHO.png" in shown


def test_reports_are_written_of_one_run_and_of_several(run, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["report", str(run)])
    assert "<h1>run</h1>" in (run / "report.html").read_text()
    main(["report", str(run), str(trained)])
    assert "2 runs compared" in (tmp_path / "report.html").read_text()
    main(["report", str(run), "--output", str(tmp_path / "new" / "own.html")])
    assert (tmp_path / "new" / "own.html").is_file()
    assert str(tmp_path / "new" / "own.html") in capsys.readouterr().out
