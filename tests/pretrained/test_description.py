"""Descriptions of tasks in JSON: nothing is lost, and nothing but segjax's own parts is named."""

import ast
import dataclasses
import functools
import importlib
import json
import math
import pkgutil
import sys
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.data.augmentation.semantic import Normalize
from segjax.evaluation.instance_evaluator import CocoEvaluator
from segjax.evaluation.nuclei import example_mean_precision
from segjax.export.published import TRAINING_ONLY, describe_task
from segjax.inference.tiling import Tiling
from segjax.models.backbones.resnet import resnet18
from segjax.models.deeplab_v3plus import DeepLabV3Plus
from segjax.models.normalization import BatchNorm
from segjax.models.unet import UNet
from segjax.ops.dense_crf import CrfConfig, refine_probabilities
from segjax.pretrained import description
from segjax.pretrained.catalog import SOURCES, conversion_of
from segjax.pretrained.description import NotOfSegjax, describe, rebuild
from segjax.training.configuration import parse
from segjax.training.experiment import load_module

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def parts(value):
    """A value as nested tuples that compare by content, partials and modules included."""
    if isinstance(value, functools.partial):
        return ("partial", value.func, parts(value.args), parts(value.keywords))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if f.name not in ("parent", "name")]
        return (type(value), *((name, parts(getattr(value, name))) for name in names))
    if isinstance(value, tuple | list):
        return tuple(map(parts, value))
    if hasattr(value, "items"):
        return ("mapping", *((key, parts(each)) for key, each in value.items()))
    return value


NORM = functools.partial(BatchNorm, epsilon=1e-3)


@pytest.mark.parametrize(
    "value",
    [
        (1, 2.5, True, None, "a", ((), ("b",))),
        (math.inf, 1e-300, 1 / 3),
        {"a": (1,), "class": {"partial": 2}},
        jnp.bfloat16,
        UNet(2, features=8, norm="batch", dtype=jnp.bfloat16),
        DeepLabV3Plus(3, backbone=resnet18(norm=NORM, width=4), norm=NORM),
        Tiling((8, 8), (4, 4), multiple=2),
        Normalize((1.0, 2.0, 3.0), 0.5),
        functools.partial(refine_probabilities, config=CrfConfig(num_iterations=3)),
        functools.partial(CocoEvaluator, ("a", "b"), extra={"score": example_mean_precision}),
    ],
    # xdist needs names that are the same in every process: no address of a function.
    ids=range(10),
)
def test_a_value_survives_as_json(value):
    text = json.dumps(describe(value, "value"), allow_nan=False)
    assert parts(rebuild(json.loads(text), "value")) == parts(value)


def test_numpys_numbers_and_types_are_written_as_pythons_and_jaxs():
    assert describe((np.float32(0.5), np.int64(3), np.dtype("float32")), "value") == [
        *(0.5, 3),
        {"dtype": "float32"},
    ]


def task_of(file):
    module = load_module(file)
    return module.build(parse(module.Config, ["--workdir", "run"])).task


@pytest.mark.parametrize("name", ["unet/dic_hela", "deeplab/v3plus_voc2012", "mask_rcnn/dsb2018"])
def test_the_task_of_an_experiment_survives_but_for_what_training_alone_reads(name):
    task = task_of(EXPERIMENTS / f"{name}.py")
    described, notes = describe_task(task)
    rebuilt = rebuild(json.loads(json.dumps(described)), "task")
    assert notes == []
    left_out = {f.name for f in dataclasses.fields(task)} - described.keys()
    assert left_out <= {*TRAINING_ONLY}
    kept = dataclasses.replace(task, **{name: getattr(rebuilt, name) for name in left_out})
    assert parts(rebuilt) == parts(kept)


def test_every_convertible_network_with_classes_has_a_description():
    names = [name for name in SOURCES if (task := conversion_of(name).task) is not None]
    assert len(names) > 10
    for name in names:
        task = conversion_of(name).task
        described, notes = describe_task(task)
        assert notes == []
        assert parts(rebuild(described, "task").model) == parts(task.model)
        assert parts(rebuild(described, "task").preprocess) == parts(task.preprocess)


class OwnUNet(UNet):
    pass


def own_norm(**options):
    return BatchNorm(**options)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (OwnUNet(2), r"^task is OwnUNet of \S*test_description, which is not a part of segjax$"),
        (DeepLabV3Plus(2, backbone=nn.Dense(3)), r"^task.backbone is Dense of flax"),
        (DeepLabV3Plus(2, norm=own_norm), r"^task.norm is own_norm of \S*test_description"),
        ((functools.partial(own_norm),), r"^task\[0\] is own_norm"),
        ({"a": lambda x: x}, r"^task.a is .*<lambda>"),
        (UNet(2).bind({}).block, "^task is .*block"),
        (np.zeros(3), "^task is ndarray of numpy, which has no description in JSON"),
    ],
    ids=range(7),
)
def test_what_is_not_segjaxs_own_is_named_with_its_place(value, message):
    with pytest.raises(NotOfSegjax, match=message):
        describe(value, "task")


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.exec",
        "segjax.files.atomic.write_bytes",
        "segjax.training.run_directory.open_run",
        "segjax.models.unet.nn",
        "segjax.models.unet.jax.jit",
        "segjax.models.unet.UNet.__call__",
        "segjax.models.unet.input_size_for.__globals__",
        "segjax.models..unet.UNet",
        "segjax.recipes.unet.CellInstances.__init__",
        "segjax.models.__import__",
        "segjax.models.os.system",
        None,
        7,
    ],
)
@pytest.mark.parametrize("kind", ["class", "function", "partial"])
def test_no_other_name_is_resolved(kind, name):
    with pytest.raises(ValueError, match=r"^model: "):
        rebuild({kind: name}, "model")


