"""The training loop: data, state, step, resume, evaluate, checkpoint."""

import contextlib
import itertools
import math
import os
from collections import deque
from functools import partial

import jax

from segjax.data.checks.examples import check_before_training, check_for
from segjax.data.loading.loader import training_batches
from segjax.training import configuration
from segjax.training.checkpoint import Checkpoints
from segjax.training.evaluate import Evaluation, Evaluator, read_evaluations, write_evaluation
from segjax.training.experiment import Experiment
from segjax.training.interruption import stop_signals
from segjax.training.logging import MetricsLog
from segjax.training.optimizer import (
    frozen_parameters,
    learning_rate_schedule,
    make_optimizer,
)
from segjax.training.parallel import DataParallel, is_main_process, wait_for_all
from segjax.training.progress import Progress, Throughput
from segjax.training.run_directory import changed_versions, open_run
from segjax.training.state import TrainState, create_state
from segjax.training.step import make_train_step


class NonFiniteLoss(RuntimeError):
    """A loss or gradient was infinite or NaN; all checkpoints are from before that step."""


def train(
    experiment: Experiment,
    config: configuration.ExperimentConfig,
    *,
    experiment_file,
    parallel: DataParallel | None = None,
) -> dict[str, Evaluation]:
    """Trains or resumes the run in `config.workdir`; returns the last evaluations by split.

    If the run is killed, the same call continues from the last checkpoint. It ends with the same
    parameters, metrics and data order as an uninterrupted run, bit for bit.

    Args:
      parallel: the devices to train on; None takes all devices of all processes.

    Raises:
      NonFiniteLoss: a loss or gradient is not finite; the message names the step and its examples.
      ChangedConfiguration: the directory holds a run with another configuration.
      ValueError: the batch does not divide over the devices, or a name in `eval_splits` is unknown.
    """
    parallel = parallel or DataParallel()
    settings = config.train
    parallel.check_batch_size(settings.batch_size, settings.micro_batches)
    source = experiment.train()
    splits = {name: open_source() for name, open_source in experiment.evaluation.items()}
    for name in settings.eval_splits:
        if name not in splits:
            raise ValueError(f"train.eval_splits: no split {name!r}; there are {', '.join(splits)}")
    check_before_training(
        {"train": source, **splits}, check_for(experiment.task), progress=is_main_process()
    )
    if is_main_process():
        changed = changed_versions(config.workdir)
        resumed = open_run(config, experiment_file)
        _print_start(experiment, config, resumed, {"train": source, **splits}, parallel)
        if changed:
            print(
                f"versions changed since the last part of this run: {', '.join(changed)}; it goes "
                "on, but no longer equals an uninterrupted run bit for bit"
            )
    wait_for_all("run directory")
    with Checkpoints(
        config.workdir / "checkpoints",
        keep=settings.keep_checkpoints,
        best_metric=experiment.best_metric,
        minimize=experiment.minimize,
    ) as checkpoints:
        if checkpoints.latest_step != settings.num_steps:
            _train(experiment, config, source, splits, parallel, checkpoints)
    wait_for_all("trained")
    return read_evaluations(config.workdir)


