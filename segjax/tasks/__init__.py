"""Tasks: a model, its loss and its decoding, as pure functions of variables and batch.

The training code knows a task by this protocol alone (no task inherits from another):

- `init(key, batch) -> variables`, the Flax collections "params" and "batch_stats".
- `prepare(batch) -> batch` adds what depends on the whole batch on all devices, before it is cut
  into micro-batches.
- `loss(variables, batch, key, train) -> (loss, aux)`: a scalar whose mean over devices and
  micro-batches is the loss of the whole batch; aux has "metrics" (scalars averaged likewise) and
  "batch_stats".
- `inputs(example) -> iterator of dicts of arrays`, "image" among them, cuts one example into what
  the network reads, `predict(variables, batch) -> dict of arrays` runs on a batch of these, and
  `merge(example, outputs) -> prediction` puts the outputs for one example together.
- `evaluator()` makes an object with `update(example, prediction) -> score`, `state() -> bytes`,
  `merge(state)` and `result() -> dict`, which adds up over examples and processes.
- `picture(example, prediction, score) -> uint8 [height, width, 3]` shows one result to people.
"""

from segjax.tasks.instance import InstanceTask
from segjax.tasks.semantic import SemanticTask

__all__ = ["InstanceTask", "SemanticTask"]