def test_only_modules_of_segjax_are_imported():
    """A module of the same name outside of the package is none of segjax's."""
    before = {*sys.modules}
    for name in ("antigravity.fly", "segjax.models.antigravity.fly", "tests.processes.kill"):
        with pytest.raises(ValueError, match="model: "):
            rebuild({"function": name}, "model")
    assert not any("antigravity" in name for name in {*sys.modules} - before)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"class": "segjax.models.unet.UNet", "num_classes": 2, "width": 3}, "no field width"),
        ({"class": "segjax.models.unet.UNet"}, "missing 1 required .*'num_classes'"),
        ({"class": "segjax.models.unet.UNet", "num_classes": {"new": 1}}, r"no such kind.*\{new"),
        ({"class": "segjax.models.unet.VNet"}, "there is no segjax.models.unet.VNet"),
        ({"class": "segjax.models.vnet.VNet"}, "there is no segjax.models.vnet.VNet"),
        ({"class": "segjax.models.unet.output_size"}, "no class with fields"),
        ({"class": "segjax.inference.views.View", "scale": -1}, "View: scale must be positive"),
        ({"dtype": "object"}, r"no such kind of value: \{dtype\}"),
        ({"mapping": 3}, r"no such kind of value: \{mapping\}"),
    ],
)
def test_an_unknown_or_wrong_description_is_refused_with_its_place(value, message):
    with pytest.raises(ValueError, match=rf"^model\[1\](\.num_classes)?: .*{message}"):
        rebuild([0, value], "model")


def test_names_that_published_folders_hold_still_resolve():
    """Published folders name these. One that moves gets a line in `description.MOVED`."""
    for name in (
        *("segjax.tasks.semantic.SemanticTask", "segjax.tasks.instance.InstanceTask"),
        *("segjax.tasks.instance.InstanceView", "segjax.recipes.unet.CellInstances"),
        *("segjax.models.unet.UNet", "segjax.models.encoder_unet.EncoderUNet"),
        *("segjax.models.deeplab_v1.DeepLabV1", "segjax.models.deeplab_v2.DeepLabV2"),
        *("segjax.models.deeplab_v3.DeepLabV3", "segjax.models.deeplab_v3plus.DeepLabV3Plus"),
        *("segjax.models.mask_rcnn.MaskRCNN", "segjax.models.rpn.Anchors"),
        *("segjax.models.rpn.ProposalConfig", "segjax.models.detections.DetectionConfig"),
        *("segjax.models.backbones.resnet.ResNet", "segjax.models.backbones.vgg.VGG16"),
        *("segjax.models.backbones.xception.Xception", "segjax.models.normalization.BatchNorm"),
        *("segjax.models.backbones.mobilenet_v2.MobileNetV2", "segjax.inference.views.View"),
        *("segjax.models.normalization.GroupNorm", "segjax.inference.tiling.Tiling"),
        *("segjax.inference.coverings.WholeImage", "segjax.inference.coverings.SlidingWindow"),
        *("segjax.inference.resizing.ShortSide", "segjax.ops.dense_crf.CrfConfig"),
        *("segjax.ops.dense_crf.refine_probabilities", "segjax.evaluation.metrics.CellTracking"),
        "segjax.evaluation.metrics.NegativeLogLikelihood",
        "segjax.evaluation.instance_evaluator.CocoEvaluator",
        "segjax.evaluation.nuclei.example_mean_precision",
        "segjax.evaluation.nuclei.example_panoptic_quality",
        "segjax.data.augmentation.semantic.Standardize",
        "segjax.data.augmentation.semantic.Normalize",
        "segjax.data.augmentation.normalization.StandardizeBands",
        "segjax.data.augmentation.normalization.StretchPercentiles",
        "segjax.data.augmentation.instance.ResizeShortSide",
        "segjax.data.augmentation.instance.Enlarge",
        "segjax.pretrained.torchvision_detection.Resize",
    ):
        assert callable(rebuild({"function": name}, "value")), name


def test_what_a_description_may_name_neither_writes_files_nor_runs_code():
    """The calls in the modules that descriptions name; reading one's own file is harmless."""
    forbidden = {
        *("exec", "eval", "compile", "__import__", "import_module", "system", "popen", "Popen"),
        *("run_path", "unlink", "rmtree", "rename", "write_bytes", "write_text", "write_json"),
        *("save", "tofile", "mkdir", "makedirs", "symlink_to"),
    }
    modules = {importlib.import_module(room) for room in description.ROOMS}
    files = [
        Path(importlib.util.find_spec(info.name).origin)
        for module in modules
        for info in pkgutil.walk_packages(module.__path__, f"{module.__name__}.")
    ]
    assert len(files) > 60
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", None))
                if called in forbidden or (called == "open" and len(node.args) > 1):
                    found.append(f"{path.name}: {called}")
            elif isinstance(node, ast.Import):
                found += [
                    f"{path.name}: {alias.name}"
                    for alias in node.names
                    if alias.name in ("subprocess", "shutil", "pickle", "ctypes", "socket")
                ]
    assert found == []
