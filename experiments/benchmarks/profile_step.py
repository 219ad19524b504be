"""Prints where a train step or a prediction spends its time, by operation, from XLA's profile.

    python experiments/benchmarks/profile_step.py --network unet --size 256 256

The times add up the device's threads, in milliseconds per call. Three tables list them by kind of
operation, by the part of a layer they compute, and by single operation with its shape and layer.
"""

import collections
import gzip
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DUMP = tempfile.TemporaryDirectory()
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={DUMP.name}"

import jax  # noqa: E402
import segjax_models  # noqa: E402
import tyro  # noqa: E402

# An instruction in XLA's text: its name, its shape and, in the metadata, its origin in the program.
INSTRUCTION = re.compile(r"%?([\w.-]+) = (\S+\[[\d,]*\])\S* (.*)")
ORIGIN = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class ProfileOptions:
    """The work to profile."""

    network: Literal["unet", "deeplabv3", "deeplabv3plus", "mask_rcnn"] = "unet"
    mode: Literal["train step", "inference"] = "train step"
    batch: int = 2
    size: tuple[int, int] = (256, 256)
    bfloat16: bool = False
    calls: int = 3
    rows: int = 40


def main(options: ProfileOptions):
    arguments = {"batch": options.batch, "size": options.size, "bfloat16": options.bfloat16}
    if options.network != "mask_rcnn":
        function = {
            "train step": segjax_models.semantic_train_step,
            "inference": segjax_models.semantic_inference,
        }[options.mode]
        call = function(network=options.network, **arguments)
    elif options.mode == "train step":
        call = segjax_models.instance_train_step(objects=8, **arguments)
    else:
        raise SystemExit("only models.py makes the weights for Mask R-CNN's inference")
    call()
    call()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            for _ in range(options.calls):
                call()
        (path,) = Path(folder).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    origins = instructions()
    totals, kinds, sources = (collections.Counter() for _ in range(3))
    for event in events:
        name = event.get("args", {}).get("hlo_op")
        if name is not None:
            spent = event["dur"] / 1000 / options.calls
            totals[name] += spent
            kinds[re.sub(r"[.\d]+$", "", name)] += spent
            sources[source(origins.get(name, ("", ""))[1])] += spent
    print(f"{sum(totals.values()):.1f} ms in all")
    for heading, counts in (("kinds", kinds), ("sources", sources), ("operations", totals)):
        print(f"\n{heading}")
        for name, spent in counts.most_common(options.rows):
            print(f"{spent:10.2f}  {name}  {' '.join(origins.get(name, ()))}")


def instructions() -> dict[str, tuple[str, str]]:
    """Returns the shape and origin of every instruction of the compiled programs, by its name.

    Later programs overwrite earlier ones, because the profiled program is compiled last.
    """
    found = {}
    paths = Path(DUMP.name).glob("*cpu_after_optimizations.txt")
    paths = [*paths, *Path(DUMP.name).glob("*gpu_after_optimizations.txt")]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        for line in path.read_text().splitlines():
            if match := INSTRUCTION.match(line.strip().removeprefix("ROOT ")):
                origin = ORIGIN.search(match[3])
                found[match[1]] = (match[2], origin[1] if origin else "")
    return found


def source(origin: str) -> str:
    """Returns an origin's direction and operation, such as "backward conv_general_dilated"."""
    direction = "backward" if "transpose(" in origin else "forward"
    return f"{direction} {origin.rsplit('/', 1)[-1]}"


if __name__ == "__main__":
    main(tyro.cli(ProfileOptions, description=__doc__))
