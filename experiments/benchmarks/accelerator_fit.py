"""Compiles train steps and predictions for accelerators that are not there, and says what fits.

    python experiments/benchmarks/accelerator_fit.py --topology v5e:2x2 --output fit.json
    python experiments/benchmarks/accelerator_fit.py --topology h100:4 --output fit.json

TPUs need libtpu (`pip install 'segjax[tpu]'`) and NVIDIA's GPUs the CUDA plugin
(`pip install jax-cuda12-plugin`); neither needs the device. Each case compiles in a process of its
own, because a compiler may abort it. The record has, for each case, memory, arithmetic, memory
traffic, collectives, loops and, for TPUs, the compiler's estimate of the time. That estimate is no
measurement. For loops whose length depends on the data, it assumes the turns in `TURNS`.
"""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro
from measure import environment
from tqdm import tqdm

from segjax.ops.matching import BLOCK
from segjax.ops.platforms import for_every_platform

HERE = Path(__file__).resolve().parent
GIBIBYTE = 2**30


@dataclass(frozen=True)
class Chip:
    """Facts of a chip.

    Attributes:
      platform: JAX's name of the platform.
      memory: bytes of memory.
      clock: cycles per second that turn the compiler's estimates into time: an assumption, which is
        not published. None if the compiler gives no cycles.
      source: where the memory is published.
    """

    platform: str
    memory: float
    clock: float | None
    source: str


CHIPS = {
    "v5e": Chip("tpu", 16 * GIBIBYTE, 1.5e9, "cloud.google.com/tpu/docs/v5e"),
    "h100": Chip("cuda", 80e9, None, "NVIDIA H100 Tensor Core GPU data sheet, SXM"),
}
# How often loops turn that end when the data say so, by a pattern of their place in the program.
# The image has 20 objects and simulated proposals of a trained network; a bin has 2 x 2 samples.
# All of the 128 regions for the mask head are active, in groups of 64 on GPUs.
TURNS: dict[str, float] = {
    r"nms/while/body/.*while": 4,
    r"nms/while": 3,
    r"tiles/while/body/.*while": 1.5,
    r"tiles/while": 10,
    r"_region_features/.*while": 4,
    r"groups/while$": 2,
}


@dataclass(frozen=True)
class Case:
    """A program to compile; see `abstract_steps.program`."""

    experiment: str
    variant: str = ""
    per_device: int = 1
    bfloat16: bool = False
    predicts: bool = False
    settings: tuple[tuple[str, object], ...] = ()
    turns: tuple[tuple[str, float], ...] = ()
    rows: int = 1  # devices that share each image's rows


MASK_RCNN, VOC = "mask_rcnn/coco_r50_fpn", "deeplab/v3plus_voc2012"


