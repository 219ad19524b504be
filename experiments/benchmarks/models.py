"""Times train steps and predictions of segjax and PyTorch on the same work, in turn.

    python experiments/benchmarks/models.py --output models.json [--torch-python PYTHON]

The networks are U-Net (32 features, padded), DeepLab v3 on ResNet-50 at output stride 8
(torchvision's), DeepLab v3+ on ResNet-50 (segmentation-models-pytorch's) and Mask R-CNN on
ResNet-50 with FPN (torchvision's, with stem, first stage and norms frozen, as it is trained), at
the sizes of `CASES`. On CPU both sides compute in float32, and torch runs in both of its memory
layouts. On a GPU, segjax's bfloat16 meets torch's autocast with channels-last, eager and compiled.

Weights and pixels are random, as time does not depend on them. The exception is Mask R-CNN, whose
time depends on the regions and objects it finds, so both sides share its weights. Their losses in
the JSON differ because each side samples its own regions. Where torchvision's compiled operators do
not load, as with torch 2.13 for CPU, its Mask R-CNN runs on Python substitutes.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from measure import Options, Results, Side, compare, run_once


@dataclass(frozen=True)
class Case:
    """Work to be timed: a network at a batch size and an image size."""

    network: str
    batch: int
    size: tuple[int, int]
    on_gpu: bool = False


CASES = (
    Case("unet", 2, (128, 128)),
    Case("unet", 2, (256, 256)),
    Case("unet", 1, (512, 512)),
    Case("deeplabv3", 2, (129, 129)),
    Case("deeplabv3", 2, (257, 257)),
    Case("deeplabv3plus", 2, (256, 256)),
    Case("deeplabv3plus", 2, (384, 384)),
    Case("mask_rcnn", 1, (320, 320)),
    Case("mask_rcnn", 1, (512, 640)),
    Case("unet", 8, (512, 512), on_gpu=True),
    Case("deeplabv3", 8, (513, 513), on_gpu=True),
    Case("deeplabv3plus", 8, (512, 512), on_gpu=True),
    Case("mask_rcnn", 4, (800, 1344), on_gpu=True),
)


@dataclass(frozen=True)
class ModelOptions(Options):
    """Options of this comparison."""

    networks: tuple[str, ...] = ("unet", "deeplabv3", "deeplabv3plus", "mask_rcnn")
    modes: tuple[str, ...] = ("train step", "inference")
    gpu: bool = False
    """Time the sizes for a GPU, in bfloat16, with `torch.compile` and eager."""
    objects: int = 8
    """Objects per image, for Mask R-CNN's train step."""


def main(options: ModelOptions):
    results = Results(options)
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "detector.safetensors")
        if "mask_rcnn" in options.networks:
            writer = Side("torch", "torch_models:write_detector", options.torch_python)
            run_once(writer, weights=weights)
        for case in CASES:
            if case.network not in options.networks or case.on_gpu != options.gpu:
                continue
            for mode in options.modes:
                kind = "instance" if case.network == "mask_rcnn" else "semantic"
                function = f"models:{kind}_{mode.replace(' ', '_')}"
                arguments = {"batch": case.batch, "size": case.size, "bfloat16": options.gpu}
                if kind == "semantic":
                    arguments["network"] = case.network
                else:
                    arguments["weights"] = weights
                    if mode == "train step":
                        arguments["objects"] = options.objects
                torch = f"torch_{function}"
                layout = (("channels_last", True),)
                first = layout if options.gpu else ()
                sides = [
                    Side("segjax", f"segjax_{function}"),
                    Side("torch", torch, options.torch_python, first),
                ]
                if options.gpu:
                    compiled = (*layout, ("compiled", True))
                    sides.append(Side("torch compiled", torch, options.torch_python, compiled))
                else:
                    sides.append(Side("torch channels-last", torch, options.torch_python, layout))
                height, width = case.size
                name = f"{case.network}, {mode}, {case.batch} × {height} × {width}"
                timings = compare(sides, arguments, rounds=options.rounds, threads=options.threads)
                results.add(name, timings)


if __name__ == "__main__":
    main(tyro.cli(ModelOptions, description=__doc__))
