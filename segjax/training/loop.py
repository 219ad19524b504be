"""The training loop: data, state, step, resume, evaluate, checkpoint."""

import contextlib
import itertools
import math
from collections import deque
from dataclasses import replace
from functools import partial

import jax

from segjax.data.checks.examples import check_for
from segjax.data.loading.loader import training_batches
from segjax.data.loading.read_ahead import worker_count
from segjax.ops.batch_statistics import SingleValueStatistics
from segjax.training import configuration
from segjax.training.changes import changes, recorded
from segjax.training.checkpoint import Checkpoints
from segjax.training.data import RunData, open_data
from segjax.training.evaluate import Evaluation, Evaluator, read_evaluations
from segjax.training.experiment import Experiment
from segjax.training.hold import Watch, hold_run
from segjax.training.interruption import Stopped, stop_signals
from segjax.training.logging import MetricsLog
from segjax.training.optimizer import frozen_parameters, learning_rate_schedule, make_optimizer
from segjax.training.parallel import is_main_process, wait_for_all
from segjax.training.progress import Progress, Throughput
from segjax.training.scoring import log_results, score_splits
from segjax.training.state import TrainState, create_state, state_shapes
from segjax.training.step import make_train_step
from segjax.training.stopping import (
    check_evaluations,
    has_ended,
    stop_message,
    stopping_so_far,
)
from segjax.training.strategies import Strategy, strategy_of
from segjax.training.tracking import check_tracker, open_trackers


class NonFiniteLoss(RuntimeError):
    """A loss or gradient was infinite or NaN; all checkpoints are from before that step."""


def train(
    experiment: Experiment,
    config: configuration.ExperimentConfig,
    *,
    experiment_file,
    parallel: Strategy | None = None,
) -> dict[str, Evaluation]:
    """Trains or resumes the run in `config.workdir`; returns the last evaluations by split.

    If the run is killed, the same call continues from the last checkpoint. It ends with the same
    parameters, metrics and data order as an uninterrupted run, bit for bit. A run that has ended,
    by `train.num_steps` or `train.stop_after`, is left as it is.

    Args:
      experiment_file: the Python file that defines the experiment; the run keeps a copy.
      parallel: the devices to train on and how; None takes all devices of all processes, as
        `config.parallel` says.

    Raises:
      NonFiniteLoss: a loss or gradient is not finite; the message names the step and its examples.
      ChangedConfiguration: the directory holds a run with another configuration.
      RunLocked: another run writes to the directory.
      DamagedCheckpoint: the directory has checkpoints, but none is intact.
      StorageFailure: the directory cannot be written; the message says what is safe.
      BadData: an example cannot be used; the message names it.
      ProcessesDiffer: the processes see other data or another run directory.
      FaultyEvaluation: an evaluation fails on its first example, before the first step.
      SingleValueStatistics: the batch is too small for a batch norm of the network.
      ValueError: batch or images do not divide over the devices, a name in `eval_splits` is
        unknown, `stop_after` is set without `eval_every`, or the package of `track` is missing.
    """
    experiment = experiment.ranked_by(config.train.best_metric)
    parallel = parallel or strategy_of(config.parallel)
    parallel = replace(parallel, matmul_precision=config.matmul_precision)
    settings = config.train
    parallel.check_task(experiment.task)
    parallel.check_batch_size(settings.batch_size, settings.micro_batches)
    for name in settings.eval_splits:
        if name not in experiment.evaluation:
            known = ", ".join(experiment.evaluation)
            raise ValueError(f"train.eval_splits: no split {name!r}; there are {known}")
    check_evaluations(settings)
    check_tracker(config.track)
    data = open_data(experiment, part_only=settings.part_only)

    def announce(resumed):
        _print_start(experiment, config, resumed, data, parallel)

    with (
        hold_run(config, experiment_file, announce) as lock,
        Checkpoints(
            config.workdir / "checkpoints",
            keep=settings.keep_checkpoints,
            best_metric=experiment.best_metric,
            minimize=experiment.minimize,
        ) as checkpoints,
    ):
        stopping = stopping_so_far(experiment, settings, checkpoints)
        if not has_ended(checkpoints, stopping):
            _train(experiment, config, data, parallel, checkpoints, stopping, lock)
        elif checkpoints.latest_step != settings.num_steps and is_main_process():
            print(stop_message(stopping, checkpoints))
    wait_for_all("trained")
    return read_evaluations(config.workdir)


