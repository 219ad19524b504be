"""Runs an experiment file as a command: command line, training, report, user's errors."""

import os
import sys
import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import jax

from segjax.commands.errors import EXPECTED, end_with_message, message_of
from segjax.data.checks.examples import BadData
from segjax.ops.batch_statistics import SingleValueStatistics
from segjax.report import write_report
from segjax.training import configuration
from segjax.training.checksums import DamagedCheckpoint
from segjax.training.evaluate import Evaluation
from segjax.training.interruption import Stopped
from segjax.training.loop import NonFiniteLoss, train
from segjax.training.meeting import TRY_AGAIN, Meeting, ProcessesDiffer
from segjax.training.parallel import MainProcessFailed, is_main_process, wait_for_all
from segjax.training.run_directory import ChangedConfiguration
from segjax.training.run_lock import RunLocked
from segjax.training.set_up import set_up
from segjax.training.storage import StorageFailure, storage_failures

# Their messages say all: no traceback is kept. FaultyEvaluation is not among them, since the
# traceback shows where the user's own code failed.
REFUSALS = (
    BadData,
    ChangedConfiguration,
    DamagedCheckpoint,
    FileNotFoundError,
    MainProcessFailed,
    NonFiniteLoss,
    ProcessesDiffer,
    RunLocked,
    SingleValueStatistics,
    StorageFailure,
)


def run(
    config_class,
    build,
    experiment_file,
    arguments: list[str] | None = None,
    *,
    variants: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, Evaluation]:
    """Parses the command line, sets JAX up, builds the experiment, trains it and reports.

    Args:
      config_class: a subclass of `ExperimentConfig`.
      build: config → `Experiment`.
      experiment_file: the file that defines both, `__file__`.
      arguments: the command line; None takes this process's.
      variants: named changes of the defaults; see `configuration.parse`.

    Returns:
      The last evaluation of each split.
    """
    config = configuration.parse(config_class, arguments, variants=variants)
    try:
        meeting = set_up(config)
    except (ProcessesDiffer, ValueError) as error:
        sys.exit(f"error: {error}")
    if meeting is None:
        return _train_and_report(build, config, experiment_file)
    try:
        results = _train_and_report(build, config, experiment_file, meeting)
        wait_for_all("report")
    except BaseException as end:
        if isinstance(end, SystemExit) and end.code == TRY_AGAIN:  # as in the other processes
            _part(meeting)
            raise
        _end_for_all(end, meeting)
    _part(meeting)
    return results


def _train_and_report(
    build, config, experiment_file, meeting: Meeting | None = None
) -> dict[str, Evaluation]:
    """Trains and writes the report; a user's error ends in SystemExit with one line.

    Several processes end by a SIGTERM together, and exit with `TRY_AGAIN`, as one process does.
    """
    try:
        results = train(build(config), config, experiment_file=experiment_file)
        if is_main_process():
            with storage_failures(config.workdir):
                report = write_report([config.workdir], config.workdir / "report.html")
            print(f"\nreport    {report}\npictures  {config.workdir / 'predictions'}")
        return results
    except REFUSALS as error:
        sys.exit(f"error: {message_of(error)}")
    except EXPECTED as error:
        if meeting is not None:  # perhaps what follows from another process's end
            meeting.wait_for_news()
        end_with_message(error)
    except Stopped as stop:
        print(f"\n{stop}", file=sys.stderr)
        sys.exit(TRY_AGAIN if stop.signal == "SIGTERM" else 130)
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'stopped'}", file=sys.stderr)
        sys.exit(130)


def _part(meeting: Meeting):
    """Parts from the other processes, which all end here too.

    JAX alone would part when Python ends. A process that fails there would abort those that wait.
    """
    jax.distributed.shutdown()
    meeting.leave()


def _end_for_all(end: BaseException, meeting: Meeting) -> NoReturn:
    """Tells the other processes why this one ends, and ends it.

    It ends at once, since JAX would wait for the others at the exit.
    """
    status = 1
    if not isinstance(end, SystemExit):
        traceback.print_exception(end)
    elif isinstance(end.code, int):
        status = end.code
    else:
        print(end.code, file=sys.stderr)
    cause = end.__context__ if isinstance(end, SystemExit) else end
    meeting.leave(message_of(cause or end))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
