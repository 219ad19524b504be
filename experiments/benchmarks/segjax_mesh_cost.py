"""The cost of a mesh of one device: its train step in turns with that of `pmap`.

    python experiments/benchmarks/segjax_mesh_cost.py --rounds 30

Both run the same U-Net on the same batch; the medians over the rounds are compared.
"""

import json
import statistics
import time
from dataclasses import dataclass

import jax
import numpy as np
import optax
import tyro

from segjax.inference.coverings import WholeImage
from segjax.models import UNet
from segjax.tasks import SemanticTask
from segjax.training.mesh_parallel import MeshParallel
from segjax.training.parallel import DataParallel
from segjax.training.state import create_state
from segjax.training.step import make_train_step


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark."""

    rounds: int = 30
    side: int = 128
    features: int = 16


def main(options: Options):
    side = options.side
    task = SemanticTask(
        model=UNet(2, features=options.features, padding="SAME", norm="batch", dropout_rate=0.0),
        classes=("ground", "object"),
        channels=3,
        covering=WholeImage((side, side)),
        preprocess=lambda example, rng: example,
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(2, side, side, 3)).astype(np.float32),
        "labels": rng.integers(0, 2, (2, side, side)).astype(np.int32),
    }
    optimizer, schedule = optax.sgd(0.01, momentum=0.9), optax.constant_schedule(0.01)
    first = create_state(task, optimizer, seed=0, batch=batch, ema=False)
    devices = (jax.devices()[0],)
    runs = {"pmap": DataParallel(devices), "mesh": MeshParallel(1, 1, devices=devices)}
    steps, states, placed, times = {}, {}, {}, {name: [] for name in runs}
    for name, parallel in runs.items():
        steps[name] = parallel.train_step(make_train_step(task, optimizer, schedule, seed=0))
        states[name] = parallel.replicate(jax.device_get(first))
        ((_, placed[name]),) = parallel.prefetch([batch])
    for turn in range(options.rounds + 2):
        for name in runs if turn % 2 else reversed(runs):
            started = time.perf_counter()
            states[name], metrics = steps[name](states[name], placed[name])
            jax.block_until_ready((states[name], metrics))
            if turn > 1:  # the first ones compile
                times[name].append(time.perf_counter() - started)
    medians = {name: 1e3 * statistics.median(each) for name, each in times.items()}
    least = {name: 1e3 * min(each) for name, each in times.items()}
    share = medians["mesh"] / medians["pmap"]
    print(json.dumps({"median_ms": medians, "least_ms": least, "mesh / pmap": share}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
