"""What a training would cost on an NVIDIA H100, estimated from compiled programs.

No measurement: the time of a step is the larger of two bounds, its arithmetic at the card's peak
and its memory traffic at the card's bandwidth. Real programs reach a part of both. Arithmetic and
traffic are those that XLA's compiler reports for the program on a TPU v5e, since it reports none
for GPUs.
"""

import json
from pathlib import Path

from segjax.ledger.rows import Row

# NVIDIA H100 Tensor Core GPU data sheet, SXM: bfloat16 without sparsity, and HBM3.
PEAK_FLOPS = 989e12
BANDWIDTH = 3.35e12  # bytes a second


def compiled_programs(folder: Path) -> dict[str, dict]:
    """Returns the compiled programs of `experiments/benchmarks/results`, by name.

    If a program was compiled several times, the one with the least traffic counts.
    """
    found = {}
    for path in sorted(Path(folder).glob("accelerator_fit_*.json")):
        for name, program in json.loads(path.read_text(encoding="utf-8"))["programs"].items():
            if not program.get("flops"):
                continue
            known = found.get(name)
            if known is None or program["bytes_accessed"] < known["bytes_accessed"]:
                found[name] = program
    return found


def least_hours(row: Row, programs: dict[str, dict]) -> float | None:
    """Returns the least hours of a row's training on one H100; None without a compiled program."""
    program = programs.get(row.program or "")
    if program is None or not row.steps or not row.batch_size:
        return None
    parts = row.batch_size / program["per_device"]
    seconds = max(program["flops"] / PEAK_FLOPS, program["bytes_accessed"] / BANDWIDTH)
    return row.steps * parts * seconds / 3600
