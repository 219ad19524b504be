"""Every experiment file runs a few steps on tiny data in the official layouts."""

import dataclasses
import functools
import json
import runpy
from pathlib import Path

import jax
import pytest

from segjax.commands.experiments import experiment_files
from segjax.commands.launch import run
from segjax.data.datasets.synthetic_cells import synthetic_cells_dataset_builder
from segjax.data.prepare import prepare
from segjax.tasks import InstanceTask
from segjax.training.configuration import parse, variant_config
from segjax.training.experiment import load_module
from segjax.training.logging import read_metrics
from tests.data import official_instance_layouts, official_layouts

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
FILES = sorted(e.path for e in experiment_files().values())
# Those on folders of one's own need the folders; test_folders.py runs them.
ALONE = [path for path in FILES if path.name != "folder.py"]
# One of each family is enough for a quick look.
QUICK = {"quickstart.py", "deeplab/v3_voc2012.py", "mask_rcnn/synthetic_cells.py"}
MASK_RCNN_EXTENSIONS = {"convnext_backbone.py", "mask_scoring_rcnn.py"}
RUNS = [
    pytest.param(path, id=name, marks=[pytest.mark.quick] if name in QUICK else [])
    for path, name in ((path, str(path.relative_to(EXPERIMENTS))) for path in ALONE)
]
SHORT = [
    *("--train.num-steps", "2", "--train.batch-size", "4", "--train.log-every", "1"),
    *("--train.eval-every", "1", "--train.checkpoint-every", "1", "--train.num-workers", "0"),
    *("--seed", "3"),
]
SMALL_UNET = ["--network.features", "2", "--network.depth", "1", "--network.tile", "64"]
SMALL_DEEPLAB = [
    *("--network.width-multiplier", "0.05", "--augment.crop", "33", "33"),
    *("--prediction.size", "49", "65", "--prediction.refine", "False"),
]
SMALL_MASK_RCNN = [
    *("--network.backbone", "resnet18", "--network.width-multiplier", "0.05"),
    *("--network.fpn-features", "4"),
    *("--network.head-features", "4", "--network.fc-features", "4"),
    *("--network.proposals.pre-nms", "16", "--network.proposals.post-nms", "8"),
    *("--network.detections.max-detections", "8", "--network.detections.max-candidates", "16"),
    *("--proposals.pre-nms", "16", "--proposals.post-nms", "8"),
    *("--anchor-sampling.size", "16", "--region-sampling.size", "8"),
    *("--input.max-objects", "6", "--input.mask-size", "14"),
]
SIDES = ["--input.resize.short-sides", "64", "--input.resize.max-size", "96"]
WINDOW = ["--input.resize.size", "64", "64", "--input.buckets", "64", "64"]
WHOLE = ["--prediction.short-sides", "64", "--prediction.max-size", "96"]
# Each bucket is a program to compile: one experiment has two of them, as users do.
ONE_BUCKET = ["--input.buckets", "96", "96", "--prediction.buckets", "96", "96"]
TWO_BUCKETS = [
    *("--input.buckets", "64", "96", "96", "64"),
    *("--prediction.buckets", "64", "96", "96", "64"),
]
V3PLUS = ["--network.aspp-features", "4", "--network.decoder-features", "4"]
VGG = ["--network.backbone", "vgg16", "--network.multi-grid", "None"]  # quick to compile
SMALL = {
    "v1_voc2012": [*SMALL_DEEPLAB, "--network.head-features", "4"],
    "v2_voc2012": [
        *(*SMALL_DEEPLAB, *VGG[:2], "--network.head-features", "4"),
        *("--network.atrous-rates", "1", "2", "--network.scales", "0.5", "1"),
    ],
    "v3_voc2012": [*SMALL_DEEPLAB, *VGG, "--network.aspp-features", "4"],
    "v3plus_voc2012": [*SMALL_DEEPLAB, *VGG, *V3PLUS],
    "v3_cityscapes": [*SMALL_DEEPLAB, *VGG, "--network.aspp-features", "4"],
    "v3plus_cityscapes": [*SMALL_DEEPLAB, *VGG, *V3PLUS],
    # This one refines by the CRF.
    "camvid": [*SMALL_DEEPLAB[:-2], *VGG, "--prediction.crf.num-iterations", "1"],
    "coco_r50_fpn": [*SMALL_MASK_RCNN, *SIDES, *WHOLE, *TWO_BUCKETS],
    "coco_paper_tables": [*SMALL_MASK_RCNN, *SIDES, *WHOLE, *ONE_BUCKET],
    "coco_lsj": [
        *(*SMALL_MASK_RCNN, *WINDOW, *WHOLE, *ONE_BUCKET[3:], "--network.bfloat16", "False"),
        *("--network.rpn-convolutions", "1", "--network.box-convolutions", "1"),
    ],
    "cityscapes": [*SMALL_MASK_RCNN, *SIDES, *WHOLE, *ONE_BUCKET],
    "dsb2018": [*SMALL_MASK_RCNN, *WINDOW, "--prediction.buckets", "64", "64"],
    "synthetic_cells": [*SMALL_MASK_RCNN, *WINDOW, *WHOLE, *ONE_BUCKET[3:]],
    "coco_files": [*SMALL_MASK_RCNN, *SIDES, *WHOLE, *ONE_BUCKET],
    "mask_scoring_rcnn": [*SMALL_MASK_RCNN, *WINDOW, *WHOLE, *ONE_BUCKET[3:]],
    "convnext_backbone": [*SMALL_MASK_RCNN[2:], *WINDOW, *WHOLE, *ONE_BUCKET[3:]],
    "attention_unet": [*SMALL_UNET[:2], "--network.depth", "2", "--network.tile", "100"],
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """All data sets of the experiments, prepared from tiny trees."""
    folder = tmp_path_factory.mktemp("data")
    official_layouts.write_isbi2012(folder / "isbi2012")
    official_layouts.write_cell_tracking(folder / "cell_tracking")
    official_layouts.write_drive(folder / "drive")
    official_layouts.write_chasedb1(folder / "chasedb1")
    official_layouts.write_camvid(folder / "camvid_files")
    official_layouts.write_voc2012(folder / "voc2012_files")
    official_layouts.write_cityscapes(folder / "cityscapes_files")
    official_instance_layouts.write_cityscapes(folder / "cityscapes_instances_files")
    official_instance_layouts.write_coco(folder / "coco_files")
    official_instance_layouts.write_nuclei(folder / "dsb2018_files")
    for name, source in {
        "isbi2012": "isbi2012",
        "cell_tracking/dic_c2dh_hela": "cell_tracking",
        "cell_tracking/phc_c2dh_u373": "cell_tracking",
        "drive": "drive",
        "chasedb1": "chasedb1",
        "camvid": "camvid_files",
        "voc2012": "voc2012_files",
        "cityscapes": "cityscapes_files",
        "cityscapes_instances": "cityscapes_instances_files",
        "coco": "coco_files",
        "dsb2018": "dsb2018_files",
    }.items():
        prepare(name, data_dir=folder, source=folder / source)
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"train": 5, "validation": 2, "test": 2}
        patch.setattr(synthetic_cells_dataset_builder, "SPLITS", sizes)
        prepare("synthetic_cells", data_dir=folder)
    return folder


