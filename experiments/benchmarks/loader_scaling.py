"""Measures how the loader scales with worker processes, for the input of each family.

    python experiments/benchmarks/loader_scaling.py --output loader_scaling.json

"unet": grey images of 512² with cells; the paper's elastic tiles with the weight map.
"deeplab": photographs of VOC's size from a prepared data set; crops of 513².
"mask_rcnn": photographs of 640 × 480 with eight objects; short side 800, packed objects.

One core makes examples first, which gives the processor time of an example. Workers follow, with
two threads each, as in training; more than the machine's cores only take turns. Simulated workers
come last: each waits for the time that a core would have taken, and passes on a finished example.
They show how many cores the main process of a loader can make use of. They still share this
machine's cores when they pass an example on, which limits their number here. The processor time of
the main process gives the limit elsewhere.

A timed call first takes the buffered batches and then times the next ones.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from input_pipeline import SIZES, PipelineOptions, write_files
from measure import Results, Side, Timing, compare
from prepared_data import prepare_quietly

FAMILIES = SIZES | {"unet": (512, 512)}


@dataclass(frozen=True)
class ScalingOptions(PipelineOptions):
    """Options of this measurement."""

    recipes: tuple[str, ...] = ("unet", "deeplab", "mask_rcnn")
    workers: tuple[int, ...] = (0, 1, 2)
    batch: int = 8
    simulated: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of simulated workers, each with a core of its own."""
    simulated_batches: int = 16
    """Number of batches in a timed call of simulated workers."""


def main(options: ScalingOptions):
    results = Results(options)
    with tempfile.TemporaryDirectory() as temporary:
        for family in options.recipes:
            folder = Path(temporary) / family
            files = write_files(folder, FAMILIES[family], options)
            arguments = {"folder": str(folder), "batch": options.batch, "batches": options.batches}
            own = ()
            if family == "deeplab":
                prepare_quietly("voc2012", folder / "prepared", source=folder)
                own = (("prepared", True),)

            def measure(name, function, threads, own=(), arguments=arguments, files=files, **more):
                side = Side("segjax", f"segjax_pipeline:{function}", arguments=own)
                given = arguments | more
                timings = compare([side], given, rounds=options.rounds, threads=threads)
                rates = rates_of(timings["segjax"], given["batch"] * given["batches"])
                results.add(name, timings, **rates, files=files)
                print("  " + ", ".join(f"{key} {value:.4g}" for key, value in rates.items()))
                return rates

            alone = measure(f"{family}, 1 core", family, 1, own, workers=0)
            for number in options.workers:
                measure(f"{family}, {number} workers", family, options.threads, own, workers=number)
            seconds = alone["processor seconds per image"]
            for number in options.simulated:
                measure(
                    f"{family}, {number} simulated workers",
                    "simulated",
                    options.threads,
                    family=family,
                    workers=number,
                    seconds=seconds,
                    batches=options.simulated_batches,
                )


def rates_of(timing: Timing, images: int) -> dict[str, float]:
    """Returns images per second, and the processor time of an image in all and in this process."""
    return {
        "images per second": images / timing.median,
        "processor seconds per image": timing.facts["processor_seconds"] / images,
        "of these in the main process": timing.facts["main_processor_seconds"] / images,
    }


if __name__ == "__main__":
    main(tyro.cli(ScalingOptions, description=__doc__))
