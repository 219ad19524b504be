"""The examples of a run: opened, checked, and the same for all processes."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax

from segjax.data.checks.examples import check_before_training, check_for, open_sources
from segjax.data.checks.report import SplitReport
from segjax.data.loading.part import own_part
from segjax.data.sources.protocol import Source
from segjax.training.experiment import Experiment
from segjax.training.parallel import check_same_data, gather_bytes, is_main_process


@dataclass(frozen=True)
class RunData:
    """The examples of a run.

    Attributes:
      train: the source of training examples.
      splits: the source of each evaluation split, by name.
      pixels: the types and the range of the training images; see `SplitReport.pixels`.
      parts: the number of parts that training draws from, one for each process; 1 for the whole.
    """

    train: Source
    splits: Mapping[str, Source]
    pixels: Mapping[str, list]
    parts: int = 1

    @property
    def sizes(self) -> dict[str, int]:
        """The number of examples of "train" and of each split."""
        return {name: len(each) for name, each in {"train": self.train, **self.splits}.items()}


def open_data(experiment: Experiment, *, part_only: bool) -> RunData:
    """Opens the sources of an experiment and checks them; every process must call this.

    Args:
      part_only: each process reads its own part only; all parts together are then checked.

    Raises:
      BadData: an example cannot be used; the message names it.
      ProcessesDiffer: the processes see other data.
      OSError, ValueError: a source cannot be opened.
    """
    sources = open_sources({"train": experiment.train, **experiment.evaluation})
    count = jax.process_count()
    part = partial(own_part, process_index=jax.process_index(), process_count=count)
    reports = check_before_training(
        sources,
        check_for(experiment.task),
        part=part if part_only else range,
        gather=_gather if part_only else None,
        progress=is_main_process(),
    )
    check_same_data({name: reports[name].digest(len(sources[name])) for name in sources})
    return RunData(
        sources["train"],
        {name: sources[name] for name in experiment.evaluation},
        reports["train"].pixels(),
        count if part_only else 1,
    )


def _gather(reports: dict[str, SplitReport]) -> list[dict[str, SplitReport]]:
    return [pickle.loads(each) for each in gather_bytes(pickle.dumps(reports))]