def paths_of_coco(folder):
    """The flags for files of one's own."""
    flags = []
    for split in ("train", "val"):
        annotations = folder / "annotations" / f"instances_{split}2017.json"
        flags += [f"--files.{split}-annotations", str(annotations)]
        flags += [f"--files.{split}-images", str(folder / f"{split}2017")]
    return flags


def shallow_convnext(module, *, width_multiplier, norm, dtype):
    return module.ConvNeXt(stage_sizes=(1, 1, 1, 1), width=8, dtype=dtype)


@pytest.mark.parametrize("file", RUNS)
def test_an_experiment_trains_evaluates_and_reports(file, data_dir, tmp_path, monkeypatch):
    module = load_module(file)
    if str(file.relative_to(EXPERIMENTS)) not in QUICK:
        monkeypatch.setenv("SEGJAX_CONVOLUTION", "plain")  # quicker to compile
    if file.stem == "convnext_backbone":  # its 18 blocks take a minute to compile
        monkeypatch.setitem(
            module.BACKBONES, "convnext", functools.partial(shallow_convnext, module)
        )
    workdir = tmp_path / "run"
    with jax.numpy_dtype_promotion("standard"):  # Optax's AdamW itself mixes dtypes
        small = SMALL.get(file.stem, SMALL_UNET)
        if file.stem == "coco_files":
            small = [*small, *paths_of_coco(data_dir / "coco_files")]
        arguments = ["--workdir", str(workdir), "--data-dir", str(data_dir), *SHORT, *small]
        results = run(module.Config, module.build, file, arguments)
    best_metric = module.build(parse(module.Config, arguments)).best_metric
    assert all(best_metric in result.metrics for result in results.values())
    assert max(line["step"] for line in read_metrics(workdir / "metrics.jsonl")) == 2
    assert json.loads((workdir / "config.json").read_text())["config"]["seed"] == 3
    assert (workdir / "report.html").is_file()
    assert list((workdir / "predictions").glob("*.png"))


def rare_class_flags(module, workdir):
    """The flags that favour rare classes, with a weight for each class of the experiment."""
    classes = module.build(module.Config(workdir=workdir)).task.classes
    weights = [str(1 + place) for place in range(len(classes))]
    return [
        *("--loss.class-weights", *weights, "--loss.focal", "2"),
        *("--augment.class-balanced", "0.5"),
    ]


SEMANTIC = [
    pytest.param(file, id=str(file.relative_to(EXPERIMENTS)))
    for file in ALONE
    if file.parent.name != "mask_rcnn" and file.name not in MASK_RCNN_EXTENSIONS
]


