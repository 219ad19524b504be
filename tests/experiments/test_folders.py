"""The experiments on folders of one's own: from files to predictions, without writing Python."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import segjax
from segjax.cli import main
from segjax.commands.launch import run
from segjax.training.configuration import differences, from_dict, parse, to_dict
from segjax.training.experiment import load_module
from segjax.training.logging import read_metrics
from tests.experiments.test_experiments import SHORT, SMALL_MASK_RCNN

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
SMALL = {
    "unet": ["--network.features", "2", "--network.depth", "1"],
    "deeplab": [
        *("--network.backbone", "vgg16", "--network.width-multiplier", "0.05"),
        *("--network.aspp-features", "4"),
    ],
    "mask_rcnn": SMALL_MASK_RCNN,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Ten grey pictures of two squares, with masks of classes and of numbered objects."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for kind in ("images", "classes", "objects"):
        (folder / kind).mkdir()
    for number in range(10):
        objects = np.zeros((64, 80), np.uint16)
        for place, (top, left) in enumerate(rng.integers(2, 40, (2, 2)), 1):
            objects[top : top + 20, left + 18 * place : left + 18 * place + 16] = place * 200
        image = (60 + 120 * (objects > 0) + rng.normal(0, 9, objects.shape)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"n{number}.png")
        white = (objects > 0).astype(np.uint8) * 255
        Image.fromarray(white).save(folder / "classes" / f"n{number}_mask.png")
        Image.fromarray(objects).save(folder / "objects" / f"n{number}.png")
    return folder


def command(family, folders, workdir, *, masks=None):
    masks = masks or ("objects" if family == "mask_rcnn" else "classes")
    return [
        *("--workdir", str(workdir), *SHORT, *SMALL[family]),
        *("--images", str(folders / "images"), "--masks", str(folders / masks)),
    ]


@pytest.mark.parametrize("variant", ["", "v3plus"])
@pytest.mark.parametrize("name", ["torchvision/resnet18", "tf/mobilenet_v2", "tf/xception65"])
def test_deeplabs_network_follows_trained_weights(folders, tmp_path, name, variant):
    module = load_module(EXPERIMENTS / "deeplab" / "folder.py")
    arguments = ["--workdir", str(tmp_path / "run"), "--images", str(folders / "images")]
    arguments += ["--masks", str(folders / "classes"), "--initial.name", name]
    arguments += ["--initial.weights", "weights.npz", "--variant", variant]
    variants = {"": {}, **module.VARIANTS}
    network = parse(module.Config, arguments, variants=variants).network
    tensorflow = name.startswith("tf/")
    assert network.backbone == name.partition("/")[2]
    assert network.pixels == ("tensorflow" if tensorflow else "imagenet")
    assert network.batch_norm.epsilon == (1e-3 if tensorflow else 1e-5)
    assert network.batch_norm.momentum == 0.99
    chosen = [*arguments, "--network.backbone", "vgg16"]
    with pytest.raises(
        SystemExit, match=f"need network.backbone='{network.backbone}', not 'vgg16'"
    ):
        parse(module.Config, chosen, variants=variants)


def train(family, arguments):
    file = EXPERIMENTS / family / "folder.py"
    module = load_module(file)
    with jax.numpy_dtype_promotion("standard"):  # Optax's AdamW itself mixes dtypes
        return run(module.Config, module.build, file, arguments)


@pytest.mark.parametrize(
    ("family", "masks", "metric"),
    [
        ("unet", "classes", "mean_iou"),
        ("unet", "objects", "seg"),
        ("deeplab", "classes", "mean_iou"),
        ("mask_rcnn", "objects", "mask_AP"),
    ],
)
def test_a_folder_trains_evaluates_and_predicts_without_its_files(
    family, masks, metric, folders, tmp_path
):
    own = shutil.copytree(folders, tmp_path / "own")
    workdir = tmp_path / "run"
    results = train(family, command(family, own, workdir, masks=masks))
    assert metric in results["val"].metrics
    assert max(line["step"] for line in read_metrics(workdir / "metrics.jsonl")) == 2
    recorded = json.loads((workdir / "config.json").read_text())["config"]["data"]
    assert recorded["found"].startswith("8 train, 2 val (")
    assert recorded["holds"] == ("classes" if masks == "classes" else "instances")
    image = np.array(Image.open(own / "images" / "n0.png"))
    shutil.rmtree(own)
    trained = segjax.load_run(workdir)
    assert trained.classes == ("background", "foreground" if masks == "classes" else "object")
    trained.predict(image)


def test_images_of_four_bands_train_and_predict(folders, tmp_path, capsys):
    own = shutil.copytree(folders, tmp_path / "own")
    for path in (own / "images").iterdir():
        grey = np.array(Image.open(path)).astype(np.float32)
        np.save(path.with_suffix(".npy"), np.stack([grey, -grey, grey**2, grey / 9], axis=2))
        path.unlink()
    run_directory, output = tmp_path / "run", tmp_path / "out"
    train("unet", command("unet", own, run_directory))
    assert list((run_directory / "predictions").glob("*.png"))
    main(["predict", str(run_directory), str(own / "images"), "--output", str(output)])
    assert len(list((output / "labels").glob("n*.png"))) == 10
    assert len(list((output / "overlays").glob("n*.png"))) == 10
    image = np.load(own / "images" / "n0.npy")
    labels = np.array(Image.open(output / "labels" / "n0.png"))
    np.testing.assert_array_equal(segjax.load_run(run_directory).predict(image)["labels"], labels)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["predict", str(run_directory), str(folders / "images"), "--output", str(output)])
    assert "n0.png: 1 bands; expected 4, as in training" in capsys.readouterr().err


def test_the_same_command_resumes_and_changed_files_are_refused(folders, tmp_path, capsys):
    own = shutil.copytree(folders, tmp_path / "own")
    arguments = command("unet", own, tmp_path / "run")
    first = train("unet", arguments)
    assert train("unet", arguments)["val"].metrics == first["val"].metrics
    for kind in ("images", "classes"):
        next((own / kind).glob("n3*")).unlink()
    with pytest.raises(SystemExit, match=r"data.found: .*8 train, 2 val.* -> .*\b7 train, 2 val"):
        train("unet", arguments)
    del capsys


def test_sides_batch_and_steps_follow_from_the_images_unless_they_are_given(folders, tmp_path):
    for family, tile in (("unet", "network.tile"), ("deeplab", "augment.crop")):
        module = load_module(EXPERIMENTS / family / "folder.py")
        small = SMALL[family]
        own = ["--images", str(folders / "images"), "--masks", str(folders / "classes")]
        config = parse(module.Config, ["--workdir", str(tmp_path), *small, *own])
        assert config.train.batch_size == 16  # four for each of the tests' four devices
        assert config.train.num_steps == 500
        assert config.train.eval_every == 50
        if family == "unet":
            assert config.network.tile == 64
        else:
            assert config.augment.crop == (49, 49)  # 16 k + 1 within 64 rows
            assert config.prediction.size == (65, 81)
        side = ["33"] * (2 if family == "deeplab" else 1) if family == "deeplab" else ["32"]
        given = [f"--{tile}", *side, "--train.batch-size", "4", "--train.num-steps", "7"]
        config = parse(module.Config, ["--workdir", str(tmp_path), *small, *own, *given])
        assert (config.train.batch_size, config.train.num_steps) == (4, 7)
        if family == "unet":
            assert config.network.tile == 32
        else:
            assert config.augment.crop == (33, 33)


def test_the_normalisation_is_chosen_and_its_statistics_are_recorded(folders, tmp_path):
    module = load_module(EXPERIMENTS / "unet" / "folder.py")
    own = command("unet", folders, tmp_path)
    plain = module.build(parse(module.Config, own)).task.preprocess
    stretched = [*own, "--network.normalization", "percentiles"]
    assert module.build(parse(module.Config, stretched)).task.preprocess != plain
    config = parse(module.Config, [*own, "--network.normalization", "dataset"])
    source = config.data.splits().train()
    pixels = np.concatenate([source[index]["image"].ravel() for index in range(len(source))])
    np.testing.assert_allclose(config.network.mean, pixels.mean(dtype=float), rtol=1e-9)
    np.testing.assert_allclose(config.network.std, pixels.std(dtype=float), rtol=1e-9)
    assert module.build(config).task.preprocess.mean == config.network.mean
    given = ["--network.mean", "5", "--network.std", "7"]
    config = parse(module.Config, [*own, "--network.normalization", "dataset", *given])
    assert (config.network.mean, config.network.std) == ((5.0,), (7.0,))


@pytest.mark.parametrize("family", ["unet", "deeplab", "mask_rcnn"])
def test_the_configuration_survives_json(family, folders, tmp_path):
    module = load_module(EXPERIMENTS / family / "folder.py")
    config = parse(module.Config, command(family, folders, tmp_path))
    values = json.loads(json.dumps(to_dict(config)))
    assert from_dict(module.Config, values) == config
    assert differences(values, to_dict(config)) == []


def test_masks_of_the_other_kind_are_refused_with_the_experiment_that_takes_them(folders, tmp_path):
    for family, masks, message in (
        ("deeplab", "objects", "experiments/unet/folder.py"),
        ("mask_rcnn", "classes", "--holds instances"),
    ):
        workdir = tmp_path / family
        with pytest.raises(SystemExit) as stop:
            train(family, command(family, folders, workdir, masks=masks))
        assert message in str(stop.value)
        assert not workdir.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give the folders by --images DIR and --masks DIR"),
        (["--images", "nowhere"], "--images and --masks go together; one is missing"),
        (["--images", "nowhere", "--masks", "nowhere"], "nowhere: expected a folder, but there"),
    ],
)
def test_missing_folders_stop_the_command_in_one_line(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train("unet", ["--workdir", str(tmp_path / "run"), *flags])
    assert message in str(stop.value) + capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("family", "name"), [("unet", "encoder"), ("deeplab", "v3plus"), ("mask_rcnn", "small")]
)
def test_a_variant_builds_its_network(family, name, folders, tmp_path):
    module = load_module(EXPERIMENTS / family / "folder.py")
    assert name in module.__doc__
    arguments = command(family, folders, tmp_path)
    own = arguments[arguments.index("--images") :]
    config = parse(
        module.Config,
        ["--workdir", str(tmp_path), "--variant", name, *own],
        variants=module.VARIANTS,
    )
    plain = parse(module.Config, ["--workdir", str(tmp_path), *own])
    assert config.network != plain.network
    task = module.build(config).task
    image = jax.ShapeDtypeStruct((1, 64, 96, task.channels), "float32")
    jax.eval_shape(lambda image: task.model.init_with_output(jax.random.key(0), image)[0], image)
