"""Writes published folders; `segjax.pretrained.published` describes the format and reads them."""

import dataclasses
import hashlib
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from safetensors.numpy import save

from segjax import __version__
from segjax.data.orientation import Orientation
from segjax.evaluation.instance_evaluator import CocoEvaluator
from segjax.export.model_card import model_card
from segjax.export.training_record import TrainingRecord
from segjax.files.atomic import whole_folder, write_bytes, write_json, write_text
from segjax.pretrained.converted import Pretrained
from segjax.pretrained.description import NotOfSegjax, describe
from segjax.pretrained.published import FACTS, FORMAT, WEIGHTS
from segjax.tasks.instance import InstanceTask
from segjax.tasks.semantic import SemanticTask

# Fields of tasks that only training reads. All of them have defaults.
TRAINING_ONLY = (
    *("loss_function", "extra_losses", "extra_mask_losses", "mask_targets"),
    *("proposals", "anchor_sampling", "region_sampling"),
)
PICTURES = "pictures"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What a folder says about its model beside the task.

    Attributes:
      name: the run's name, or the name of converted weights.
      step: the step of the run's checkpoint; None for converted weights.
      license: the licence as its publisher states it; None if they do not.
      orientation, pixels, masks, eval_batch_size: see `segjax.pretrained.published.Published`.
      about: lines of the experiment's header, such as "Data" and "Paper", by their names.
      record: what the run's files say about its training; None for converted weights.
    """

    name: str
    step: int | None = None
    license: str | None = None
    orientation: Orientation = "upright"
    pixels: dict[str, list] = dataclasses.field(default_factory=dict)
    masks: dict[str, Any] | None = None
    eval_batch_size: int = 1
    about: dict[str, str] = dataclasses.field(default_factory=dict)
    record: TrainingRecord | None = None


def write_published(model: Pretrained, output: Path, source: Source) -> list[str]:
    """Writes a folder that predicts anywhere; all of it or nothing.

    Args:
      model: a model with a task.
      output: the folder to write; it may exist if it is empty.
      source: what else the folder says.

    Returns:
      Notes on what was left out.

    Raises:
      NotOfSegjax: the network or another part of the task is not segjax's own.
      FileExistsError: the folder exists and holds something.
    """
    task, notes = describe_task(model.segmenter)
    arrays = {
        path: np.array(value, order="C")  # safetensors writes the bytes as they lie in memory
        for path, value in flax.traverse_util.flatten_dict(
            jax.device_get(model.variables), sep="/"
        ).items()
    }
    weights = save(arrays, metadata={"format": "flax", "segjax": __version__})
    record = source.record
    facts = {
        "format": FORMAT,
        "segjax": __version__,
        "source": source.name,
        "step": source.step,
        "license": source.license,
        "task": task,
        "images": {"dtypes": list(model.dtypes), "orientation": source.orientation},
        "pixels": source.pixels,
        "masks": source.masks,
        "prediction": {
            "batch_size": source.eval_batch_size,
            "matmul_precision": model.matmul_precision,
        },
        "weights": {
            "file": WEIGHTS,
            "sha256": hashlib.sha256(weights).hexdigest(),
            "parameters": sum(
                value.size for path, value in arrays.items() if path.startswith("params/")
            ),
        },
        "scores": {} if record is None else record.scores,
    }
    with whole_folder(output) as folder:
        write_bytes(folder / WEIGHTS, weights)
        write_text(folder / FACTS, _readable(facts))
        pictures = []
        if record is not None:
            training = {"experiment": record.experiment, "command": record.command}
            training |= {"config": record.config, "environment": dict(record.environment)}
            write_json(folder / "training.json", training)
            (folder / PICTURES).mkdir()
            for picture in record.pictures:
                shutil.copyfile(picture.path, folder / PICTURES / picture.path.name)
                pictures.append((picture.caption, f"{PICTURES}/{picture.path.name}"))
        card = model_card(
            model.segmenter,
            facts,
            name=output.resolve().name,
            about=source.about,
            record=record,
            pictures=pictures,
        )
        write_text(folder / "README.md", card)
    return notes


def _readable(facts: dict[str, Any]) -> str:
    """Returns JSON in which a list of numbers or words takes one line."""
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    # No string holds a line break, so that only the layout changes.
    simple = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")
    return simple.sub(lambda match: "[" + re.sub(r"\n\s+", " ", match[1]) + "]", text) + "\n"


def describe_task(task: SemanticTask | InstanceTask) -> tuple[dict[str, Any], list[str]]:
    """Returns a task as JSON values, and notes on scores that were left out.

    A score of one's own is left out, since prediction does not need it. A network, a step or a
    decoding of one's own is refused.

    Raises:
      NotOfSegjax: a part that prediction needs is not segjax's own; the message names it.
    """
    if type(task) not in (SemanticTask, InstanceTask):
        raise NotOfSegjax(f"task is {type(task).__qualname__}, which is not a part of segjax")
    notes = []
    if isinstance(task, SemanticTask):
        metrics = []
        for index, metric in enumerate(task.metrics):
            try:
                describe(metric, f"task.metrics[{index}]")
                metrics.append(metric)
            except NotOfSegjax as error:
                notes.append(f"left out: {error}")
        task = dataclasses.replace(task, metrics=tuple(metrics))
    else:
        try:
            describe(task.make_evaluator, "task.make_evaluator")
        except NotOfSegjax as error:
            notes.append(f"left out: {error}; COCO's scores take its place")
            usual = partial(CocoEvaluator, task.classes, category_ids=task.category_ids)
            task = dataclasses.replace(task, make_evaluator=usual)
    return describe(task, "task", without=TRAINING_ONLY), notes