def cases() -> dict[str, Case]:
    """Returns all cases by name."""
    found = {}
    for bfloat16, dtype in ((False, "float32"), (True, "bfloat16")):
        for batch in (1, 4):
            found[f"unet 572 b{batch} {dtype}"] = Case("unet/dic_hela", per_device=batch)
        for batch in (4, 16):
            found[f"v3plus resnet101 b{batch} {dtype}"] = Case(VOC, "resnet101", batch)
            found[f"v3plus xception65 b{batch} {dtype}"] = Case(VOC, "", batch)
        for batch in (1, 2, 4):
            for objects in (10, 300):
                found[f"mask r50-fpn b{batch} {objects} objects {dtype}"] = Case(
                    MASK_RCNN,
                    per_device=batch,
                    settings=(("input.max_objects", max(objects, 100)),),
                    turns=(("match/while", -(-objects // BLOCK)),),
                )
        found[f"predict unet 572 b4 {dtype}"] = Case("unet/dic_hela", "", 4, predicts=True)
        found[f"predict v3plus resnet101 b4 {dtype}"] = Case(VOC, "resnet101", 4, predicts=True)
        found[f"predict mask r50-fpn b1 {dtype}"] = Case(MASK_RCNN, predicts=True)
        found |= {
            name: replace(case, bfloat16=bfloat16)
            for name, case in found.items()
            if name.endswith(dtype)
        }
    for batch in (1, 4):
        found[f"mask lsj b{batch} bfloat16"] = Case("mask_rcnn/coco_lsj", "", batch, bfloat16=True)
    for features, rows in ((16, 4), (32, 4), (64, 4)):
        large = (("network.tile", 4096), ("network.padding", "SAME"))
        found[f"unet 4096 {features} features rows {rows} bfloat16"] = Case(
            "unet/dic_hela",
            bfloat16=True,
            settings=(*large, ("network.features", features)),
            rows=rows,
        )
    return found


@dataclass(frozen=True)
class Options:
    """Options of the compilation.

    Attributes:
      topology: the chip and how many: "v5e:2x2" for a slice of TPUs, "h100:4" for GPUs of a host.
      cases: the cases' names; all by default.
      output: a JSON file, rewritten after each case; cases that it has without an error are not
        compiled again.
      dump: a folder for the compiled programs' texts.
      target_config: the description of the GPU for XLA.
      limit: seconds after which a compilation is given up.
      list_cases: print the cases' names and end.
      alone: the one case to compile in this process; used by the program itself.
    """

    topology: str = "v5e:2x2"
    cases: tuple[str, ...] = ()
    output: Path | None = None
    dump: Path | None = None
    target_config: Path = HERE / "h100_sxm.txtpb"
    limit: float = 3600.0
    list_cases: bool = False
    alone: str = ""

    @property
    def chip(self) -> Chip:
        kind = self.topology.partition(":")[0]
        if kind not in CHIPS:
            raise SystemExit(f"error: no chip {kind!r}; there are {', '.join(CHIPS)}")
        return CHIPS[kind]


def main(options: Options):
    known, chip = cases(), options.chip
    if options.list_cases:
        print("\n".join(known))
        return
    if unknown := set(options.cases) - set(known):
        raise SystemExit(f"error: no case {sorted(unknown)[0]!r}; --list-cases names them")
    if options.alone:
        print(json.dumps(compiled(known[options.alone], options)))
        return
    record = {
        "command": sys.argv,
        "environment": environment([sys.executable]),
        "topology": options.topology,
        "chip": asdict(chip),
        "programs": {},
    }
    if options.output and options.output.exists():
        record["programs"] = json.loads(options.output.read_text())["programs"]
    for name in tqdm(options.cases or known, unit="case", dynamic_ncols=True):
        if "error" not in record["programs"].get(name, {"error": "not compiled yet"}):
            continue
        found = in_own_process(name, options)
        record["programs"][name] = {**asdict(known[name]), **found}
        tqdm.write(line_of(name, found, chip))
        if options.output:
            options.output.write_text(json.dumps(record, indent=1) + "\n")


def in_own_process(name: str, options: Options) -> dict:
    """Compiles a case in a process of its own; an abort becomes the case's "error"."""
    command = [sys.executable, __file__, "--alone", name, "--topology", options.topology]
    command += ["--target-config", str(options.target_config)]
    if options.dump:
        options.dump.mkdir(parents=True, exist_ok=True)
        command += ["--dump", str(options.dump)]
    surroundings = os.environ | {
        "JAX_PLATFORMS": "cpu",  # the process's own device; the compiler's is abstract
        # libtpu asks the cloud's metadata server for these unless they are set.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    if options.chip.platform == "cuda":
        # A run sets the first. Without a card there is nothing to time forms of a product on.
        flags = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
        surroundings["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    try:
        ended = subprocess.run(
            command, env=surroundings, capture_output=True, text=True, timeout=options.limit
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not compiled within {options.limit:g} s"}
    if ended.returncode == 0:
        return json.loads(ended.stdout.splitlines()[-1])
    said = [line for line in ended.stderr.splitlines() if "Error" in line or "failed" in line]
    last = (said or ended.stderr.splitlines() or ["no message"])[-1]
    return {"error": f"ended with {ended.returncode}: {last[:600]}"}


def devices_of(options: Options) -> tuple:
    """Returns the abstract devices of the topology."""
    from jax.experimental import topologies

    _, _, shape = options.topology.partition(":")
    if options.chip.platform == "tpu":
        return tuple(topologies.get_topology_desc(options.topology, "tpu").devices)
    topology = topologies.get_topology_desc(
        "cuda", "cuda", topology=f"1x1x{shape}", target_config=options.target_config.read_text()
    )
    return tuple(topology.devices)


def compiled(case: Case, options: Options) -> dict:
    """Compiles a case in this process; returns what the compiler says, as JSON values."""
    sys.path.insert(0, str(HERE))
    import abstract_steps
    import compiled_costs

    settings = case.settings
    if case.bfloat16:
        settings = (*settings, ("network.bfloat16", True))
    program = abstract_steps.program(
        case.experiment,
        case.variant,
        per_device=case.per_device,
        settings=settings,
        predicts=case.predicts,
    )
    devices = devices_of(options)
    function, arguments = program.on(devices, rows=case.rows)
    with for_every_platform():
        lowered = function.lower(*arguments)
    started = time.perf_counter()
    executable = lowered.compile()
    seconds = time.perf_counter() - started
    text = executable.as_text()
    if options.dump:
        stem = re.sub(r"\W+", "_", f"{options.alone} {options.topology}")
        (options.dump / f"{stem}.hlo.txt").write_text(text)
    memory = executable.memory_analysis()
    kinds = ("argument", "output", "alias", "temp", "generated_code")
    parts = {kind: getattr(memory, f"{kind}_size_in_bytes") for kind in kinds}
    total = sum(parts.values()) - 2 * parts["alias"]
    cost = executable.cost_analysis() or {}
    return {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "compile_seconds": seconds,
        "memory": parts | {"total": total},
        "fits": total <= options.chip.memory,
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed", 0.0),
        **compiled_costs.costs(text, dict(case.turns) | TURNS, clock=options.chip.clock),
    }


def line_of(name: str, found: dict, chip: Chip) -> str:
    """Returns a case's results in one line."""
    if "error" in found:
        return f"{name}: {found['error']}"
    memory = found["memory"]
    left = (chip.memory - memory["total"]) / GIBIBYTE
    parts = [
        f"{memory['total'] / GIBIBYTE:.2f} GiB (temporary {memory['temp'] / GIBIBYTE:.2f}), "
        + (f"fits with {left:.1f} GiB left" if left >= 0 else f"{-left:.1f} GiB too much"),
        f"compiled in {found['compile_seconds']:.0f} s",
    ]
    # XLA counts neither for the libraries that it calls on GPUs.
    if found["bytes_accessed"]:
        parts.insert(1, f"{found['bytes_accessed'] / 1e9:.0f} GB of traffic")
    if found["flops"]:
        parts.insert(1, f"{found['flops'] / 1e12:.2f} TFLOP")
    if "estimated_milliseconds" in found:
        parts.insert(1, f"estimate {found['estimated_milliseconds']['all']:.1f} ms")
    return f"{name}: " + "; ".join(parts)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
