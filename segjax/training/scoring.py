"""An evaluation in the course of a run: scores the splits that are due, and logs the results."""

import math
from functools import partial

from segjax.training.configuration import ExperimentConfig, TrainConfig
from segjax.training.evaluate import Evaluation, Evaluator, write_evaluation
from segjax.training.experiment import Experiment
from segjax.training.logging import MetricsLog
from segjax.training.parallel import is_main_process
from segjax.training.progress import Progress
from segjax.training.state import TrainState
from segjax.training.stopping import EarlyStopping


def score_splits(
    evaluator: Evaluator,
    state: TrainState,
    splits: dict,
    *,
    settings: TrainConfig,
    stopping: EarlyStopping,
) -> tuple[list[Evaluation], EarlyStopping]:
    """Scores the splits that are due; if the run ends here, these are all of them.

    Args:
      splits: the opened source of each split, by name.
      stopping: the count of evaluations before this one.

    Returns:
      The evaluations, first that of the split that ranks the checkpoints; and the new count.
    """
    step, ranking = int(state.step), stopping.split
    score = partial(evaluator.evaluate, state.variables, step=step)

    def counted(metrics):
        return stopping.after(metrics.get(stopping.metric))

    # With early stopping, only its score says whether this evaluation is the last.
    final = step == settings.num_steps
    if settings.stop_after is not None:
        final = lambda metrics: counted(metrics).ends(step)  # noqa: E731
    first = score(splits[ranking], split=ranking, final=final)
    now = counted(first.metrics)
    last = now.ends(step)
    names = dict.fromkeys([*settings.eval_splits, *(splits if last else ())])
    others = [score(splits[name], split=name, final=last) for name in names if name != ranking]
    return [first, *others], now


def log_results(
    results: list[Evaluation],
    log: MetricsLog,
    progress: Progress,
    *,
    experiment: Experiment,
    config: ExperimentConfig,
    stopped: str | None,
):
    """Logs, prints, draws and writes the results of an evaluation.

    Args:
      stopped: why the run stops early; the first result's line of the log keeps it.
    """
    key = experiment.best_metric
    for place, result in enumerate(results):
        note = {"stopped": stopped} if stopped and place == 0 else {}
        log.metrics(result.step, result.split, result.scalars | note)
        if is_main_process():
            write_evaluation(
                result,
                classes=experiment.task.classes,
                headline=key,
                workdir=config.workdir,
            )
            drawn = {f"{result.split}/{name}": each for name, each in result.pictures.items()}
            log.pictures(result.step, drawn)
        progress.message(
            f"step {result.step}  {result.split}  {key} {result.metrics.get(key, math.nan):.4f}"
        )
