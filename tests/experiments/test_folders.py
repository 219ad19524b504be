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
from segjax.data.augmentation.weight_map import AddWeightMap
from segjax.training.configuration import differences, from_dict, parse, to_dict
from segjax.training.experiment import load_module
from segjax.training.logging import read_metrics
from tests.experiments.test_experiments import ONE_BUCKET, SHORT, SMALL_MASK_RCNN, WHOLE, WINDOW

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
SMALL = {
    "unet": ["--network.features", "2", "--network.depth", "1"],
    "deeplab": [
        *("--network.backbone", "vgg16", "--network.width-multiplier", "0.05"),
        *("--network.aspp-features", "4"),
    ],
    "mask_rcnn": [*SMALL_MASK_RCNN, *WINDOW, *WHOLE, *ONE_BUCKET[3:]],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Ten grey pictures of two squares, with masks of classes, of numbered objects and of kinds.

    The kinds are the classes of the objects, as colours: the second square is of another one.
    """
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for kind in ("images", "classes", "objects", "kinds"):
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
        colors = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)[objects // 200]
        Image.fromarray(colors).save(folder / "kinds" / f"n{number}.png")
    (folder / "labelmap.txt").write_text("background:0,0,0::\nround:128,0,0::\nsquare:0,128,0::\n")
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
    kinds = ["--class-masks", str(own / "kinds"), "--color-table", str(own / "labelmap.txt")]
    kinds = kinds if family == "mask_rcnn" else []
    results = train(family, [*command(family, own, workdir, masks=masks), *kinds])
    assert metric in results["val"].metrics
    assert max(line["step"] for line in read_metrics(workdir / "metrics.jsonl")) == 2
    recorded = json.loads((workdir / "config.json").read_text())["config"]["data"]
    assert recorded["found"].startswith("8 train, 2 val (")
    assert recorded["holds"] == ("classes" if masks == "classes" else "instances")
    assert (
        recorded["values"]
        == {
            "unet": ["0", "255"] if masks == "classes" else [],
            "deeplab": ["0", "255"],
            "mask_rcnn": ["#000000", "#800000", "#008000"],
        }[family]
    )
    image = np.array(Image.open(own / "images" / "n0.png"))
    shutil.rmtree(own)
    trained = segjax.load_run(workdir)
    one = ("foreground" if masks == "classes" else "object",)
    assert trained.classes == ("background", *(("round", "square") if kinds else one))
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


def test_regions_of_masks_of_classes_are_objects_to_unet_and_mask_rcnn(folders, tmp_path):
    """Black and white for U-Net with its weight map; two classes for Mask R-CNN."""
    own = ["--workdir", str(tmp_path), "--images", str(folders / "images"), "--holds", "components"]
    unet = load_module(EXPERIMENTS / "unet" / "folder.py")
    config = parse(unet.Config, [*own, "--masks", str(folders / "classes"), *SMALL["unet"]])
    assert config.weight_map.gap == 0  # regions do not touch
    experiment = unet.build(config)
    assert experiment.best_metric == "seg"
    source = experiment.train()
    example = next(source[x] for x in range(8) if source.object_counts[x] == 2)
    objects = Image.open(folders / "objects" / f"{example['id']}.png")
    np.testing.assert_array_equal(np.array(objects) > 0, example["instances"] > 0)
    rng = np.random.default_rng(0)
    (add_weights,) = (x for x in experiment.transforms if isinstance(x, AddWeightMap))
    assert add_weights(example, rng)["weights"].max() > 1  # between the two squares
    for transform in experiment.transforms:
        example = transform(example, rng)
    assert example["weights"].shape == (64, 64)
    table = ["--masks", str(folders / "kinds"), "--color-table", str(folders / "labelmap.txt")]
    with pytest.raises(SystemExit, match=r"of 2 classes \(round, square\).*mask_rcnn/folder.py"):
        parse(unet.Config, [*own, *table, *SMALL["unet"]])

    mask_rcnn = load_module(EXPERIMENTS / "mask_rcnn" / "folder.py")
    config = parse(mask_rcnn.Config, [*own, *table, *SMALL["mask_rcnn"]])
    assert (config.data.holds, config.data.classes[1:]) == ("components", ("round", "square"))
    example = mask_rcnn.build(config).train()[0]
    assert {*example["classes"]} == {1, 2}
    # Where the first square touches the second, or hides a part of it, the classes part them.
    numbers = np.array(Image.open(folders / "objects" / f"{example['id']}.png"))
    assert sum(mask.area for mask in example["masks"]) == np.count_nonzero(numbers)


@pytest.mark.parametrize("family", ["unet", "deeplab"])
def test_class_weights_follow_from_the_masks_by_a_rule_and_are_recorded(family, folders, tmp_path):
    module = load_module(EXPERIMENTS / family / "folder.py")
    arguments = command(family, folders, tmp_path)
    plain = parse(module.Config, arguments)
    assert plain.loss.class_weights is None
    pixels = plain.data.read().pixels
    rooted = parse(module.Config, [*arguments, "--loss.class-weights", "root"])
    assert rooted.loss.class_weights == plain.data.proposed_class_weights
    ratio = np.divide(*rooted.loss.class_weights)
    assert ratio == pytest.approx(np.sqrt(pixels[1] / pixels[0]), rel=1e-3)
    balanced = parse(module.Config, [*arguments, "--loss.class-weights", "balanced"])
    assert np.divide(*balanced.loss.class_weights) == pytest.approx(ratio**2, rel=1e-3)
    assert module.build(balanced).task.loss_function.class_weights == balanced.loss.class_weights
    given = parse(module.Config, [*arguments, "--loss.class-weights", "1", "3"])
    assert given.loss.class_weights == (1.0, 3.0)


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
        ("mask_rcnn", "classes", "--holds components"),
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
