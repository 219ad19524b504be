"""Every row of the table of published weights: its converter accepts the names and shapes."""

import functools
import hashlib
import json
import re
import shutil

import jax
import numpy as np
import pytest

from segjax.pretrained import SOURCES, convert, load
from segjax.pretrained.catalog import check_has_file, conversion_of, find_file
from segjax.pretrained.converted import Conversion
from segjax.pretrained.mapping import Source, shapes_of
from segjax.weights.known import CITYSCAPES, KNOWN
from segjax.weights.places import MissingWeights, own_folder
from tests.fixtures.reference_weights import FOLDER
from tests.pretrained.source_shapes import detectron2_mask_rcnn_shapes, source_shapes, zeros
from tests.weights.server import NAME, Server, publish, use_empty_folders

RESNETS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}
# Rows whose shapes are compared too, which traces the model. Of the others the names are compared
# here; the tests of their converters compare shapes.
TRACED = {"torchvision/resnet18", "torchvision/resnet50"}


def torchvision_resnet_shapes(depth, prefix=""):
    """Lists the arrays of torchvision's ResNet from its modules, without its classifier."""
    shapes = {}

    def layer(convolution, norm, *shape):
        shapes[f"{prefix}{convolution}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{prefix}{norm}.{part}"] = shape[:1]
        shapes[f"{prefix}{norm}.num_batches_tracked"] = ()

    layer("conv1", "bn1", 64, 3, 7, 7)
    inputs, bottleneck = 64, depth in ("50", "101")
    for stage, blocks in enumerate(RESNETS[depth], 1):
        inner = 32 << stage
        outputs = 4 * inner if bottleneck else inner
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            sides = (1, 3, 1) if bottleneck else (3, 3)
            channels = (inputs, inner, inner, outputs) if bottleneck else (inputs, inner, outputs)
            for i, side in enumerate(sides):
                shape = (channels[i + 1], channels[i], side, side)
                layer(f"{name}.conv{i + 1}", f"{name}.bn{i + 1}", *shape)
            if block == 0 and inputs != outputs:
                layer(f"{name}.downsample.0", f"{name}.downsample.1", outputs, inputs, 1, 1)
            inputs = outputs
    return shapes


@functools.cache
def recorded_shapes(name):
    """The shapes of a state dict that the package itself has made."""
    with np.load(FOLDER / f"{name.replace('/', '_')}.npz") as record:
        shapes = json.loads(str(record["shapes"]))
    return {key: tuple(shape) for key, shape in shapes.items()}


def deeplab_shapes(depth):
    recorded = recorded_shapes("torchvision/deeplabv3_resnet50")
    heads = {key: shape for key, shape in recorded.items() if not key.startswith("backbone.")}
    for key in ("classifier.4.weight", "classifier.4.bias"):
        for name in (key, f"aux_{key}"):
            heads[name] = (21, *heads[name][1:])
    return torchvision_resnet_shapes(depth, "backbone.") | heads


def mobilenet_v3_shapes(network):
    recorded = recorded_shapes("torchvision/deeplabv3_mobilenet_v3_large")
    if network.startswith("deeplabv3"):
        return {
            name: (21, *shape[1:]) if "classifier.4." in name else shape
            for name, shape in recorded.items()
        }
    trunk = {
        name.replace("backbone.", "features."): shape
        for name, shape in recorded.items()
        if name.startswith("backbone.")
    }
    return trunk | {"classifier.0.weight": (1280, 960), "classifier.3.bias": (1000,)}


def mask_rcnn_shapes(name):
    shapes = dict(recorded_shapes(name))
    for part, outputs in (("box_predictor.cls_score", 91), ("box_predictor.bbox_pred", 364)):
        shapes[f"roi_heads.{part}.weight"] = (outputs, 1024)
        shapes[f"roi_heads.{part}.bias"] = (outputs,)
    shapes["roi_heads.mask_predictor.mask_fcn_logits.weight"] = (91, 256, 1, 1)
    shapes["roi_heads.mask_predictor.mask_fcn_logits.bias"] = (91,)
    return shapes


def listed_by_converter(row, hints=None):
    """The names that the converter reads, with no shapes but those given."""
    given = hints or {}
    options = row.options if given else {}
    table = SOURCES[row.converter](zeros(given), name=row.converter, **options).table
    return {s.name: () for s in table.values() if isinstance(s, Source)} | given


def tensorflow_shapes(row):
    hints = {"global_step": ()}
    if row.converter != "tf/xception65":
        hints["logits/semantic/weights"] = (1, 1, 256, published_classes(row))
        hints["logits/semantic/weights/Momentum"] = (1, 1, 256, published_classes(row))
    if "dm05" in row.name:
        hints["MobilenetV2/expanded_conv_16/project/weights"] = (1, 1, 480, 160)
        hints["MobilenetV2/expanded_conv_1/project/weights"] = (1, 1, 48, 16)
    return listed_by_converter(row, hints)


