"""`segjax crf`: searches the parameters of the fully connected CRF as DeepLab v1 and v2 do."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tqdm import tqdm

from segjax.commands.errors import UserError
from segjax.commands.models import (
    BatchSize,
    Checkpoint,
    DataDir,
    check_batch_size,
    load_with_splits,
    open_split,
)
from segjax.files.atomic import write_json

if TYPE_CHECKING:
    from segjax.trained import TrainedRun

ROWS = 10  # settings shown in the table
Values = tyro.conf.arg(metavar="VALUE ...")


def crf_command(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN", help_behavior_hint="")],
    /,
    *,
    split: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the experiment's first)"),
    ] = None,
    images: Annotated[int, tyro.conf.arg(metavar="N")] = 100,
    appearance_weight: Annotated[tuple[float, ...], Values] = (3, 4, 5, 6),
    position_sigma: Annotated[tuple[float, ...], Values] = (30, 40, 50, 60, 70, 80, 90, 100),
    color_sigma: Annotated[tuple[float, ...], Values] = (3, 4, 5, 6),
    refinements: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
    checkpoint: Checkpoint = "best",
    data_dir: DataDir = None,
    batch_size: BatchSize = None,
) -> None:
    """Search for the best parameters of the fully connected CRF on a trained model's predictions.

    The search goes from coarse to fine as in DeepLab v2 (section 4.1.1): all combinations of the
    values first, then the neighbours of the best at half the distance. A parameter with a single
    value stays fixed. Writes RUN/crf_search.json. On two CPU cores, refining a 500×375 image takes
    about two seconds for each setting; the default ranges, v2's, have 128.

    Args:
      run: Run directory: the --workdir of a training, which may still be in progress.
      split: Split of the experiment to search on.
      images: Number of images to search on, evenly spread over the split.
      appearance_weight: w1, the weight of the kernel of position and colour.
      position_sigma: σ_α of that kernel, in pixels.
      color_sigma: σ_β of that kernel, in units of 0 to 255.
      refinements: How often to halve the distance.
    """
    ranges = {
        "appearance_weight": appearance_weight,
        "position_sigma": position_sigma,
        "color_sigma": color_sigma,
    }
    _check(ranges, {"images": (images, 1), "refinements": (refinements, 0)})
    check_batch_size(batch_size)
    trained = load_with_splits(run, checkpoint, data_dir=data_dir)
    experiment = trained.experiment
    if not hasattr(trained.task, "refine"):
        raise UserError(f"{run} does not predict class probabilities, which the CRF refines")
    if split is None:
        split = next(iter(experiment.evaluation))
    elif split not in experiment.evaluation:
        known = ", ".join(experiment.evaluation)
        raise UserError(f"--split {split}: the experiment of {run} has {known}")
    source = open_split(trained, split)
    images = min(images, len(source))
    examples = [source[place * len(source) // images] for place in range(images)]
    print(f"searching on {images} of {len(source)} images of {split}, {trained.description}")

    batch_size = batch_size or trained.config.train.eval_batch_size
    found = search(_Predictions(trained, examples, batch_size), ranges, refinements=refinements)

    print(f"\n{settings_table(found)}\n")
    path = _write(run, found, split=split, step=trained.step, images=images)
    best = found.ranked[0]
    settings = " ".join(f"prediction.crf.{k}={v:g}" for k, v in best.values.items())
    print(f"numbers   {path}")
    print(f"best      segjax evaluate {run} --set prediction.refine=true {settings}")
    if best.mean_iou <= found.unrefined:
        print("          This is no better than without a CRF.")


@dataclass(frozen=True)
class Setting:
    """Parameters of the CRF by their names in `CrfConfig`, and the mean IoU with them."""

    values: dict[str, float]
    mean_iou: float


@dataclass(frozen=True)
class Search:
    """The result of a search: the mean IoU without a CRF, and the settings, best first."""

    unrefined: float
    ranked: tuple[Setting, ...]


def search(predictions, ranges: Mapping[str, Sequence[float]], *, refinements: int) -> Search:
    """Scores all combinations of the values, then ever closer neighbours of the best.

    Ties go to the setting that was tried first.

    Args:
      predictions: an object with a length that yields (probabilities, image, labels, classes) for
        each image, and can be iterated more than once.
      ranges: the values of each parameter, by its name in `CrfConfig`.
      refinements: number of rounds after the first; each halves the distance.
    """
    settings = [dict(zip(ranges, v, strict=True)) for v in itertools.product(*ranges.values())]
    unrefined, *scores = _score(predictions, [None, *settings], "coarse")
    tried = list(zip(settings, scores, strict=True))
    steps = {name: _spacing(values) for name, values in ranges.items()}
    for number in range(refinements):
        best, _ = max(tried, key=lambda pair: pair[1])
        steps = {name: step / 2 for name, step in steps.items()}
        around = [
            sorted({value for value in (best[k] - step, best[k], best[k] + step) if value > 0})
            for k, step in steps.items()
        ]
        candidates = [dict(zip(best, v, strict=True)) for v in itertools.product(*around)]
        settings = [setting for setting in candidates if setting not in [s for s, _ in tried]]
        scores = _score(predictions, settings, f"finer ({number + 1} of {refinements})")
        tried += zip(settings, scores, strict=True)
    ranked = sorted(tried, key=lambda pair: -pair[1])
    return Search(unrefined, tuple(Setting(values, score) for values, score in ranked))


def settings_table(found: Search) -> str:
    """Formats the best settings as text, below the score without a CRF."""
    rows = [(*found.ranked[0].values, "mean_iou", "gain")]
    width = len(rows[0])
    rows.append((*["no CRF", *[""] * (width - 3)], f"{found.unrefined:.4f}", ""))
    for setting in found.ranked[:ROWS]:
        gain = setting.mean_iou - found.unrefined
        numbers = [f"{value:g}" for value in setting.values.values()]
        rows.append((*numbers, f"{setting.mean_iou:.4f}", f"{gain:+.4f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    more = len(found.ranked) - ROWS
    return "\n".join(lines + [f"... and {more} more"] * (more > 0))


@dataclass(frozen=True)
class _Predictions:
    """Predicts on every iteration: the probabilities of a hundred images would fill gigabytes."""

    trained: "TrainedRun"
    examples: Sequence[dict]
    batch_size: int

    def __len__(self):
        return len(self.examples)

    def __iter__(self):
        from segjax.trained import predict_all

        task = dataclasses.replace(self.trained.segmenter, refine=None)
        unrefined = dataclasses.replace(self.trained, task=task)
        predictions = predict_all(unrefined, iter(self.examples), batch_size=self.batch_size)
        for example, prediction in predictions:
            yield prediction["probabilities"], example["image"], example["labels"], task.classes


def _score(predictions, settings: Sequence[dict | None], name: str) -> list[float]:
    """Returns the mean IoU of each setting over all images; a setting of None is no CRF."""
    from segjax.evaluation import ConfusionMatrix
    from segjax.ops.dense_crf import CrfConfig, refine_probabilities

    matrices = []
    total = len(predictions) * sum(setting is not None for setting in settings)
    with tqdm(total=total, desc=name, unit="CRF", disable=None) as bar:
        for probabilities, image, labels, classes in predictions:
            matrices = matrices or [ConfusionMatrix(len(classes)) for _ in settings]
            for matrix, setting in zip(matrices, settings, strict=True):
                refined = probabilities
                if setting is not None:
                    refined = refine_probabilities(probabilities, image, CrfConfig(**setting))
                    bar.update()
                matrix.update(labels, refined.argmax(axis=-1))
    return [matrix.result()["mean_iou"] for matrix in matrices]


def _spacing(values: Iterable[float]) -> float:
    """The smallest distance between values; 0 for a single one, which stays fixed."""
    return min((b - a for a, b in itertools.pairwise(sorted(set(values)))), default=0)


def _check(ranges, counts) -> None:
    for name, values in ranges.items():
        if not values or not all(0 < value < math.inf for value in values):
            shown = " ".join(map(str, values))
            raise UserError(f"--{_flag(name)} {shown}: expected numbers greater than 0")
    for name, (count, least) in counts.items():
        if count < least:
            raise UserError(f"--{name} {count}: expected at least {least}")


def _write(run: Path, found: Search, **about) -> Path:
    values = {
        **about,
        "unrefined_mean_iou": found.unrefined,
        "settings": [{**s.values, "mean_iou": s.mean_iou} for s in found.ranked],
    }
    return write_json(run / "crf_search.json", values)


def _flag(name: str) -> str:
    return name.replace("_", "-")
