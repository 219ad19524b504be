"""Exports a model to StableHLO and runs the file without segjax: size, times and equality, on CPU.

    python experiments/benchmarks/stablehlo_files.py --model RUN --images DIR --python PYTHON \
      --output FILE.json
    python experiments/benchmarks/stablehlo_files.py --model tf/deeplabv3_mobilenetv2 \
      --weights FILE --images DIR --python PYTHON --size 480 640 --output FILE.json

PYTHON is the interpreter of an environment that has jax and flatbuffers alone. It runs the file on
each image by itself. What it finds is compared with `segjax predict`'s function, which runs here
on the same images, afterwards. The first call of each, which compiles, is listed apart.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import segjax
from segjax.data.image_arrays import for_network, read_array
from segjax.data.images import find_images
from segjax.export.model import SEMANTIC_OUTPUTS, image_function
from segjax.export.onnx_precision import fitted
from segjax.export.stablehlo import to_stablehlo, write_stablehlo
from segjax.pretrained.converted import Pretrained
from segjax.training.run_directory import environment

# All that the other environment runs.
SCRIPT = """
import sys, time
start = time.perf_counter()
import jax.export
import numpy as np
path, images, output = sys.argv[1:]
with open(path, "rb") as file:
    exported = jax.export.deserialize(bytearray(file.read()))
loaded = time.perf_counter() - start
found, seconds = {}, []
for number, image in enumerate(np.load(images).values()):
    start = time.perf_counter()
    result = jax.device_get(exported.call(image[None]))
    seconds.append(time.perf_counter() - start)
    found |= {f"{number}/{name}": value[0] for name, value in result.items()}
np.savez(output, loaded=loaded, seconds=seconds, version=jax.__version__, **found)
"""


@dataclass(frozen=True)
class StablehloFilesOptions:
    """Options of the comparison.

    Attributes:
      model: a run, a published folder, or the name of weights.
      images: a folder of images.
      python: an interpreter of an environment without segjax.
      output: a JSON file.
      weights: the file of weights, for a name.
      size: height and width of all images, which are cropped or mirrored to it; None
        leaves it open.
      count: the number of images, the first of the folder.
    """

    model: str
    images: Path
    python: Path
    output: Path
    weights: Path | None = None
    size: tuple[int, int] | None = None
    count: int = 6


def main(options: StablehloFilesOptions) -> None:
    model: Pretrained = (
        segjax.load_run(options.model)
        if options.weights is None
        else segjax.pretrained.load(options.model, options.weights)
    )
    channels = model.segmenter.channels
    images = [
        for_network(read_array(path), channels, path=path)
        for path in find_images(options.images)[: options.count]
    ]
    if options.size is not None:
        images = [fitted(image, options.size) for image in images]
    function = image_function(model, size=options.size, precision=model.matmul_precision)
    with tempfile.TemporaryDirectory() as folder:
        path, inputs, outputs = (
            Path(folder) / name for name in ("model.stablehlo", "images.npz", "found.npz")
        )
        start = time.perf_counter()
        write_stablehlo(to_stablehlo(function), path)
        exported = time.perf_counter() - start
        np.savez(inputs, *images)
        command = [options.python, "-I", "-c", SCRIPT, path, inputs, outputs]
        subprocess.run([*map(str, command)], check=True)
        found = dict(np.load(outputs))
        size = path.stat().st_size
    seconds, expected = [], []
    for image in images:
        start = time.perf_counter()
        expected.append(model.predict(image))
        seconds.append(time.perf_counter() - start)
    compared = _compare_labels if function.outputs == SEMANTIC_OUTPUTS else _compare_objects
    record = {
        "command": " ".join(sys.argv),
        "environment": environment(),
        "jax of the other environment": str(found["version"]),
        "images": [image.shape for image in images],
        "bytes": size,
        "seconds": {
            "export": exported,
            "import and load": float(found["loaded"]),
            "first call": float(found["seconds"][0]),
            "call": float(np.median(found["seconds"][1:])),
            "first prediction": seconds[0],
            "prediction": float(np.median(seconds[1:])),
        },
        "differences": compared(found, expected),
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(
        json.dumps({name: record[name] for name in ("bytes", "seconds", "differences")}, indent=1)
    )


def _compare_labels(found: dict[str, np.ndarray], expected: list) -> dict[str, Any]:
    """Returns the number of pixels with other labels, and the largest difference of probability."""
    others = [
        int(np.sum(found[f"{number}/labels"] != each["labels"]))
        for number, each in enumerate(expected)
    ]
    largest = [
        float(np.abs(found[f"{number}/probabilities"] - each["probabilities"]).max())
        for number, each in enumerate(expected)
    ]
    return {"pixels with another label": sum(others), "probability": max(largest)}


def _compare_objects(found: dict[str, np.ndarray], expected: list) -> dict[str, Any]:
    """Returns the numbers of objects, and the largest differences of scores and boxes."""
    result = {"objects": 0, "expected objects": 0, "score": 0.0, "box in pixels": 0.0, "classes": 0}
    for number, each in enumerate(expected):
        valid = found[f"{number}/valid"]
        result["objects"] += int(valid.sum())
        result["expected objects"] += len(each["scores"])
        if valid.sum() != len(each["scores"]) or not valid.any():
            continue
        scores, boxes, classes = (
            found[f"{number}/{name}"][valid] for name in ("scores", "boxes", "classes")
        )
        result["score"] = max(result["score"], float(np.abs(scores - each["scores"]).max()))
        result["box in pixels"] = max(
            result["box in pixels"], float(np.abs(boxes - each["boxes"]).max())
        )
        result["classes"] += int(np.sum(classes != each["classes"]))
    return result


if __name__ == "__main__":
    main(tyro.cli(StablehloFilesOptions))
