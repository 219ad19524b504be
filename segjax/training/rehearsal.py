"""Tries an evaluation before the first step, so that a mistake in it costs no training."""

import traceback
from collections.abc import Callable
from pathlib import Path

from segjax.messages.hints import did_you_mean
from segjax.training.logging import json_ready


class FaultyEvaluation(ValueError):
    """Predicting, scoring or drawing an example fails; the message says where."""


def rehearse(
    task, predictions: Callable, example: dict, split: str, *, best_metric: str | None = None
):
    """Predicts, scores and draws an example, and discards the result.

    Args:
      task: see `segjax.tasks`.
      predictions: examples → pairs of an example and its prediction.
      example: an example of the split, with an "id".
      best_metric: a metric that must be a single number; None requires none.

    Raises:
      FaultyEvaluation: one of these fails, or no metric of that name is a number.
    """
    doing = "predicting"
    try:
        ((example, prediction),) = predictions([example])
        doing = "scoring"
        evaluator = task.evaluator()
        score = evaluator.update(example, prediction)
        total = task.evaluator()
        total.merge(evaluator.state())
        metrics = total.result()
        json_ready(metrics | {"intervals": total.intervals()})
        doing = "drawing"
        task.picture(example, prediction, score)
    except Exception as error:
        raise FaultyEvaluation(
            f"{doing} example {example['id']!r} of split {split!r} fails: {_describe(error)}"
        ) from error
    known = [name for name, value in metrics.items() if isinstance(value, int | float)]
    if best_metric is not None and best_metric not in known:
        hint = did_you_mean(best_metric, known, cutoff=0.5) or "."
        raise FaultyEvaluation(
            f"train.best_metric, or else the experiment's own, is {best_metric!r}; expected a "
            f"metric of split {split!r} that is one number{hint} There are {', '.join(known)}"
        )


def _describe(error: Exception) -> str:
    """Describes an error in one line, with the line of code that raised it.

    The user's own code is named if it is among the callers.
    """
    frames = traceback.extract_tb(error.__traceback__)
    package, library = Path(__file__).resolve().parents[1], Path(traceback.__file__).parent
    others = ("site-packages", str(package), str(library))
    own = [frame for frame in frames if not any(place in frame.filename for place in others)]
    frame = (own or frames)[-1]
    first_line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first_line} ({frame.filename}, line {frame.lineno})"