@pytest.mark.parametrize("file", SEMANTIC)
def test_a_semantic_experiment_takes_class_weights_focal_loss_and_balanced_crops(file, tmp_path):
    module = load_module(file)
    flags = rare_class_flags(module, tmp_path)
    experiment = module.build(parse(module.Config, ["--workdir", str(tmp_path), *flags]))
    loss = experiment.task.loss_function
    count = len(experiment.task.classes)
    assert loss.class_weights == tuple(float(1 + place) for place in range(count))
    assert loss.focal == 2
    shares = [getattr(each, "class_balanced", None) for each in experiment.transforms]
    assert [share for share in shares if share is not None] == [0.5]


# With pixel weights, and with labels subsampled to coarse logits.
@pytest.mark.parametrize(
    ("name", "more"),
    [("unet/dic_hela.py", []), ("deeplab/v3_voc2012.py", ["--loss.supervise", "coarse"])],
)
def test_an_experiment_trains_with_every_option_for_rare_classes(name, more, data_dir, tmp_path):
    file = EXPERIMENTS / name
    module, workdir = load_module(file), tmp_path / "run"
    flags = [*rare_class_flags(module, workdir), "--loss.hard-pixels", "0.5", "--loss.dice", "1"]
    arguments = ["--workdir", str(workdir), "--data-dir", str(data_dir), *SHORT]
    small = SMALL.get(file.stem, SMALL_UNET)
    run(module.Config, module.build, file, [*arguments, *small, *flags, *more])
    losses = [line["loss"] for line in read_metrics(workdir / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 2
    assert all(0 < loss < 1000 for loss in losses)


def test_class_weights_of_another_number_than_the_classes_stop_a_run_before_it_begins(
    tmp_path, capsys
):
    file = EXPERIMENTS / "quickstart.py"
    module, workdir = load_module(file), tmp_path / "run"
    arguments = ["--workdir", str(workdir), "--loss.class-weights", "1", "2", "3"]
    with pytest.raises(SystemExit):
        run(module.Config, module.build, file, arguments)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("error: loss.class_weights has 3 numbers; expected 2, one for each")
    assert not workdir.exists()


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(EXPERIMENTS)) for f in FILES])
def test_an_experiment_says_numbers_protocol_cost_and_command(file):
    text = load_module(file).__doc__
    for word in ("Cost", "Command", f"python experiments/{file.relative_to(EXPERIMENTS)}"):
        assert word in text
    assert "Paper" in text or "Published" in text


def test_an_experiment_without_its_data_says_how_to_prepare_it(tmp_path, monkeypatch):
    arguments = ["drive.py", "--workdir", str(tmp_path / "run"), "--data-dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match="segjax data prepare drive --source DIR"):
        runpy.run_path(str(EXPERIMENTS / "unet" / "drive.py"), run_name="__main__")
    assert not (tmp_path / "run").exists()


@functools.cache  # many rows of the tables train the same network in another way
def output_shapes(model, shape):
    """The shapes of what a network computes, without computing it."""
    image = jax.ShapeDtypeStruct(shape, "float32")
    return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], image)


VARIANTS = [
    pytest.param(file, name, id=f"{file.relative_to(EXPERIMENTS)}-{name}")
    for file in ALONE
    for name in getattr(load_module(file), "VARIANTS", {})
]


@pytest.mark.parametrize(("file", "name"), VARIANTS)
def test_a_variant_builds_its_network_and_its_documentation_names_it(file, name, tmp_path):
    module = load_module(file)
    assert name in module.__doc__
    config = variant_config(module.Config, name, module.VARIANTS, workdir=tmp_path)
    assert config != module.Config(workdir=tmp_path, variant=name)
    assert (
        parse(
            module.Config, ["--workdir", str(tmp_path), "--variant", name], variants=module.VARIANTS
        )
        == config
    )
    # The same parts with fewer blocks, which take long to trace.
    fewer = {
        "resnet101": "resnet50",
        "resnet101_msra": "resnet50_msra",
        "xception65": "xception41",
        "xception71": "xception41",
    }
    backbone = getattr(config.network, "backbone", None)
    if backbone in fewer:
        network = dataclasses.replace(config.network, backbone=fewer[backbone])
        config = dataclasses.replace(config, network=network)
    task = module.build(config).task
    is_detector = isinstance(task, InstanceTask)
    if is_detector:
        height, width = 256, 320
    elif hasattr(config.augment, "crop"):
        height, width = config.augment.crop
    else:  # a padded U-Net
        height = width = config.network.tile
    outputs = output_shapes(task.model, (1, height, width, task.channels))
    if is_detector:
        side = 14 if config.network.neck == "c4" else 28
        count = 400 if file.name == "dsb2018.py" else 100  # COCO's; nuclei are many
        assert outputs["masks"].shape == (1, count, side, side)
    else:
        assert outputs["logits"].shape == (1, height, width, len(task.classes))
