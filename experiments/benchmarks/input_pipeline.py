"""Times how fast segjax's loader and a torch DataLoader make training batches from image files.

    python experiments/benchmarks/input_pipeline.py [--torch-python PYTHON] [--images DIR]

There are two recipes, on JPEG photographs with PNG maps:

"deeplab": images of about VOC's size with labels, scaled by 0.5 to 2, cropped or padded to 513²,
flipped, normalised. "mask_rcnn": images of 640 × 480 with eight objects, the short side resized to
800, flipped, normalised, padded, with boxes and masks.

Both sides read the same files and do the same work in as many workers. "segjax" reads labels as an
experiment does: from the data set that `segjax data prepare` makes of the files, decoded by OpenCV.
Torch's masks stay whole images, as its detectors expect; segjax packs masks into the frames of
their boxes. torchvision resizes and normalises within the model; here both loaders do that.

A timed call first takes the buffered batches and then times the next ones. Without workers, segjax
reads in two threads of the process and torch in one. "1 cores" gives each side a single core.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro
from measure import Options, Results, Side, Timing, compare
from PIL import Image
from prepared_data import prepare_quietly

SIZES = {"deeplab": (375, 500), "mask_rcnn": (480, 640)}


@dataclass(frozen=True)
class PipelineOptions(Options):
    """Options of this comparison."""

    images: Path | None = None
    """Folder of JPEG photographs to use instead of generated ones; the maps are still generated."""
    recipes: tuple[str, ...] = ("deeplab", "mask_rcnn")
    workers: tuple[int, ...] = (0, 2)
    batch: int = 4
    batches: int = 8
    """Number of batches in a timed call."""
    files: int = 64
    """Number of photographs written for each recipe."""


def main(options: PipelineOptions):
    results = Results(options)
    cores = options.threads or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        for recipe in options.recipes:
            folder = Path(temporary) / recipe
            files = write_files(folder, SIZES[recipe], options)
            sides = [
                Side("segjax", f"segjax_pipeline:{recipe}"),
                Side("torch", f"torch_pipeline:{recipe}", options.torch_python),
            ]
            if recipe == "deeplab":
                prepare_quietly("voc2012", folder / "prepared", source=folder)
                function = f"segjax_pipeline:{recipe}"
                sides = [
                    Side("segjax", function, arguments=(("prepared", True),)),
                    *sides[1:],
                    Side("segjax on the files", function, arguments=(("prepared", False),)),
                ]
            cases = [(0, 1)] if 0 in options.workers and cores > 1 else []
            for workers, threads in [*cases, *((number, cores) for number in options.workers)]:
                arguments = {"folder": str(folder), "batch": options.batch, "workers": workers}
                arguments["batches"] = options.batches
                timings = compare(sides, arguments, rounds=options.rounds, threads=threads)
                name = f"{recipe}, {workers} workers, {threads} cores, batch of {options.batch}"
                rates = rates_of(timings, options.batch * options.batches)
                results.add(name, timings, rates=rates, files=files)
                for side, rate in rates.items():
                    print(f"  {side}: " + ", ".join(f"{v:.1f} {k}" for k, v in rate.items()))


def rates_of(timings: dict[str, Timing], images: int) -> dict[str, dict[str, float]]:
    """Returns each side's images per second of wall-clock time and of processor time."""
    return {
        side: {
            "images per second": images / timing.median,
            "images per second of a core": images / timing.facts["processor_seconds"],
        }
        for side, timing in timings.items()
    }


def write_files(folder: Path, size: tuple[int, int], options: PipelineOptions) -> dict:
    """Writes photographs with generated class and object maps into a folder laid out as VOC.

    Returns:
      "count", the number of photographs, and "mean_bytes", the mean size of a photograph.
    """
    rng = np.random.default_rng(0)
    names = ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation")
    photographs, classes, objects, splits = (folder / name for name in names)
    for part in (photographs, classes, objects, splits):
        part.mkdir(parents=True)
    given = [] if options.images is None else sorted(options.images.glob("*.jpg"))
    if options.images is not None and not given:
        raise SystemExit(f"error: {options.images} has no *.jpg")
    stems, total = [], 0
    for number in range(options.files):
        stems.append(f"photograph_{number:05d}")
        if given:
            content = given[number % len(given)].read_bytes()
        else:
            _, encoded = cv2.imencode(".jpg", photograph(rng, size))
            content = encoded.tobytes()
        path = photographs / f"{stems[-1]}.jpg"
        path.write_bytes(content)
        total += len(content)
        width, height = Image.open(path).size
        for kind, drawn in zip((classes, objects), scene(rng, (height, width)), strict=True):
            Image.fromarray(drawn).save(kind / f"{stems[-1]}.png")
    for split, listed in {"train": stems, "val": stems[:1], "trainval": stems}.items():
        (splits / f"{split}.txt").write_text("\n".join(listed))
    return {"count": options.files, "mean_bytes": total / options.files}


def photograph(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Draws noise of all scales, uint8 [H, W, 3], whose JPEG is as large as one of VOC or COCO."""
    image = np.full((*size, 3), 128.0)
    for sigma, strength in ((64, 60), (16, 30), (4, 14), (1, 7), (0.3, 7)):
        noise = cv2.GaussianBlur(rng.standard_normal((*size, 3)), (0, 0), sigma)
        image += strength * noise / noise.std()
    return image.round().clip(0, 255).astype(np.uint8)


def scene(rng: np.random.Generator, size: tuple[int, int], count: int = 8) -> tuple:
    """Draws ellipses as a map of VOC classes and as a map of objects 1 to `count`, uint8 [H, W]."""
    classes, objects = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    for number in range(1, count + 1):
        centre = (rng.random(2) * size[::-1]).astype(int).tolist()
        radii = (rng.uniform(0.05, 0.25, 2) * size[::-1]).astype(int).tolist()
        angle, label = rng.uniform(0, 180), int(rng.integers(1, 21))
        for drawn, value in ((classes, label), (objects, number)):
            cv2.ellipse(drawn, centre, radii, angle, 0, 360, value, thickness=-1)
    return classes, objects


if __name__ == "__main__":
    main(tyro.cli(PipelineOptions, description=__doc__))
