"""Times segjax's operators beside those of PyTorch, pydensecrf and pycocotools, in turn.

    python experiments/benchmarks/operators.py --output operators.json \\
        [--torch-python PYTHON] [--crf-python PYTHON] [--operators nms convolution …]

Both sides read the same arrays, wait for their results and save the last one. Each printed line
ends with the difference between the sides. A rival that is not installed is left out, with the
reason printed. torchvision's RoIAlign and NMS are also left out where its compiled operators do not
load: the Python substitutes are ten times slower. torch convolves in both of its memory layouts.

On CPU, pydensecrf, pycocotools, torchvision's NMS and its gradient of RoIAlign use one core, and so
do segjax's paste and run lengths. --threads 1 gives every side one core.
"""

import dataclasses
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
import tyro
from dense_crf import scene
from measure import Options, Results, Side, compare
from outputs import difference, label_difference

from segjax.data.images import read_image
from segjax.ops.dense_crf import CrfConfig

IMAGE = (800, 1333)
PYRAMID = {"size": (800, 1344), "channels": 256}  # whole cells of stride 32
REGIONS = ((1000, 7), (512, 7), (512, 14))  # boxes and bins
CRF_SETTINGS = {
    "v1's script: w1 4, σα 49, σβ 5": CrfConfig(),
    "the same, per pixel": CrfConfig(normalization="per_pixel"),
    "v2's VGG-16: w1 4, σα 65, σβ 3": CrfConfig(position_sigma=65, color_sigma=3),
    "wide: w1 4, σα 80, σβ 13": CrfConfig(position_sigma=80, color_sigma=13),
}
CONVOLUTION_ARGUMENTS = ("batch", "side", "channels", "features", "rate", "groups")
CONVOLUTIONS = {
    "ASPP, rate 6": (2, 33, 512, 256, 6, 1),
    "ASPP, rate 12": (2, 33, 512, 256, 12, 1),
    "ASPP, rate 18": (2, 33, 512, 256, 18, 1),
    "ASPP at stride 8, rate 36": (1, 65, 512, 256, 36, 1),
    "v1's fc6, rate 12": (1, 41, 512, 1024, 12, 1),
    "ResNet stage 4, rate 2": (2, 33, 512, 512, 2, 1),
    "MobileNetV2, depthwise": (4, 33, 384, 384, 1, 384),
    "Xception, depthwise, rate 2": (1, 65, 728, 728, 2, 728),
    "U-Net, level 1": (2, 256, 32, 32, 1, 1),
    "U-Net, level 2": (2, 128, 64, 64, 1, 1),
    "U-Net, level 3": (2, 64, 128, 128, 1, 1),
    "U-Net, level 4": (2, 32, 256, 256, 1, 1),
}
SLOW_ROUNDS = 3  # for calls that take seconds, which have no warm-up beyond the first call

# Code that a side's interpreter must be able to run.
NEEDS = {
    "torch": "import torch",
    "torchvision": "import torchvision",
    "torchvision's compiled operators": "import torchvision.extension as extension; "
    "assert extension._has_ops(), 'they do not load'",
    "pycocotools": "import pycocotools.mask",
    "pydensecrf": "import pydensecrf.densecrf",
}

Operator = Literal["roi_align", "nms", "dense_crf", "paste", "rle", "convolution"]


@dataclass(frozen=True)
class OperatorOptions(Options):
    """Options of this comparison."""

    operators: tuple[Operator, ...] = get_args(Operator)
    crf_python: str = sys.executable
    """An interpreter with pydensecrf and NumPy."""
    image: Path | None = None
    """Photograph for the CRF, resized to 500 × 375, instead of a generated scene."""


def main(options: OperatorOptions):
    with tempfile.TemporaryDirectory() as folder, Bench(options, Path(folder)) as bench:
        for operator in options.operators:
            OPERATORS[operator](bench)


def roi_align(bench: "Bench"):
    torchvision = bench.torch("torchvision", "roi_align", "torchvision's compiled operators")
    for boxes, bins in REGIONS:
        for gradient in (False, True):
            bench.compare(
                f"RoIAlign, {boxes} boxes, {bins} × {bins}, {mode(gradient)}",
                [segjax("roi_align"), *torchvision],
                {"boxes": boxes, "bins": bins, "gradient": gradient, **PYRAMID},
                slow=True,
            )


def nms(bench: "Bench"):
    torchvision = bench.torch("torchvision", "nms", "torchvision's compiled operators")
    for boxes in (1_000, 5_000, 20_000):
        arguments = {"boxes": boxes, "size": IMAGE, "threshold": 0.5}
        bench.compare(f"NMS of {boxes} boxes", [segjax("nms"), *torchvision], arguments)


