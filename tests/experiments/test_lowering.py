"""The programs that GPUs and TPUs would get, lowered without a device or its plugin."""

import math
import re

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.benchmarks.abstract_steps import EXPERIMENTS, program
from segjax.recipes.folders import FolderData

# A scatter or a sort of this many numbers is one over pixels. Steps sample some hundred regions and
# anchors, and sort some thousand scores.
OVER_PIXELS = 50_000
FAMILIES = {
    "unet/dic_hela": (),
    "deeplab/v1_voc2012": (),
    "deeplab/v3_voc2012": (("network.backbone", "resnet18"), ("network.multi_grid", None)),
    "mask_rcnn/synthetic_cells": (),
}
OTHERS = [
    f"{path.parent.name}/{path.stem}"
    for folder in ("unet", "deeplab", "mask_rcnn")
    for path in sorted((EXPERIMENTS / folder).glob("*.py"))
    if path.stem not in ("coco_files", "folder") and f"{folder}/{path.stem}" not in FAMILIES
]
ASSIGNED = re.compile(r"^\s*(%\w+)(?::\d+)? = \"?(?:stablehlo|chlo)\.(\w+)\"?[ (](.*)$", re.M)
MOVED = re.compile(r"\"stablehlo\.(scatter|sort)\"\(.*?\n\s*\}\) : (\([^\n]*)", re.S)
TENSOR = re.compile(r"tensor<((?:\d+x)*)[a-z]\w*>")


def faults(text: str, platform: str) -> list[str]:
    """Lists what a program should not contain on an accelerator."""
    found = ["float64"] if re.search(r"tensor<(\d+x)*f64>", text) else []
    found += re.findall(r"custom_call @\w*callback\w*", text)
    found += [f"{kind} of {size} numbers" for kind, size in moved(text) if size >= OVER_PIXELS]
    return found + (products_of_strided_slices(text) if platform == "cuda" else [])


def moved(text: str) -> list[tuple[str, int]]:
    """Returns each scatter and sort with how many numbers it moves."""
    found = []
    for kind, types in MOVED.findall(text):
        sizes = [math.prod(map(int, re.findall(r"\d+", sides))) for sides in TENSOR.findall(types)]
        # The operands of a scatter are the array, the indices and the updates.
        found.append((kind, sizes[2] if kind == "scatter" else max(sizes)))
    return found


def products_of_strided_slices(text: str) -> list[str]:
    """Finds products whose gradients XLA:GPU of jax 0.10.2 to 0.11.2 cannot compile."""
    found, strided = [], set()
    for name, kind, rest in ASSIGNED.findall(text):
        operands = {*re.findall(r"%\w+", rest.partition(" : ")[0])}
        strided.discard(name)  # names begin anew in each function
        is_view = kind in ("reshape", "convert", "transpose") and strided & operands
        if is_view or (kind == "slice" and re.search(r"\d+:\d+:[2-9]", rest)):
            strided.add(name)
        elif kind == "dot_general" and strided & operands:
            found.append(f"a product of a strided slice: {rest[:80]}")
    return found


def check(name, settings, *, predicts):
    checked = program(name, per_device=2, settings=settings, predicts=predicts)
    with jax.numpy_dtype_promotion("standard"):  # Optax's schedules and AdamW mix dtypes
        texts = checked.lowered("cuda", "tpu")
    for platform, text in texts.items():
        assert "stablehlo.convolution" in text
        assert faults(text, platform) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_train_step_has_no_operation_that_accelerators_cannot_do_fast(name):
    check(name, FAMILIES[name], predicts=False)


@pytest.mark.parametrize("name", ["unet/dic_hela", "mask_rcnn/synthetic_cells"])
def test_nor_has_a_prediction(name):
    check(name, FAMILIES[name], predicts=True)


def test_products_have_the_precision_of_the_run():
    settings = (("matmul_precision", "highest"),)
    text = program("unet/dic_hela", settings=settings).lowered("tpu")["tpu"]
    products = re.findall(r"stablehlo\.(?:dot_general|convolution)[ (].*", text)
    assert len(products) > 70
    for each in products:
        assert len(re.findall(r"\bHIGHEST\b", each)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("predicts", [False, True], ids=["train", "predict"])
@pytest.mark.parametrize("name", OTHERS)
def test_nor_has_any_other_experiment(name, predicts):
    check(name, (), predicts=predicts)


@pytest.mark.slow
@pytest.mark.parametrize("predicts", [False, True], ids=["train", "predict"])
@pytest.mark.parametrize("family", ["unet", "deeplab", "mask_rcnn"])
def test_nor_has_an_experiment_on_folders(family, predicts, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for number in range(10):
            # On smaller ones P6 is one position, and the RPN multiplies a strided slice (of P5).
            picture = np.zeros((256, 320), np.uint8)
            picture[8:24, 8 + number : 40] = 1
            picture[40:56, 8:40] = 1
            Image.fromarray(picture).save(tmp_path / kind / f"n{number}.png")
    holds = "classes" if family == "deeplab" else "instances"
    data = FolderData(images=tmp_path / "images", masks=tmp_path / "masks", holds=holds)
    check(f"{family}/folder", (("data", data),), predicts=predicts)


BAD = """
    %5 = stablehlo.slice %4 [0:2, 0:33:2, 0:33:2, 0:8] : (tensor<2x33x33x8xf32>) -> tensor<2x17x17x8xf32>
    %6 = stablehlo.reshape %5 : (tensor<2x17x17x8xf32>) -> tensor<578x8xf32>
    %7 = stablehlo.dot_general %6, %1, contracting_dims = [1] x [0] : (tensor<578x8xf32>) -> tensor<578x4xf64>
    %8 = "stablehlo.scatter"(%2, %3, %7) <{unique_indices = false}> ({
    ^bb0(%a: tensor<f32>, %b: tensor<f32>):
      stablehlo.return %a : tensor<f32>
    }) : (tensor<9x9xf32>, tensor<60000x1xi32>, tensor<60000xf32>) -> tensor<9x9xf32>
    %9:2 = "stablehlo.sort"(%2, %3) <{dimension = 0 : i64}> ({
      stablehlo.return %c : tensor<i1>
    }) : (tensor<70000xf32>, tensor<70000xi32>) -> (tensor<70000xf32>, tensor<70000xi32>)
    %10 = stablehlo.custom_call @xla_ffi_python_cpu_callback(%2)
"""  # noqa: E501


def test_each_fault_is_found():
    common = [
        "float64",
        "custom_call @xla_ffi_python_cpu_callback",
        "scatter of 60000 numbers",
        "sort of 70000 numbers",
    ]
    assert faults(BAD, "tpu") == common
    (product,) = faults(BAD, "cuda")[4:]
    assert product.startswith("a product of a strided slice: %6, %1")
