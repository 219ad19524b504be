"""`segjax evaluate --images DIR --masks DIR`: scores a model, or label maps, on one's own masks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from segjax.commands.errors import UserError, user_errors
from segjax.commands.models import check_rows, load_trained_run, load_weights
from segjax.commands.scoring import check_writable, score_sources, score_table
from segjax.data.folders.mask_format import Holds
from segjax.data.folders.source import FolderSource, read_masks
from segjax.data.folders.stored_mask import read_stored_mask
from segjax.data.orientation import Orientation
from segjax.data.sources.instance import ObjectSource
from segjax.evaluation.evaluator import SummingEvaluator
from segjax.evaluation.metrics import CellTracking, Confusion, Metric
from segjax.labels import IGNORE_LABEL, background_class
from segjax.pretrained.published import Published
from segjax.recipes.folders import FolderData, class_names
from segjax.training.evaluate import Evaluation, evaluation_name, write_evaluation


@dataclass(frozen=True)
class MaskFlags:
    """What the flags of the command say about the masks; see `FolderData`."""

    masks: Path
    mask_suffix: str | None = None
    unmatched: Literal["refuse", "skip"] = "refuse"
    class_masks: Path | None = None
    holds: Holds | None = None
    values: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def folder_data(self, images: Path, **fields: Any) -> FolderData:
        """Returns the folders, with further fields of `FolderData`."""
        flags = {name: value for name, value in vars(self).items() if name not in fields}
        return FolderData(images=images, **flags, **fields)


def open_folders(
    images: Path,
    flags: MaskFlags,
    *,
    classes: Sequence[str],
    channels: int,
    recorded: FolderData | None = None,
    instances: bool = False,
    orientation: Orientation = "upright",
) -> FolderSource:
    """Opens folders to score a model on.

    Args:
      images, flags: the folders, and what the masks hold.
      classes: the names of the model's classes.
      channels: the channels that the model reads.
      recorded: the folders of the model's training; masks are read in the same way, unless the
        flags say otherwise.
      instances: whether the model finds objects.
      orientation: how files with an EXIF orientation are read.

    Raises:
      ValueError: files do not match, or the masks do not hold the model's classes.
    """
    holds, values, ignored = flags.holds, flags.values, flags.ignored
    if recorded is not None and not (holds or values or ignored):
        holds, values, ignored = recorded.holds, recorded.values, recorded.ignored
        if recorded.class_masks is not None and flags.class_masks is None:
            raise ValueError(
                f"the masks of the training had classes in a second folder, {recorded.class_masks};"
                " give that of these masks by --class-masks DIR"
            )
    if instances and holds is None and not values:
        holds = "instances"
    data = flags.folder_data(
        images,
        holds=holds,
        values=values,
        ignored=ignored,
        classes=tuple(classes),
        channels=channels,
        orientation=orientation,
    )
    if instances and not data.has_objects:
        raise ValueError(
            f"the model finds objects, but --values {' '.join(values)} are classes; with --holds "
            "components each connected region is an object"
        )
    return whole_source(data)


def whole_source(data: FolderData) -> FolderSource:
    """Opens all examples of folders as one split.

    Raises:
      ValueError: the folders have problems, which the message lists.
    """
    whole = replace(data, division=replace(data.division, val_share=0.0)).resolved()
    source = whole.read().sources["train"]
    if problems := source.file_problems():
        raise ValueError(next(iter(problems.values())))
    return source


def evaluate_images(
    model: Path,
    images: Path,
    flags: MaskFlags,
    *,
    weights: Path | None,
    checkpoint: str,
    settings: Sequence[str],
    batch_size: int | None,
    rows: int,
    output: Path | None,
) -> None:
    """Scores a run, a published folder or converted weights on folders of images and masks.

    Raises:
      UserError: the model or the folders cannot be used, or a model other than a run has no folder
        for the scores.
    """
    recorded, step = None, 0
    if weights is not None:
        if output is None:
            raise UserError(f"{model} needs --output DIR, the folder for scores and pictures")
        trained = load_weights(str(model), weights)
        description = f"{model} from {weights}"
    else:
        trained = run = load_trained_run(model, checkpoint, settings=settings)
        if isinstance(run, Published):
            if output is None:
                raise UserError(
                    "a published folder needs --output DIR, the folder for scores and pictures"
                )
            with user_errors():
                recorded = _recorded_masks(run)
        else:
            recorded = getattr(run.config, "data", None)
        step, description = run.step or 0, run.description
        batch_size = batch_size or run.eval_batch_size
    check_rows(rows, trained)
    folder = output or model
    check_writable(folder)
    task = trained.segmenter
    finds_objects = hasattr(task, "make_evaluator")
    with user_errors():
        source = open_folders(
            images,
            flags,
            classes=task.classes,
            channels=task.channels,
            recorded=recorded if isinstance(recorded, FolderData) else None,
            instances=finds_objects,
        )
    print(f"evaluating {description} on {len(source)} images of {images}")
    score_sources(
        trained,
        {
            evaluation_name(f"images_{images.resolve().name}", settings): ObjectSource(source)
            if finds_objects
            else source
        },
        step=step,
        headline="mask_AP" if finds_objects else "mean_iou",
        folder=folder,
        batch_size=batch_size or 1,
        rows=rows,
        matmul_precision=trained.matmul_precision,
    )


def _recorded_masks(model: Published) -> FolderData:
    """How the masks of a published model's training were read."""
    second = model.masks.get("class_masks")
    return FolderData(
        **{**model.masks, "class_masks": None if second is None else Path(second)},
    )