def dense_crf(bench: "Bench"):
    image, probabilities = scene(375, 500, 21)
    if bench.options.image:
        image = read_image(bench.options.image)
        image = cv2.resize(image, (500, 375), interpolation=cv2.INTER_AREA)
    path = str(bench.folder / "scene.npz")
    np.savez(path, image=image, probabilities=probabilities)
    python = bench.options.crf_python
    rivals = bench.rival(
        "pydensecrf", "pydensecrf_operators:dense_crf", "pydensecrf", python=python
    )
    for name, config in CRF_SETTINGS.items():
        bench.compare(
            f"CRF, {name}",
            [segjax("dense_crf"), *rivals],
            {"scene": path, "config": dataclasses.asdict(config)},
            slow=True,
            differs=label_difference,
        )


def paste(bench: "Bench"):
    arguments = {"masks": 100, "size": IMAGE}
    torchvision = bench.torch("torchvision", "paste_masks", "torchvision")
    bench.compare("paste of 100 masks", [segjax("paste_masks"), *torchvision], arguments)
    rivals = bench.torch("torchvision", "paste_and_encode", "torchvision", "pycocotools")
    sides = [segjax("paste_and_encode"), *rivals]
    bench.compare("paste of 100 masks to run lengths", sides, arguments)


def rle(bench: "Bench"):
    rivals = (("pycocotools", ""), ("pycocotools by columns", "_columns"))
    sides = [segjax("encode")]
    for name, suffix in rivals:
        function = f"segjax_operators:pycocotools_encode{suffix}"
        sides += bench.rival(name, function, "pycocotools")
    bench.compare("run lengths of 100 masks", sides, {"masks": 100, "size": IMAGE})


def convolution(bench: "Bench"):
    sides = [segjax("convolution"), Side("lax.conv", "segjax_operators:lax_convolution")]
    sides += bench.torch("torch", "convolution", "torch")
    last = (("channels_last_memory", True),)
    sides += bench.torch("torch channels-last", "convolution", "torch", arguments=last)
    for name, sizes in CONVOLUTIONS.items():
        arguments = dict(zip(CONVOLUTION_ARGUMENTS, sizes, strict=True))
        for gradient in (False, True):
            case = f"convolution, {name}, {mode(gradient)}"
            bench.compare(case, sides, {**arguments, "gradient": gradient}, slow=gradient)


OPERATORS = {
    "roi_align": roi_align,
    "nms": nms,
    "dense_crf": dense_crf,
    "paste": paste,
    "rle": rle,
    "convolution": convolution,
}


def mode(gradient: bool) -> str:
    return "with gradients" if gradient else "forward"


def segjax(function: str) -> Side:
    return Side("segjax", f"segjax_operators:{function}")


class Bench:
    """State shared by the cases: options, results, a folder and the sides' processes."""

    def __init__(self, options: OperatorOptions, folder: Path):
        self.options, self.folder = options, folder
        self._results = Results(options, pythons=[options.crf_python])
        self._running, self._missing = {}, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self._running.values():
            worker.close()

    def torch(self, name: str, function: str, *needs: str, arguments=()) -> list[Side]:
        function, python = f"torch_operators:{function}", self.options.torch_python
        return self.rival(name, function, *needs, python=python, arguments=arguments)

    def rival(
        self, name: str, function: str, *needs: str, python: str = sys.executable, arguments=()
    ) -> list[Side]:
        """Returns the side, or prints why its interpreter cannot run it and returns no side."""
        for need in needs:
            reason = self._reason(python, need)
            if reason:
                print(f"{name} is left out, as {python} lacks {need}: {reason}", flush=True)
                return []
        return [Side(name, function, python, arguments)]

    def _reason(self, python: str, need: str) -> str:
        if (python, need) not in self._missing:
            command = [python, "-c", NEEDS[need]]
            lines = subprocess.run(command, capture_output=True, text=True)
            failed = lines.stderr.strip().splitlines()[-1:] if lines.returncode else []
            self._missing[python, need] = "".join(failed)
        return self._missing[python, need]

    def compare(self, name: str, sides, arguments: dict, *, slow=False, differs=difference):
        paths = [self.folder / f"result{number}.npz" for number in range(len(sides))]
        with_paths = [
            dataclasses.replace(side, arguments=(*side.arguments, ("result", str(path))))
            for side, path in zip(sides, paths, strict=True)
        ]
        timings = compare(
            with_paths,
            arguments,
            rounds=min(self.options.rounds, SLOW_ROUNDS) if slow else self.options.rounds,
            warm_up=0 if slow else 1,
            threads=self.options.threads,
            running=self._running,
        )
        ours, *others = ({**np.load(path)} for path in paths)
        found = [
            f"difference to {side.name} {differs(ours, theirs)}"
            for side, theirs in zip(sides[1:], others, strict=True)
        ]
        self._results.add(name, timings, agreement=", ".join(found))


if __name__ == "__main__":
    main(tyro.cli(OperatorOptions, description=__doc__))
