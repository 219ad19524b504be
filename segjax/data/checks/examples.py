"""Refuses examples that a task cannot use: all that are read, and many before the first step."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from segjax.data.augmentation.photometric import check_pixel_range, to_eight_bits
from segjax.data.checks.labels import find_problems, find_split_problems, image_problems
from segjax.data.checks.report import SplitReport
from segjax.data.loading.ordered_map import map_in_threads
from segjax.messages.lists import list_problems

# Examples of each split that are read before the first step. More would delay the start: a
# thousand photographs take about ten seconds on two cores.
CHECKED_BEFORE_TRAINING = 500


class BadData(ValueError):
    """Data that a task cannot use; the message names the example, the cause and what is right."""


@dataclass(frozen=True)
class ExampleCheck:
    """Transform: raises `BadData` for an example that a task cannot use.

    Other examples stay as they are, unless `pixel_range` converts their image.

    Attributes:
      num_classes: number of the task's classes.
      channels: numbers of channels that an image may have.
      dtypes: types of pixels that the task's preprocessing takes.
      required: entries that an example must have.
      pixel_range: values that become 0 and 255 in images of other types than `dtypes`, such as
        (0, 65535); see `to_eight_bits`. None refuses such images.
      background: the class that no instance may have; None if there is none.
    """

    num_classes: int
    channels: tuple[int, ...]
    dtypes: tuple[str, ...] = ("uint8", "uint16", "float32")
    required: tuple[str, ...] = ("image",)
    pixel_range: tuple[float, float] | None = None
    background: int | None = 0

    def __post_init__(self):
        check_pixel_range(self.pixel_range)

    def __call__(self, example: dict, rng: np.random.Generator | None) -> dict:
        example = self.convert(example)
        if problems := self.problems(example):
            raise BadData("; ".join(problems))
        return example

    def convert(self, example: dict) -> dict:
        """Maps the image to 8 bits by `pixel_range` if the task does not take its type."""
        image = example.get("image")
        if self.pixel_range is None or not isinstance(image, np.ndarray):
            return example
        if image.dtype.name in self.dtypes or image.dtype.kind not in "uif":
            return example
        if not np.isfinite(image).all():  # `problems` says so
            return example
        return {**example, "image": to_eight_bits(image, self.pixel_range)}

    def problems(self, example: dict) -> list[str]:
        """Lists what is wrong with an example, one sentence each."""
        missing = [key for key in self.required if key not in example]
        if missing:
            has = ", ".join(map(repr, example)) or "nothing"
            return [f"it has no {missing[0]!r}; it has {has}"]
        found = image_problems(example["image"], channels=self.channels, dtypes=self.dtypes)
        return found or find_problems(
            example, num_classes=self.num_classes, background=self.background
        )

    def check_image(self, example: dict) -> dict:
        """Returns the example, converted; raises `BadData` if the network cannot read its image."""
        example = self.convert(example)
        problems = image_problems(example["image"], channels=self.channels, dtypes=self.dtypes)
        if problems:
            raise BadData("; ".join(f"{example.get('id', 'image')}: {each}" for each in problems))
        return example


def check_for(task) -> ExampleCheck:
    """Returns the check of what a task of `segjax.tasks` reads."""
    return ExampleCheck(
        num_classes=len(task.classes),
        channels=task.image_channels,
        dtypes=getattr(task.preprocess, "dtypes", ExampleCheck.dtypes),
        required=task.entries,
        pixel_range=getattr(task, "pixel_range", None),
        background=getattr(task, "background_class", None),
    )


def check_before_training(
    sources: Mapping[str, Sequence[dict]],
    check: ExampleCheck,
    *,
    part: Callable[[int], range] = range,
    gather: Callable[[dict[str, SplitReport]], Iterable[dict[str, SplitReport]]] | None = None,
    progress: bool = True,
) -> dict[str, SplitReport]:
    """Reads examples of each split and refuses a split with a problem.

    Up to `CHECKED_BEFORE_TRAINING` examples of each split are read, spread over it evenly. Training
    and evaluation check every other example when they read it. A source may have a method
    `file_problems`, which finds what is wrong with all its files by their headers, by example.

    Args:
      sources: the sources by split; "train" is the one that is trained on.
      check: the check of the task.
      part: maps a length to the indices that this process reads.
      gather: returns the reports of all processes, if each reads a part. What only a whole split
        shows is then looked for in all parts together.
      progress: show a bar.

    Returns:
      A report by split on the examples that were read, as the task reads them.

    Raises:
      BadData: naming up to five problems of each split, and the number of others.
    """
    problems, reports = {}, {}
    for name, source in sources.items():
        if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
            problems[name] = [
                f"expected a source with __len__ and __getitem__, such as a list, found "
                f"{type(source).__name__}"
            ]
        elif not len(source):
            problems[name] = ["no examples"]
        else:
            problems[name], reports[name] = _check_split(name, source, check, part, progress)
    if gather is not None:
        parts = list(gather(reports))
        reports = {name: SplitReport(0) for name in reports}
        for name, report in reports.items():
            for each in parts:
                report.merge(each.get(name, SplitReport(0)))
    for name, report in reports.items():
        if not problems[name]:
            problems[name] += find_split_problems(
                report, num_classes=check.num_classes, trained=name == "train"
            )
        if "boxes" in check.required and not _has_objects(name, sources[name], report):
            problems[name].append("no example has an object that is not a crowd")
    if any(problems.values()):
        raise BadData("\n".join(list_problems(*each) for each in problems.items() if each[1]))
    return reports


def _check_split(
    name: str, source: Any, check: ExampleCheck, part: Callable[[int], range], progress: bool
) -> tuple[list[str], SplitReport]:
    """Reads some examples of the own part of a split; returns their problems and a report."""
    own = part(len(source))
    listed = getattr(source, "file_problems", dict)()
    listed = {index: problem for index, problem in listed.items() if index in own}
    count = min(len(own), CHECKED_BEFORE_TRAINING)
    indices = np.linspace(own.start, own.stop - 1, count).astype(int).tolist()
    indices = [index for index in indices if index not in listed]
    read = map_in_threads(partial(_problems_of, source, check), indices)
    title, total = f"checking {name}", len(indices)
    bar = tqdm(read, title, total, unit="image", leave=False, disable=not progress)
    report, problems = SplitReport(count), [*listed.values()]
    for example, found in bar:
        problems += found
        if not found:
            report.add(example)
    return problems, report


def open_sources(openers: Mapping[str, Callable[[], Sequence[dict]]]) -> dict[str, Sequence[dict]]:
    """Opens the source of each split, in this order.

    Raises:
      OSError, ValueError: a source cannot be opened; the message gives the reasons of all.
    """
    sources, errors = {}, {}
    for name, opener in openers.items():
        try:
            sources[name] = opener()
        except (OSError, ValueError) as error:
            errors.setdefault(str(error), error)
    if len(errors) == 1:
        raise next(iter(errors.values()))
    if errors:
        raise BadData(list_problems("the data", [*errors]))
    return sources


def _has_objects(name: str, source: Sequence[dict], report: SplitReport) -> bool:
    """Whether a split has an object that is not a crowd, as far as the source or reading tells."""
    counts = getattr(source, "object_counts", None)
    if counts is not None:
        return bool(np.any(counts))
    all_read = len(report.instances) == len(source)
    return name != "train" or not all_read or report.objects.total() > report.crowds


def _problems_of(
    source: Sequence[dict], check: ExampleCheck, index: int
) -> tuple[Mapping, list[str]]:
    """Returns an example, empty if it cannot be read, and its problems."""
    name = f"example {index} of {len(source)}"
    try:
        example = source[index]
    # A user's own source may raise anything.
    except Exception as error:
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        return {}, [f"{name}: {kind}{error}"]
    if not isinstance(example, Mapping):
        return {}, [f"{name}: expected a dict, found {type(example).__name__}"]
    example = check.convert(example)
    if "id" in example:
        name = f"{name}, id {example['id']!r}"
    return example, [f"{name}: {problem}" for problem in check.problems(example)]
