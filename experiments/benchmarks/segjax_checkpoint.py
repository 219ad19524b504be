"""segjax's side of `checkpoint_stall.py`: saving the state of a train step."""

import tempfile
import time
from pathlib import Path

import jax
import optax
import segjax_models

from segjax.training.checkpoint import Checkpoints
from segjax.training.parallel import DataParallel
from segjax.training.state import create_state


class Save:
    """A call that saves the next step and returns the seconds for which a run would stand still.

    The facts describe the last call: "finished_seconds", the time until the checkpoint is complete
    on disk, and "bytes", the size of the state.
    """

    def __init__(self, network: str):
        arguments = {"network": network, "batch": 1, "size": (64, 64), "bfloat16": False}
        task, data = segjax_models.semantic_problem(**arguments)
        optimizer = optax.sgd(segjax_models.SCHEDULE, momentum=0.9)
        state = create_state(task, optimizer, seed=0, batch=data, ema=False)
        self._parallel = DataParallel(devices=(jax.devices()[0],))
        self._state = self._parallel.replicate(state)
        self._folder = tempfile.TemporaryDirectory()
        self._checkpoints = Checkpoints(Path(self._folder.name))
        self.facts = {"bytes": sum(x.nbytes for x in jax.tree.leaves(self._state))}

    def __call__(self) -> float:
        self._state = jax.block_until_ready(self._state.replace(step=self._state.step + 1))
        start = time.perf_counter()
        self._checkpoints.save(
            self._parallel.as_global(self._state), data={"examples_seen": 0, "seed": 0}
        )
        stalled = time.perf_counter() - start
        self._checkpoints.wait()
        self.facts["finished_seconds"] = time.perf_counter() - start
        return stalled
