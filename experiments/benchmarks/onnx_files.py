"""Compares exported ONNX files with segjax: mean IoU, time and size of each precision, on CPU.

    python experiments/benchmarks/onnx_files.py --model RUN --images DIR --masks DIR \
      --calibration DIR --size 512 512 --output FILE.json
    python experiments/benchmarks/onnx_files.py --model tf/deeplabv3_mobilenetv2 --weights FILE \
      --coco DIR --size 480 640 --output FILE.json

It needs the extra segjax[onnx]. `--coco` is a folder of COCO 2017 as it is unpacked: labels are
VOC's classes in its validation images, and its training images calibrate int8.

Images and labels are cropped or mirrored to one size. segjax computes the function that is
exported, compiled by XLA. All sides predict each image in turn, one image at a time. The first
prediction of each side, which compiles, is not timed. A file's time excludes its loading.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from tqdm import tqdm

import segjax
from segjax.commands.evaluate_folders import MaskFlags, open_folders
from segjax.data.datasets.coco_voc.coco_voc_dataset_builder import Builder
from segjax.data.image_arrays import for_network, read_array
from segjax.data.images import find_images
from segjax.evaluation.confusion_matrix import confusion_counts, scores
from segjax.export.model import ImageFunction, image_function
from segjax.export.onnx_file import check_packages, to_onnx
from segjax.export.onnx_precision import fitted, with_bfloat16, with_int8
from segjax.pretrained.converted import Pretrained
from segjax.training.run_directory import environment


@dataclass(frozen=True)
class OnnxFilesOptions:
    """Options of the comparison.

    Attributes:
      model: a run, a published folder, or the name of weights.
      output: a JSON file.
      size: height and width of all images.
      weights: the file of weights, for a name.
      images: a folder of images to score.
      masks: the folder of their masks.
      calibration: a folder of images for int8.
      coco: a folder of COCO 2017, instead of these three.
      calibrated: at most so many images calibrate int8.
      scored: the number of images to score, evenly spaced; None for all.
    """

    model: str
    output: Path
    size: tuple[int, int]
    weights: Path | None = None
    images: Path = Path()
    masks: Path = Path()
    calibration: Path = Path()
    coco: Path | None = None
    calibrated: int = 24
    scored: int | None = None


Example = tuple[np.ndarray, np.ndarray]


def main(options: OnnxFilesOptions) -> None:
    model = (
        segjax.load_run(options.model)
        if options.weights is None
        else segjax.pretrained.load(options.model, options.weights)
    )
    function = image_function(model, size=options.size, precision=model.matmul_precision)
    examples, calibration = read_examples(model, options)
    record = {
        "command": " ".join(sys.argv),
        "environment": environment() | {"onnx": check_packages()},
        "images": len(examples),
        "calibration": len(calibration),
        "size": options.size,
        "sides": compare(function, examples, calibration),
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    for line in table(record["sides"]):
        print(line)


def read_examples(
    model: Pretrained, options: OnnxFilesOptions
) -> tuple[list[Example], list[np.ndarray]]:
    """Reads images with their labels, and images for the calibration, all of the size."""
    if options.coco is not None:
        with tempfile.TemporaryDirectory() as folder:
            builder = Builder(data_dir=folder)
            splits = builder.find_examples(options.coco).splits
            examples = [builder.read_example(files) for files in splits["val"]]
            seen = [
                builder.read_example(files)["image"]
                for files in splits["train"][: options.calibrated]
            ]
    else:
        if Path() in (options.images, options.masks, options.calibration):
            raise SystemExit("give --images, --masks and --calibration, or --coco")
        task = model.segmenter
        flags = MaskFlags(options.masks)
        source = open_folders(options.images, flags, classes=task.classes, channels=task.channels)
        examples = [source[index] for index in range(len(source))]
        paths = find_images(options.calibration)[: options.calibrated]
        seen = [for_network(read_array(path), task.channels, path=path) for path in paths]
    pairs = [
        (
            fitted(example["image"], options.size),
            fitted(example["labels"][..., None], options.size)[..., 0],
        )
        for example in _spaced(examples, options.scored)
    ]
    return pairs, [fitted(image, options.size) for image in seen]


def _spaced(examples: list, number: int | None) -> list:
    if number is None or number >= len(examples):
        return examples
    return [examples[index * len(examples) // number] for index in range(number)]


def compare(
    function: ImageFunction, examples: Sequence[Example], calibration: Sequence[np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Predicts all examples by segjax and by the three files, in turn.

    Returns:
      For each side "mean_iou", "milliseconds" (the median), "quartiles", "equal_labels" (the share
      of pixels with segjax's label), and "bytes" for a file.
    """
    whole = to_onnx(function, batch=1)
    files = {
        "float32": whole,
        "bfloat16": with_bfloat16(whole),
        "int8": with_int8(whole, [image[None] for image in calibration]),
    }
    compiled = jax.jit(function.call)
    sides: dict[str, Callable] = {"segjax": lambda x: np.asarray(compiled(x)["labels"])}
    sides |= {name: runner(proto) for name, proto in files.items()}
    for predict in sides.values():
        predict(examples[0][0][None])
    classes = len(function.classes)
    counts = {name: np.zeros((classes, classes), np.int64) for name in sides}
    times: dict[str, list[float]] = {name: [] for name in sides}
    equal = dict.fromkeys(sides, 0.0)
    for image, labels in tqdm(examples, desc="predicting"):
        found = {}
        for name, predict in sides.items():
            start = time.perf_counter()
            found[name] = predict(image[None])[0]
            times[name].append(1e3 * (time.perf_counter() - start))
        for name, each in found.items():
            counts[name] += confusion_counts(labels, each, num_classes=classes)
            equal[name] += float(np.mean(each == found["segjax"])) / len(examples)
    return {
        name: {
            "mean_iou": float(scores(counts[name])["mean_iou"]),
            "milliseconds": float(np.median(times[name])),
            "quartiles": np.percentile(times[name], [25, 75]).tolist(),
            "equal_labels": equal[name],
        }
        | ({"bytes": files[name].ByteSize()} if name in files else {})
        for name in sides
    }


def runner(proto: Any) -> Callable:
    """Returns a function of images that runs a file on this machine's CPUs."""
    runtime = import_module("onnxruntime")
    session = runtime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(["labels"], {"images": images})[0]


def table(sides: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the rows of a Markdown table."""
    lines = [
        "| | mean IoU | pixels with segjax's label | ms (quartiles) | MB |",
        "|---|---|---|---|---|",
    ]
    for name, side in sides.items():
        low, high = side["quartiles"]
        size = f"{side['bytes'] / 1e6:.2f}" if "bytes" in side else ""
        title = name if name == "segjax" else f"ONNX, {name}"
        lines.append(
            f"| {title} | {side['mean_iou']:.4f} | {100 * side['equal_labels']:.2f} % | "
            f"{side['milliseconds']:.0f} ({low:.0f} to {high:.0f}) | {size} |"
        )
    return lines


if __name__ == "__main__":
    main(tyro.cli(OnnxFilesOptions))
