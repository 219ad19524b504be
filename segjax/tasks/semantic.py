"""Semantic segmentation: a class for each pixel, and instances where a data set asks for them."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax import visualize
from segjax.evaluation.evaluator import SummingEvaluator
from segjax.evaluation.metrics import Confusion
from segjax.evaluation.test_time_augmentation import View, augment, average_probabilities
from segjax.evaluation.tiling import Tiling, extract_tile, stitch, tile_positions
from segjax.losses.cross_entropy import IGNORE_LABEL, mean_valid_pixels
from segjax.losses.semantic import SemanticLoss


@dataclass(frozen=True)
class SemanticTask:
    """The task of `segjax.tasks` for a network that gives "logits" for each pixel.

    Attributes:
      model: a Linen module, images [batch, height, width, channels] to {"logits": ...}.
      classes: their names, background first.
      channels: of the images, 1 or 3.
      tiling: how the network covers an image of any size.
      preprocess: (example, None) → example with a float32 "image": a transform of
        `segjax.data.augment` that draws nothing, such as `Standardize`.
      loss_function: of logits and batch.
      metrics: besides the confusion matrix; see `segjax.evaluation.metrics`.
      views: the rotations and flips over which the probabilities are averaged.
      decode: probabilities [height, width, classes] → further entries of the prediction, such as
        "instances"; it may replace the "labels", which are otherwise the most probable classes.
      axis_name: of the mapped device axis, None on a single device without one.
    """

    model: nn.Module
    classes: tuple[str, ...]
    channels: int
    tiling: Tiling
    preprocess: Callable[[dict, None], dict]
    loss_function: SemanticLoss = SemanticLoss()
    metrics: tuple[Any, ...] = ()
    views: tuple[View, ...] = (View(),)
    decode: Callable[[np.ndarray], dict] | None = None
    axis_name: str | None = None

    def init(self, key, batch):
        return self.model.init(key, batch["image"][:1], train=False)

    def prepare(self, batch):
        count = mean_valid_pixels(batch["labels"], axis_name=self.axis_name)
        return {**batch, "normalizer": count}

    def loss(self, variables, batch, key, train: bool):
        outputs, updated = self.model.apply(
            variables,
            batch["image"],
            train=train,
            rngs={"dropout": key},
            mutable=["batch_stats"] if train else [],
        )
        logits, labels = outputs["logits"], batch["labels"]
        if logits.shape[:3] != labels.shape:
            raise ValueError(
                f"the network gives logits for {logits.shape[1:3]} pixels and the batch has labels "
                f"for {labels.shape[1:3]}; crop the labels in the input pipeline"
            )
        loss, terms = self.loss_function(logits, batch, axis_name=self.axis_name)
        correct = (labels != IGNORE_LABEL) & (jnp.argmax(logits, axis=-1) == labels)
        hits = jnp.sum(correct, axis=(1, 2)).astype(jnp.float32)
        normalizer = batch.get("normalizer", mean_valid_pixels(labels))
        metrics = {"pixel_accuracy": jnp.mean(hits / jnp.maximum(normalizer, 1e-6))}
        if len(terms) > 1:  # a single one is the loss itself
            metrics |= terms
        stats = updated.get("batch_stats", variables.get("batch_stats", {}))
        return loss, {"metrics": metrics, "batch_stats": stats}

    def predict(self, variables, batch):
        logits = self.model.apply(variables, batch["image"], train=False)["logits"]
        height, width = self.tiling.output_size
        top, left = (logits.shape[1] - height) // 2, (logits.shape[2] - width) // 2
        if min(top, left) < 0:
            raise ValueError(
                f"the network gives logits for {logits.shape[1:3]} pixels of an input of "
                f"{batch['image'].shape[1:3]}; the tiling keeps {self.tiling.output_size} of them"
            )
        kept = logits[:, top : top + height, left : left + width]
        return {"probabilities": jax.nn.softmax(kept)}

    def inputs(self, example: dict) -> Iterator[np.ndarray]:
        image = self.preprocess({"image": example["image"]}, None)["image"]
        for view in self.views:
            seen = augment(image, view)
            for position in tile_positions(seen.shape, self.tiling):
                yield extract_tile(seen, position, self.tiling)

    def merge(self, example: dict, outputs: Iterable[dict]) -> dict:
        """Returns "probabilities" [height, width, classes], "labels" and what `decode` adds."""
        tiles = (output["probabilities"] for output in outputs)

        def stitched(view):
            shape = augment(example["image"], view).shape
            count = len(tile_positions(shape, self.tiling))
            return stitch(itertools.islice(tiles, count), shape, self.tiling)

        probabilities = average_probabilities(map(stitched, self.views), self.views)
        prediction = {
            "probabilities": probabilities,
            "labels": probabilities.argmax(axis=-1).astype(np.uint8),
        }
        return prediction | (self.decode(probabilities) if self.decode else {})

    def evaluator(self) -> SummingEvaluator:
        return SummingEvaluator((Confusion(len(self.classes)), *self.metrics))

    def picture(self, example: dict, prediction: dict, score: float) -> np.ndarray:
        return visualize.panel(
            example["image"],
            example["labels"],
            prediction["labels"],
            title=example["id"],
            scores={"mean IoU": score},
            classes=self.classes,
            instances=example.get("instances") if "instances" in prediction else None,
            predicted_instances=prediction.get("instances"),
        )