def _train(experiment, config, data, parallel, checkpoints, stopping, lock):
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

    resumed = checkpoints.latest_step is not None
    start = checkpoints.latest_step or 0
    before = checkpoints.data(start) if resumed else {"examples_seen": 0}
    examples_seen = before["examples_seen"]
    batches = training_batches(
        data.train,
        (check_for(experiment.task), *experiment.transforms),
        batch_size=settings.batch_size,
        seed=config.seed,
        start=examples_seen // settings.batch_size,
        groups=None if experiment.groups is None else experiment.groups(data.train),
        num_workers=worker_count(settings.num_workers),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        part_only=settings.part_only,
    )
    with (
        contextlib.closing(batches),
        Progress(settings.num_steps, first_step=start, write=main) as progress,
        MetricsLog(
            config.workdir,
            resume_step=start if resumed else None,
            evaluated=checkpoints.evaluated(start),
            trackers=open_trackers(config, say=progress.message),
            write=main,
        ) as log,
        stop_signals() as asked_to_stop,
    ):
        if resumed:
            progress.message(f"resuming from step {start}")
            for change in changes(start, before, recorded(schedule, start, data)):
                progress.message(change)
        first = next(batches)
        parallel.check_batch(first)
        state = _first_state(experiment, optimizer, config, first, checkpoints, parallel)
        watch = Watch(
            config.workdir,
            lock=lock if main else None,
            checkpoints=checkpoints,
            state=state,
            say=progress.message,
        )
        for split, examples in data.splits.items():
            ranks = split == stopping.split
            evaluator.rehearse(
                state.variables,
                examples,
                split=split,
                best_metric=experiment.best_metric if ranks else None,
            )
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
                        raise NonFiniteLoss(_describe_failure(step, name, metrics, indices, data))

        def save():
            watch.check()
            step = int(state.step)
            seen = examples_seen + (step - start) * settings.batch_size
            kept = {"examples_seen": seen, "seed": config.seed}
            kept |= recorded(schedule, step, data) | {"stopping": stopping.recorded()}
            checkpoints.save(parallel.as_global(state), data=kept)

        def is_due(step):
            """Whether a step is evaluated."""
            last = step == settings.num_steps
            return last or (step and settings.eval_every and step % settings.eval_every == 0)

        def evaluate(step) -> bool:
            """Scores a state that is already saved, so that a failure here costs no training.

            Returns whether the run ends here.
            """
            nonlocal stopping
            results, stopping = score_splits(
                evaluator, state, data.splits, settings=settings, stopping=stopping
            )
            early = stopping.stops and step < settings.num_steps
            log_results(
                results,
                log,
                progress,
                experiment=experiment,
                config=config,
                stopped=stopping.reason if early else None,
            )
            checkpoints.add_metrics(step, results[0].scalars)
            if early:
                progress.message(stop_message(stopping, checkpoints))
            return stopping.ends(step)

        if settings.num_steps == 0:
            save()
        killed = is_due(start) and not checkpoints.evaluated(start)  # before the evaluation
        if killed and evaluate(start):
            return
        for step in range(start + 1, settings.num_steps + 1):
            host_batch, device_batch = next(feed)
            try:
                state, metrics = step_function(state, device_batch)
            except SingleValueStatistics as error:
                raise _with_batch_sizes(error, settings) from error
            unchecked.append((step, host_batch["index"], metrics))
            throughput.add(settings.batch_size)
            last = step == settings.num_steps
            due = is_due(step)
            stop = asked_to_stop(step)
            keep = due or step % settings.checkpoint_every == 0 or stop

            if step == start + 1:  # includes compilation
                check()
                throughput.restart()
            if step % settings.log_every == 0 or last:
                check()
                values, rate = jax.device_get(metrics), throughput.read()
                speed = {} if rate is None else {"images_per_second": round(rate, 3)}
                log.metrics(step, "train", {"loss": values["loss"]} | values | speed)
                progress.update(step, loss=float(values["loss"]), images_per_second=rate)
                watch.check()
            else:
                check(leave=1)  # the device computes this step while the host checks the last one
                progress.update(step)
            if keep:
                check()
                save()
                if due and evaluate(step):
                    return
                throughput.restart()
            if stop:
                checkpoints.wait()
                raise Stopped(stop, step)


def _first_state(experiment, optimizer, config, batch, checkpoints, parallel) -> TrainState:
    """Returns the state that the run starts or resumes from, on all devices."""
    averaged = config.train.ema_decay is not None
    settings = {"seed": config.seed, "batch": batch, "ema": averaged}
    step = checkpoints.latest_step
    if step is None:
        state = create_state(experiment.task, optimizer, **settings)
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
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.sharding_of(x)),
        state_shapes(experiment.task, optimizer, **settings),
    )
    return checkpoints.restore(step, like)


def _describe_failure(step, name, metrics, indices, data: RunData) -> str:
    names = ", ".join(str(data.train[int(index)].get("id", index)) for index in indices)
    return (
        f"the {name.replace('_', ' ')} of step {step} is {float(metrics[name])}. Its examples: "
        f"{names}. The checkpoints are from before it; a lower learning rate or "
        "optimizer.clip_norm may help."
    )


def _with_batch_sizes(error, settings) -> SingleValueStatistics:
    """Adds to a batch norm's error the batch sizes that would do.

    Statistics are over all devices, so the error means one device with one example at a time.
    """
    parts = settings.micro_batches
    return SingleValueStatistics(
        f"{error}. With --train.batch-size {settings.batch_size} on 1 device and "
        f"--train.micro-batches {parts}, it sees one example at a time: take a batch of at least "
        f"{2 * parts}, on one device or two" + (", or fewer micro-batches" if parts > 1 else "")
    )


def _print_start(experiment, config, resumed, data, parallel):
    """Prints the resolved configuration, what follows from it, and the data's sizes.

    An experiment's own schedule does not scale with the batch.
    """
    print(f"{'resuming' if resumed else 'starting'} {config.workdir}")
    print(configuration.describe(configuration.to_dict(config)))
    sizes = ", ".join(f"{name} {size}" for name, size in data.sizes.items())
    device = parallel.mesh.devices.flat[0]
    print(f"examples: {sizes}; devices: {parallel.mesh.size} × {device.device_kind}")
    best = "smallest" if experiment.minimize else "largest"
    print(f"best checkpoint: the one with the {best} {experiment.best_metric}")
    optimizer, size = config.optimizer, config.train.batch_size
    if experiment.schedule is None and size != optimizer.reference_batch_size:
        scaled = optimizer.learning_rate * size / optimizer.reference_batch_size
        print(
            f"learning rate {optimizer.learning_rate:g} for batches of "
            f"{optimizer.reference_batch_size}, scaled to {scaled:g} for batches of {size}"
        )
