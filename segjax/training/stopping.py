"""Early stopping: training ends once its scores have not become better for a while."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from segjax.training.checkpoint import Checkpoints
from segjax.training.configuration import TrainConfig
from segjax.training.experiment import Experiment


@dataclass(frozen=True)
class EarlyStopping:
    """Counts the evaluations in a row that were not better than the best one before them.

    A score counts as better if it is strictly better; an undefined one does not. Every checkpoint
    records the count of the evaluations before it. So a resumed run stops where an uninterrupted
    one does, and all processes stop at the same step.

    Attributes:
      metric: the metric that ranks checkpoints.
      split: the split that it is measured on.
      minimize: whether a smaller value is better.
      num_steps: `train.num_steps`, at which training ends in any case.
      stop_after: `train.stop_after`, the count at which training stops; None never stops.
      best: the best value so far; None before the first.
      waited: the number of evaluations since then.
    """

    metric: str
    split: str
    minimize: bool
    num_steps: int
    stop_after: int | None
    best: float | None = None
    waited: int = 0

    def after(self, score: float | None) -> "EarlyStopping":
        """Returns the count after one more evaluation; a score of None or NaN is undefined."""
        if score is None or math.isnan(score):
            better = False
        elif self.best is None:
            better = True
        else:
            better = score < self.best if self.minimize else score > self.best
        if not better:
            return dataclasses.replace(self, waited=self.waited + 1)
        return dataclasses.replace(self, best=score, waited=0)

    @property
    def stops(self) -> bool:
        """Whether training stops, right after an evaluation."""
        return self.stop_after is not None and self.waited >= self.stop_after

    def ends(self, step: int) -> bool:
        """Whether training ends with a step that was just evaluated."""
        return step == self.num_steps or self.stops

    @property
    def reason(self) -> str:
        """Says why training stops."""
        evaluations = f"{self.waited} evaluations in a row" if self.waited > 1 else "one evaluation"
        score = f"{self.metric} on {self.split}"
        setting = f"(train.stop_after {self.stop_after})"
        if self.best is None:
            return f"{score} was undefined in {evaluations} {setting}"
        return f"{score} was not better than {self.best:.4f} in {evaluations} {setting}"

    def recorded(self) -> dict[str, Any]:
        """Returns the JSON values that a checkpoint records, saved before its own evaluation."""
        return dataclasses.asdict(self)


def check_evaluations(settings: TrainConfig) -> None:
    """Raises a ValueError if `stop_after` is set, but nothing is evaluated during training."""
    if settings.stop_after is not None and settings.eval_every is None:
        raise ValueError(
            f"train.stop_after={settings.stop_after} counts evaluations during training, but there "
            "are none: set train.eval_every, the number of steps between them"
        )


def stopping_so_far(
    experiment: Experiment, settings: TrainConfig, checkpoints: Checkpoints
) -> EarlyStopping:
    """Returns the count up to the newest checkpoint, its own evaluation included.

    It starts anew if checkpoints are ranked by another metric or split than before.
    """
    start = EarlyStopping(
        metric=experiment.best_metric,
        split=[*settings.eval_splits, *experiment.evaluation][0],
        minimize=experiment.minimize,
        num_steps=settings.num_steps,
        stop_after=settings.stop_after,
    )
    step = checkpoints.latest_step
    if step is None:
        return start
    before = _recorded(checkpoints, step)
    if any(before.get(key) != getattr(start, key) for key in ("metric", "split", "minimize")):
        return start
    now = dataclasses.replace(start, best=before["best"], waited=before["waited"])
    return now.after(checkpoints.score(step)) if checkpoints.evaluated(step) else now


def has_ended(checkpoints: Checkpoints, stopping: EarlyStopping) -> bool:
    """Whether a run took its last step and evaluated it.

    A run that stopped early goes on if `num_steps` or `stop_after` has changed since.
    """
    step = checkpoints.latest_step
    if step is None or not checkpoints.evaluated(step):
        return False
    if step == stopping.num_steps:
        return True
    before = _recorded(checkpoints, step)
    plan = ("num_steps", "stop_after")
    return stopping.stops and all(before.get(key) == getattr(stopping, key) for key in plan)


def stop_message(stopping: EarlyStopping, checkpoints: Checkpoints) -> str:
    """Says at which step and why a run stopped, and which of its checkpoints is best."""
    return (
        f"stopped at step {checkpoints.latest_step}, since {stopping.reason}; the best checkpoint "
        f"is that of step {checkpoints.best_step}"
    )


def _recorded(checkpoints: Checkpoints, step: int) -> dict[str, Any]:
    return checkpoints.data(step).get("stopping", {})
