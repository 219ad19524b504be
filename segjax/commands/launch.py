"""Runs an experiment file as a command: command line, training, report, user's errors."""

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from segjax.commands.errors import EXPECTED, end_with_message, message_of
from segjax.data.checks.examples import BadData
from segjax.ops.batch_statistics import SingleValueStatistics
from segjax.report import write_report
from segjax.training import configuration
from segjax.training.checksums import DamagedCheckpoint
from segjax.training.evaluate import Evaluation
from segjax.training.loop import NonFiniteLoss, train
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
    set_up(config)
    try:
        results = train(build(config), config, experiment_file=experiment_file)
        if is_main_process():
            with storage_failures(config.workdir):
                report = write_report([config.workdir], config.workdir / "report.html")
            print(f"\nreport    {report}\npictures  {config.workdir / 'predictions'}")
    except REFUSALS as error:
        sys.exit(f"error: {message_of(error)}")
    except EXPECTED as error:
        end_with_message(error)
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'stopped'}", file=sys.stderr)
        sys.exit(130)
    wait_for_all("report")
    return results
