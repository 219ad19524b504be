"""Times the evaluation of a whole set, from its files to the scores, beside torchvision's.

    python experiments/benchmarks/evaluation.py --data DIR [--torch-python PYTHON]

"deeplabv3" labels CamVid's test images at their own size, one at a time, and counts a confusion
matrix. "mask_rcnn" finds objects in photographs of COCO at 800 pixels, and scores boxes and masks
by COCO's protocol: faster-coco-eval in segjax, pycocotools beside torchvision. Both sides read the
same files and have the same seeded weights, and must come to the same score. Torch reads ahead in
one worker, segjax in two threads.

The first evaluation of a process compiles, and does not count.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from measure import ROOT, Options, Results, Side, compare, run_once
from prepared_data import prepare_quietly


@dataclass(frozen=True)
class EvaluationOptions(Options):
    """Options of this comparison."""

    data: Path = Path(os.environ.get("SEGJAX_TEST_DATA", ROOT.parent / "shared" / "data"))
    """Folder with camvid and coco_mini."""
    rounds: int = 3
    networks: tuple[str, ...] = ("deeplabv3", "mask_rcnn")
    images: int = 24
    """The number of images, the first ones of the set."""


def main(options: EvaluationOptions):
    results = Results(options)
    with tempfile.TemporaryDirectory() as temporary:
        for network in options.networks:
            weights, source = Path(temporary) / f"{network}.safetensors", options.data / "camvid"
            arguments = {"weights": str(weights), "count": options.images}
            if network == "mask_rcnn":
                writer = Side("torch", "torch_models:write_detector", options.torch_python)
                run_once(writer, weights=str(weights))
                source = options.data / "coco_mini"
                ours = {"folder": str(source)}
            else:
                writer = Side("torch", "torch_models:write_segmenter", options.torch_python)
                run_once(writer, weights=str(weights), network=network)
                prepare_quietly("camvid", Path(temporary) / "prepared", source=source)
                ours = {"folder": str(Path(temporary) / "prepared")}
            torch = f"torch_evaluation:{network}"
            layout = (("channels_last", True),)
            theirs = (("folder", str(source)),)
            sides = [
                Side("segjax", f"segjax_evaluation:{network}", arguments=tuple(ours.items())),
                Side("torch", torch, options.torch_python, theirs),
                Side("torch channels-last", torch, options.torch_python, theirs + layout),
            ]
            timings = compare(
                sides, arguments, rounds=options.rounds, threads=options.threads, warm_up=0
            )
            rates = {
                side: {"images per second": options.images / t.median}
                for side, t in timings.items()
            }
            scores = {timing.note for timing in timings.values()}
            if len(scores) > 1:
                raise SystemExit(f"error: the sides score differently: {', '.join(sorted(scores))}")
            results.add(f"evaluate, {network}, {options.images} images", timings, rates=rates)


if __name__ == "__main__":
    main(tyro.cli(EvaluationOptions, description=__doc__))
