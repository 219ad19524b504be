"""Times train steps and measures their memory by image size, batch size and number of devices.

    python experiments/benchmarks/scaling.py [--torch-python PYTHON] [--output scaling.json]

The networks are those of `models.py`: U-Net (32 features, padded) and Mask R-CNN (ResNet-50 with
FPN). On both sides, memory is what the process needs beyond what it held before the network was
made (see `process_memory.py`); on GPUs it is the peak that each library counts. The output also
gives XLA's own plan for one device.

Several devices split a batch. On a CPU, devices are simulated and share its cores: at best a step
takes as long as on one device, and the extra time is the cost of splitting. torch runs on one
device.
"""

from dataclasses import dataclass

import tyro
from measure import Options, Results, Side, compare

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Case:
    """Work to be timed: a network at a batch size and an image size, on some devices."""

    network: str
    batch: int
    size: tuple[int, int]
    devices: int = 1
    on_gpu: bool = False


CASES = (
    *(Case("unet", 2, (side, side)) for side in (64, 128, 256)),
    *(Case("unet", 8, (128, 128), devices) for devices in (1, 2, 4)),
    *(Case("mask_rcnn", 1, (side, side)) for side in (192, 384)),
    *(Case("mask_rcnn", 2, (192, 192), devices) for devices in (1, 2)),
    *(Case("unet", 8, (side, side), on_gpu=True) for side in (256, 512, 1024)),
    *(Case("unet", batch, (512, 512), on_gpu=True) for batch in (1, 4, 16)),
    *(Case("unet", 16, (512, 512), devices, on_gpu=True) for devices in (2, 4, 8)),
    *(Case("mask_rcnn", 2, size, on_gpu=True) for size in ((512, 512), (800, 1344))),
    *(Case("mask_rcnn", batch, (800, 1344), on_gpu=True) for batch in (1, 8)),
    *(Case("mask_rcnn", 8, (800, 1344), devices, on_gpu=True) for devices in (2, 4, 8)),
)


@dataclass(frozen=True)
class ScalingOptions(Options):
    """Options of this comparison."""

    rounds: int = 3
    networks: tuple[str, ...] = ("unet", "mask_rcnn")
    gpus: int = 0
    """Time the sizes for GPUs, in bfloat16, on at most this many GPUs; 0 times those for a CPU."""
    objects: int = 8
    """Objects per image, for Mask R-CNN."""


def main(options: ScalingOptions):
    results = Results(options)
    for case in CASES:
        if case.network not in options.networks or case.on_gpu != bool(options.gpus):
            continue
        if case.on_gpu and case.devices > options.gpus:
            continue
        arguments = {"batch": case.batch, "size": case.size, "bfloat16": case.on_gpu}
        if case.network == "mask_rcnn":
            arguments |= {"kind": "instance", "objects": options.objects}
        else:
            arguments |= {"kind": "semantic", "network": case.network}
        sides = [
            Side("segjax", "segjax_scaling:train_step", arguments=(("devices", case.devices),))
        ]
        if case.devices == 1:
            sides.append(Side("torch", "torch_scaling:train_step", options.torch_python))
        timings = compare(sides, arguments, rounds=options.rounds, threads=options.threads)
        height, width = case.size
        name = f"{case.network}, {case.batch} × {height} × {width}, {case.devices} devices"
        memory = {
            side: timing.peak_bytes if case.on_gpu else timing.facts["step_bytes"]
            for side, timing in timings.items()
        }
        results.add(name, timings, devices=case.devices, memory_bytes=memory)
        shown = [f"{side} {count / MEBIBYTE:.0f} MiB" for side, count in memory.items()]
        planned = timings["segjax"].facts["xla_bytes"] / MEBIBYTE
        print(f"  memory: {', '.join(shown)}; XLA plans {planned:.0f} MiB a device", flush=True)


if __name__ == "__main__":
    main(tyro.cli(ScalingOptions, description=__doc__))
