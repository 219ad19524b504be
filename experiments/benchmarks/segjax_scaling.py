"""segjax's side of `scaling.py`: a train step on some devices, with XLA's plan of its memory."""

import jax
import optax
import segjax_models
from process_memory import WithMemory, resident_bytes

from segjax.training.parallel import DataParallel
from segjax.training.state import create_state
from segjax.training.step import make_train_step


def train_step(kind: str, devices: int, **arguments):
    """Builds a step on the first `devices` devices; a CPU simulates them.

    The fact "xla_bytes" is XLA's plan for one device: arguments, results and scratch.
    """
    jax.config.update("jax_num_cpu_devices", devices)
    parallel = DataParallel(devices=tuple(jax.devices()[:devices]))
    before = resident_bytes()
    task, data = getattr(segjax_models, f"{kind}_problem")(**arguments)
    optimizer = optax.sgd(segjax_models.SCHEDULE, momentum=0.9)
    state = create_state(task, optimizer, seed=0, batch=data, ema=False)
    state = parallel.replicate(state)
    schedule, frozen = segjax_models.SCHEDULE, None
    if kind == "instance":
        frozen = segjax_models.frozen_backbone
    step = parallel.train_step(make_train_step(task, optimizer, schedule, seed=0, frozen=frozen))
    ((_, batch),) = parallel.prefetch([data])
    del data
    step = step.lower(state, batch).compile()
    plan = step.memory_analysis()

    def call():
        nonlocal state
        state, metrics = step(state, batch)
        float(metrics["loss"])

    planned = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    planned += plan.temp_size_in_bytes
    return WithMemory(call, before=before, xla_bytes=planned)