def _train(experiment, config, source, splits, parallel, checkpoints):
    """Trains from the newest checkpoint, or else from the start, to the last step."""
    settings, main = config.train, is_main_process()
    schedule = experiment.schedule or learning_rate_schedule(
        config.optimizer, num_steps=settings.num_steps, batch_size=settings.batch_size
    )
    optimizer = (experiment.optimizer or partial(make_optimizer, config.optimizer))(schedule)
    step_function = parallel.train_step(
        make_train_step(
            experiment.task,
            optimizer,
            schedule,
            seed=config.seed,
            micro_batches=settings.micro_batches,
            ema_decay=settings.ema_decay,
            frozen=partial(frozen_parameters, config.optimizer),
        )
    )
    evaluator = Evaluator(
        experiment.task, parallel, batch_size=settings.eval_batch_size, workdir=config.workdir
    )

    along_the_way = settings.eval_splits or [*splits][:1]

    start = checkpoints.latest_step or 0
    examples_seen = checkpoints.data(start)["examples_seen"] if start else 0
    batches = training_batches(
        source,
        (check_for(experiment.task), *experiment.transforms),
        batch_size=settings.batch_size,
        seed=config.seed,
        start=examples_seen // settings.batch_size,
        groups=None if experiment.groups is None else experiment.groups(source),
        num_workers=_worker_count(settings.num_workers),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with (
        contextlib.closing(batches),
        MetricsLog(config.workdir, resume_step=start or None, write=main) as log,
        Progress(settings.num_steps, first_step=start, write=main) as progress,
        stop_signals() as stop,
    ):
        if start:
            progress.message(f"resuming from step {start}")
        first = next(batches)
        state = _first_state(experiment, optimizer, config, first, checkpoints, parallel)
        feed = parallel.prefetch(itertools.chain([first], batches))
        # (step, example indices, metrics) of the steps that the device may still be computing.
        unchecked = deque()
        throughput = Throughput()

        def check(leave=0):
            """Waits for all but the last `leave` steps; raises if one is not finite.

            The gradient is checked as well as the loss: it can overflow and spoil the parameters
            while the loss of the same step is finite.
            """
            while len(unchecked) > leave:
                step, indices, metrics = unchecked.popleft()
                for name in ("loss", "gradient_norm"):
                    if not math.isfinite(metrics[name]):
                        log.metrics(step, "train", jax.device_get(metrics))
                        raise NonFiniteLoss(_describe_failure(step, name, metrics, indices, source))

        def save(metrics=None):
            seen = examples_seen + (int(state.step) - start) * settings.batch_size
            data = {"examples_seen": seen, "seed": config.seed}
            checkpoints.save(parallel.as_global(state), data=data, metrics=metrics)

        def evaluate_and_save(names):
            scored = {name: splits[name] for name in names}
            save(_evaluate(experiment, config, scored, evaluator, state, log, progress))

        if settings.num_steps == 0:
            evaluate_and_save(dict.fromkeys([*along_the_way, *splits]))
        for step in range(start + 1, settings.num_steps + 1):
            host_batch, device_batch = next(feed)
            state, metrics = step_function(state, device_batch)
            unchecked.append((step, host_batch["index"], metrics))
            throughput.add(settings.batch_size)
            last = step == settings.num_steps
            evaluate = last or (settings.eval_every and step % settings.eval_every == 0)
            keep = step % settings.checkpoint_every == 0 or stop

            if step == start + 1:  # includes compilation
                check()
                throughput.restart()
            if step % settings.log_every == 0 or last:
                check()
                values, rate = jax.device_get(metrics), throughput.read()
                speed = {} if rate is None else {"images_per_second": round(rate, 3)}
                log.metrics(step, "train", {"loss": values["loss"]} | values | speed)
                progress.update(step, loss=float(values["loss"]), images_per_second=rate)
            else:
                check(leave=1)  # the device computes this step while the host checks the last one
                progress.update(step)
            if evaluate:
                check()
                evaluate_and_save(dict.fromkeys([*along_the_way, *(splits if last else ())]))
            elif keep:
                check()
                save()
            if evaluate or keep:
                throughput.restart()
            if stop and not last:
                checkpoints.wait()
                raise KeyboardInterrupt(
                    f"stopped by signal {stop[0]}; the same command resumes from step {step}"
                )


def _first_state(experiment, optimizer, config, batch, checkpoints, parallel) -> TrainState:
    """Returns the state that the run starts or resumes from, on all devices."""
    create = partial(
        create_state,
        experiment.task,
        optimizer,
        seed=config.seed,
        ema=config.train.ema_decay is not None,
    )
    step = checkpoints.latest_step
    if step is None:
        state = create(batch=batch)
        if experiment.initialize is not None:
            state = state.starting_from(
                experiment.initialize(
                    jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
                )
            )
        if experiment.frozen is not None:
            state = state.replace(frozen=experiment.frozen())
        return parallel.replicate(state)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.replicated),
        jax.eval_shape(lambda: create(batch=batch)),
    )
    return checkpoints.restore(step, like)


def _evaluate(experiment, config, splits, evaluator, state, log, progress) -> dict[str, float]:
    """Scores the splits, logs and draws the results; returns the first split's scalars."""
    step = int(state.step)
    results = [
        evaluator.evaluate(
            state.variables, source, split=split, step=step, final=step == config.train.num_steps
        )
        for split, source in splits.items()
    ]
    for result in results:
        log.metrics(step, result.split, result.scalars)
        if is_main_process():
            write_evaluation(
                result,
                classes=experiment.task.classes,
                headline=experiment.best_metric,
                workdir=config.workdir,
            )
            for name, picture in result.pictures.items():
                log.picture(step, f"{result.split}/{name}", picture)
        key = experiment.best_metric
        progress.message(
            f"step {step}  {result.split}  {key} {result.metrics.get(key, math.nan):.4f}"
        )
    return results[0].scalars


def _describe_failure(step, name, metrics, indices, source) -> str:
    names = ", ".join(str(source[int(index)].get("id", index)) for index in indices)
    return (
        f"the {name.replace('_', ' ')} of step {step} is {float(metrics[name])}. Its examples: "
        f"{names}. The checkpoints are from before it; a lower learning rate or "
        "optimizer.clip_norm may help."
    )


def _print_start(experiment, config, resumed, sources, parallel):
    """Prints the resolved configuration, the data's sizes, the devices and a scaled learning rate.

    An experiment's own schedule does not scale with the batch.
    """
    print(f"{'resuming' if resumed else 'starting'} {config.workdir}")
    print(configuration.describe(configuration.to_dict(config)))
    sizes = ", ".join(f"{name} {len(source)}" for name, source in sources.items())
    device = parallel.mesh.devices.flat[0]
    print(f"examples: {sizes}; devices: {parallel.mesh.size} × {device.device_kind}")
    optimizer, size = config.optimizer, config.train.batch_size
    if experiment.schedule is None and size != optimizer.reference_batch_size:
        scaled = optimizer.learning_rate * size / optimizer.reference_batch_size
        print(
            f"learning rate {optimizer.learning_rate:g} for batches of "
            f"{optimizer.reference_batch_size}, scaled to {scaled:g} for batches of {size}"
        )


def _worker_count(num_workers):
    if num_workers is not None:
        return num_workers
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return 0 if cores < 4 else cores // 2
