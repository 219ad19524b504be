"""Times whole commands beside scripts of PyTorch's that do the same, from start to end.

    python experiments/benchmarks/whole_commands.py --data DIR [--torch-python PYTHON]

"predict": `segjax predict` on ten photographs with torchvision's DeepLab v3 and Mask R-CNN, and
`torch_predict.py`. The photographs have one size, as from one camera, or the sizes that they have
in COCO. The weights are seeded.

"train": three experiments on their real data, and `torch_training.py`, with the same networks,
files, steps and workers. Times cover everything up to the end of the last step: imports, checks of
the data, reading and augmenting, and every step. What follows, evaluation and the report, is cut
off.

The first start of a segjax command has no compiled programs and is reported apart ("cold"). Torch
runs in both of its memory layouts.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from measure import HERE, PAUSE, ROOT, Options, Results, Side, Timing, run_once
from PIL import Image
from prepared_data import prepare_quietly
from startup import no_compiled_programs

SEGJAX = (sys.executable, "-c", "from segjax.cli import main; main()")
# A common size of COCO's photographs.
ONE_SIZE = (640, 480)


@dataclass(frozen=True)
class Training:
    """A training whose whole time is compared.

    Attributes:
      experiment: the experiment's file, in `experiments`.
      dataset: the data set that it reads, for `segjax data prepare`.
      source: the folder of its files, in the folder of data.
      batch_size, steps: the size of a batch and the number of steps.
      changes: settings that make the network and the input those of `torch_training.py`.
    """

    experiment: str
    dataset: str
    source: str
    batch_size: int
    steps: int
    changes: tuple[str, ...]


TRAININGS = {
    "dic_hela": Training(
        experiment="unet/dic_hela.py",
        dataset="cell_tracking/dic_c2dh_hela",
        source="ctc/DIC-C2DH-HeLa",
        batch_size=2,
        steps=40,
        changes=(
            *("--network.features", "32", "--network.padding", "SAME"),
            *("--network.tile", "256"),
        ),
    ),
    "camvid": Training(
        experiment="deeplab/camvid.py",
        dataset="camvid",
        source="camvid",
        batch_size=4,
        steps=20,
        changes=(
            *("--variant", "v3plus", "--network.backbone", "mobilenet_v2_1280"),
            *("--network.aspp-features", "256", "--network.decoder-features", "256"),
            *("--network.head-features", "256", "--network.decoder-convolutions", "1"),
            *("--network.normalize-depthwise", "False", "--network.dropout-rate", "0.5"),
        ),
    ),
    "dsb2018": Training(
        experiment="mask_rcnn/dsb2018.py",
        dataset="dsb2018",
        source="dsb2018",
        batch_size=2,
        steps=25,
        changes=(
            *("--network.backbone", "resnet18", "--network.width-multiplier", "1"),
            *("--network.fpn-features", "256", "--network.fc-features", "1024"),
            *("--network.head-features", "256", "--input.mask-size", "28"),
        ),
    ),
}


@dataclass(frozen=True)
class CommandOptions(Options):
    """Options of this comparison."""

    data: Path = Path(os.environ.get("SEGJAX_TEST_DATA", ROOT.parent / "shared" / "data"))
    """Folder with coco_mini, ctc, camvid and dsb2018."""
    rounds: int = 3
    predictions: tuple[str, ...] = ("deeplabv3", "mask_rcnn")
    trainings: tuple[str, ...] = tuple(TRAININGS)
    workers: int = 1
    """Worker processes that read and augment, for both sides."""


def main(options: CommandOptions):
    results = Results(options)
    with tempfile.TemporaryDirectory() as temporary, no_compiled_programs():
        for network in options.predictions:
            compare_predictions(network, results, options, Path(temporary))
        for name in options.trainings:
            compare_training(name, results, options, Path(temporary))


def compare_predictions(network: str, results: Results, options: CommandOptions, folder: Path):
    weights = folder / f"{network}.safetensors"
    if network == "mask_rcnn":
        writer, name = "torch_models:write_detector", "torchvision/maskrcnn_resnet50_fpn"
        run_once(Side("torch", writer, options.torch_python), weights=str(weights))
    else:
        writer, name = "torch_models:write_segmenter", "torchvision/deeplabv3_resnet50"
        side = Side("torch", writer, options.torch_python, (("network", network),))
        run_once(side, weights=str(weights))
    found = sorted((options.data / "coco_mini" / "val2017").glob("*.jpg"))[:10]
    resized = folder / "one_size"
    resized.mkdir(exist_ok=True)
    for path in found:
        Image.open(path).convert("RGB").resize(ONE_SIZE).save(resized / path.name, quality=95)
    sizes = len({Image.open(path).size for path in found})
    for described, photographs in (
        ("of one size", sorted(resized.glob("*.jpg"))),
        (f"of {sizes} sizes", found),
    ):

        def segjax(output: Path, photographs=photographs):
            command = [*SEGJAX, "predict", name, *photographs]
            return [*command, "--weights", weights, "--output", output]

        def torch(output: Path, photographs=photographs):
            command = [options.torch_python, HERE / "torch_predict.py", network]
            return [*command, weights, output, *photographs]

        timings = alternate(segjax, torch, rounds=options.rounds)
        results.add(f"predict, {network}, ten photographs {described}", timings)


def compare_training(name: str, results: Results, options: CommandOptions, folder: Path):
    training = TRAININGS[name]
    source, prepared = options.data / training.source, folder / "prepared"
    prepare_quietly(training.dataset, prepared, source=source)
    counts = ["--steps", training.steps, "--batch-size", training.batch_size]

    def segjax(output: Path):
        command = [sys.executable, ROOT / "experiments" / training.experiment, *training.changes]
        command += ["--workdir", output, "--data-dir", prepared]
        command += ["--train.num-steps", training.steps, "--train.batch-size", training.batch_size]
        return [*command, "--train.num-workers", options.workers]

    def torch(output: Path):
        command = [options.torch_python, HERE / "torch_training.py", name, "--data", source]
        return [*command, *counts, "--workers", options.workers]

    def done(output: Path) -> bool:
        log = output / "metrics.jsonl"
        lines = log.read_text().split("\n")[:-1] if log.exists() else []  # whole lines
        return any(json.loads(line)["step"] == training.steps for line in lines)

    timings = alternate(segjax, torch, rounds=options.rounds, done=done)
    images = training.steps * training.batch_size
    rates = {side: {"images per second": images / t.median} for side, t in timings.items()}
    results.add(f"train, {name}, {training.steps} steps", timings, rates=rates)
    print("  " + ", ".join(f"{k}: {v['images per second']:.2f} images/s" for k, v in rates.items()))


def alternate(
    segjax: Callable[[Path], Sequence],
    torch: Callable[[Path], Sequence],
    *,
    rounds: int,
    done: Callable[[Path], bool] | None = None,
) -> dict[str, Timing]:
    """Runs the commands in turn. The first run of segjax compiles, and the next may only load.

    Args:
      segjax, torch: a path that does not exist yet → a command that writes its output there.
      done: whether segjax's command has done the compared work, by its output. None lets it end.
    """
    commands = {
        "segjax": segjax,
        "torch": torch,
        "torch channels-last": lambda output: [*torch(output), "--channels-last"],
    }
    first, _ = timed(segjax, done)
    seconds, peaks = ({name: [] for name in commands} for _ in range(2))
    for _ in range(rounds):
        for name, command in commands.items():
            time.sleep(PAUSE)
            spent, peak = timed(command, done if name == "segjax" else None)
            seconds[name].append(spent)
            peaks[name].append(peak)
    timings = {}
    for name, spent in seconds.items():
        cold = {"cold_seconds": first} if name == "segjax" else {}
        timings[name] = Timing(tuple(spent), spent[0], max(peaks[name]), facts=cold)
    return timings


def timed(
    command: Callable[[Path], Sequence], done: Callable[[Path], bool] | None = None
) -> tuple[float, int]:
    """Runs a command to its end, or until its output says that it is done, and then kills it.

    Returns:
      Its seconds, and the peak memory of its main process in bytes.

    Raises:
      RuntimeError: the command failed; the message is the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "output"
        given = [str(part) for part in command(output)]
        with (Path(temporary) / "printed").open("w+") as printed:
            start = time.perf_counter()
            process = subprocess.Popen(
                given,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])},
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            ended = 0
            while not ended:
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                spent = time.perf_counter() - start
                if not ended and done is not None and done(output):
                    os.killpg(process.pid, signal.SIGKILL)
                    _, _, usage = os.wait4(process.pid, 0)
                    ended, status = process.pid, 0
                time.sleep(0.02)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                printed.seek(0)
                raise RuntimeError(f"{' '.join(given)}: {printed.read()[-3000:]}")
    return spent, 1024 * usage.ru_maxrss


if __name__ == "__main__":
    main(tyro.cli(CommandOptions, description=__doc__))