def openmmlab_shapes(row):
    """The recorded names for ResNet-50, with the further blocks of a ResNet-101."""
    record = {
        "mmdet": f"mmdet_mask_rcnn_r50_{'caffe_' * ('caffe' in row.name)}fpn",
        "mmseg": "mmseg_deeplabv3plus_r50_d8_769x769"
        if "deeplabv3plus" in row.name
        else "mmseg_deeplabv3_r50_d8",
    }
    shapes = dict(recorded_shapes(record[row.source]))
    if "101" in row.name:
        last = "backbone.layer3.5."
        more = [(name, shape) for name, shape in shapes.items() if name.startswith(last)]
        for block in range(6, 23):
            shapes |= {n.replace(last, f"backbone.layer3.{block}."): s for n, s in more}
    classes = published_classes(row)
    for name, shape in shapes.items():
        if ".conv_seg." in name or ".fc_cls." in name:
            shapes[name] = (classes, *shape[1:])
        elif ".fc_reg." in name:
            shapes[name] = (4 * (classes - 1), *shape[1:])
        elif ".conv_logits." in name:
            shapes[name] = (classes - 1, *shape[1:])
    return shapes


def published_shapes(row):
    """Returns {name: shape} of the arrays in the file of a row."""
    source, _, network = row.converter.partition("/")
    depth = re.search(r"(?:resnet|R_|X_)(\d+)", network)
    if source == "tf":
        return tensorflow_shapes(row)
    if source in ("mmdet", "mmseg"):
        return openmmlab_shapes(row)
    if source == "detectron2" and "mask_rcnn" in network:
        groups = {"groups": 32, "group_width": 8} if "X_" in network else {}
        neck = network.rpartition("_")[2]
        return detectron2_mask_rcnn_shapes(int(depth[1]), neck, classes=80, **groups)
    if "mobilenet_v3" in network:
        return mobilenet_v3_shapes(network)
    if "deeplabv3" in network:
        return deeplab_shapes(depth[1])
    if "maskrcnn" in network:
        return mask_rcnn_shapes(row.converter)
    if source in ("torchvision", "smp") and depth:
        return torchvision_resnet_shapes(depth[1]) | {"fc.weight": (1000, 512), "fc.bias": (1000,)}
    unused = {
        "vgg16": "classifier.0.weight",
        "mobilenet_v2": "features.18.0.weight",
        "resnext101": "pred_w",
    }
    return listed_by_converter(row) | {unused.get(network, "fc1000_w"): ()}


@pytest.mark.parametrize("row", KNOWN.values(), ids=lambda row: row.name)
def test_the_converter_of_a_row_accepts_its_file(monkeypatch, row):
    monkeypatch.setattr(Conversion, "converted", lambda self, name: self)
    shapes = published_shapes(row)
    conversion = convert(row.name, zeros(shapes))
    sources = {path: s for path, s in conversion.table.items() if isinstance(s, Source)}
    read = {source.name for source in sources.values()}
    assert read <= shapes.keys()
    assert [n for n in shapes.keys() - read if not re.search(conversion.ignored, n)] == []
    if row.name in TRACED:
        ours = shapes_of(conversion.model)
        for path, source in sources.items():
            assert source.shape(ours[path]) == shapes[source.name], source.name
    if conversion.task is None:
        assert row.data == "ImageNet"
    else:
        assert len(conversion.task.classes) == published_classes(row)


def published_classes(row):
    """The number of classes, with the background where it is one."""
    if row.source in ("tf", "mmseg"):
        background = row.source == "tf"
        return {"VOC": 21, "Cityscapes": 19, "ADE20K": 150 + background}[
            row.data.rpartition(", ")[2]
        ]
    if row.data == "COCO":
        return {"torchvision": 91, "detectron2": 81, "mmdet": 81}[row.source]
    return 21


def test_a_row_has_the_options_of_its_weights_and_a_caller_may_replace_them(monkeypatch):
    monkeypatch.setattr(Conversion, "converted", lambda self, name: self)
    name = "tf/mobilenetv2_coco_cityscapes_trainfine"
    state = zeros(published_shapes(KNOWN[name]))
    conversion = convert(name, state)
    assert conversion.task.classes == CITYSCAPES
    assert conversion.task.input_size.length == 2049
    assert convert(name, state, input_side=1025).task.input_size.length == 1025
    assert conversion_of(name).task.input_size.length == 2049


def test_a_file_of_a_known_name_is_found_or_asked_for(monkeypatch, tmp_path):
    use_empty_folders(monkeypatch, tmp_path)
    own_folder().mkdir(parents=True)
    width = {
        "MobilenetV2/expanded_conv_16/project/weights": (1, 1, 480, 160),
        "logits/semantic/weights": (1, 1, 256, 3),
    }
    file = tmp_path / "named by me.npz"
    np.savez_compressed(file, **zeros(source_shapes("tf/deeplabv3_mobilenetv2", width)))
    checksum = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    row = publish(Server(), checksum=checksum)
    monkeypatch.setitem(KNOWN, NAME, row)
    with pytest.raises(MissingWeights, match="segjax weights get made-up/net"):
        load(NAME)
    shutil.copy(file, own_folder() / row.file)
    found, named = load(NAME), load(row.converter, file)
    assert found.model == named.model
    jax.tree.map(np.testing.assert_array_equal, found.variables, named.variables)
    with pytest.raises(FileNotFoundError, match=r"elsewhere\.npz: no such file"):
        load(NAME, tmp_path / "elsewhere.npz")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("keras/vgg16", "keras/vgg16: no published file is known; name your own"),
        ("torchvision/resnet43", "did you mean 'torchvision/resnet34'"),
        ("detectron2/mask_rcnn_R_50_FPN_2x", "did you mean 'detectron2/mask_rcnn_R_50_FPN_[13]x'"),
    ],
)
def test_a_name_without_a_readable_file_is_refused(name, message):
    for function in (check_has_file, find_file, load):
        with pytest.raises(ValueError, match=message):
            function(name)