def evaluate_labels(labels: Path, flags: MaskFlags, *, output: Path | None) -> None:
    """Scores label maps, such as those of `segjax predict`, against masks, and prints the scores.

    Pixel values of the label maps are class numbers, or for masks of objects the numbers of
    objects. Label maps do not tell the classes of objects, so that objects count as one class.

    Args:
      labels: the folder of the label maps; their names fit those of the masks.
      flags: what the masks hold.
      output: a folder for the scores as JSON; None writes none.

    Raises:
      UserError: files do not match, or a label map has other values than class numbers.
    """
    data = flags.folder_data(labels, channels=1)
    with user_errors():
        source = whole_source(data)
        holds = source.mask_format.holds
        count = len(source.mask_format.values) if holds == "classes" else 2
        classes = class_names(holds, count)
        metrics: list[Metric] = [
            Confusion(len(classes), background=background_class(classes)),
            *([CellTracking()] if holds != "classes" else []),
        ]
        evaluator, rows = SummingEvaluator(metrics), []
        read = _predictions(source, len(classes))
        bar = tqdm(read, "scoring", len(source), unit="image", leave=False, disable=None)
        for example, prediction in bar:
            rows.append({"id": example["id"], "score": evaluator.update(example, prediction)})
    result = Evaluation("labels", 0, evaluator.result(), rows, evaluator.intervals())
    print(f"\n{score_table([result], first='mean_iou')}\n")
    if output is not None:
        check_writable(output)
        path = write_evaluation(result, classes=classes, headline="mean_iou", workdir=output)
        print(f"numbers   {path}")


def _predictions(source: FolderSource, count: int) -> Iterator[tuple[dict, dict]]:
    for pair in source.pairs:
        stored = read_stored_mask(pair.image, page=pair.page)
        if stored.ndim != 2:
            raise UserError(f"{pair.image}: colours; expected class numbers, as segjax predict has")
        truth, _ = read_masks(pair, source.mask_format, source.class_format, source.orientation)
        example = {"id": pair.id, **truth}
        if source.mask_format.holds != "classes":
            labels = truth["labels"]
            example["labels"] = np.where(labels == IGNORE_LABEL, labels, labels > 0)
            prediction = {"labels": (stored > 0).astype(np.uint8), "instances": stored}
        else:
            if stored.max() >= count:
                raise UserError(
                    f"{pair.image}: value {stored.max()}; expected class numbers from 0 to "
                    f"{count - 1}"
                )
            prediction = {"labels": stored.astype(np.uint8)}
        yield example, prediction
