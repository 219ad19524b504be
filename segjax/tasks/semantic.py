"""Semantic segmentation: a class for each pixel, and optionally instances."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax.evaluation.evaluator import SummingEvaluator
from segjax.evaluation.metrics import Confusion, Metric, Unrefined
from segjax.inference.coverings import Covering
from segjax.inference.views import (
    View,
    augment,
    augmented_size,
    average_probabilities,
)
from segjax.labels import BACKGROUND, IGNORE_LABEL, background_class, check_classes
from segjax.losses.cross_entropy import mean_valid_pixels
from segjax.losses.semantic import SemanticLoss
from segjax.losses.terms import LossTerm, extra_terms
from segjax.ops.devices import fold_in_device
from segjax.pictures import overlays as visualize


@dataclass(frozen=True)
class SemanticTask:
    """The task for a network that returns "logits" for each pixel; see `protocol.Task`.

    Attributes:
      model: a Linen module that maps images [batch, height, width, channels] to {"logits": ...}.
      classes: names of the classes.
      channels: number of channels of the images, 1 or 3.
      covering: how the network covers an image of any size; see `segjax.inference.coverings`.
      preprocess: (example, None) → example with a float32 "image": a deterministic transform of
        `segjax.data.augmentation.semantic`, such as `Standardize`.
      loss_function: maps the network's outputs and the batch to the loss.
      extra_losses: further terms by name, which are added to the loss and logged. Each is a
        function (outputs, batch, variables) → scalar of all outputs of the network; see
        `segjax.losses.terms.LossTerm`. The batch has "normalizer", the number of valid pixels of
        an image; see `cross_entropy`.
      metrics: further metrics beside the confusion matrix; see `segjax.evaluation.metrics`.
      evaluation_model: the model that predicts with the same variables if it differs from `model`,
        such as DeepLab at another output stride.
      input_size: maps the (height, width) of an image to the size that it is resized to for the
        network, such as `ShortSide(520)`; None keeps it. Predictions are resized back.
      views: scales, rotations and flips over which the probabilities are averaged.
      refine: (probabilities, image) → probabilities [height, width, classes], such as a fully
        connected CRF. The prediction keeps the labels from before as "unrefined_labels".
      decode: probabilities [height, width, classes] → further entries of the prediction, such as
        "instances". It may replace "labels", which are the most probable classes by default.
      pixel_range: values that become 0 and 255 in images of types that `preprocess` does not take,
        such as (0, 65535); None refuses them.
      background: the name of the class that is the background, if any class has it; see
        `background_class`. Pictures leave it uncoloured, scores "without background" leave it out,
        and so does the Dice loss unless told otherwise.
    """

    entries: ClassVar[tuple[str, ...]] = ("image", "labels")

    model: nn.Module
    classes: tuple[str, ...]
    channels: int
    covering: Covering
    preprocess: Callable[[dict, None], dict]
    loss_function: SemanticLoss = SemanticLoss()
    extra_losses: Mapping[str, LossTerm] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    evaluation_model: nn.Module | None = None
    input_size: Callable[[tuple[int, int]], tuple[int, int]] | None = None
    views: tuple[View, ...] = (View(),)
    refine: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    decode: Callable[[np.ndarray], dict] | None = None
    pixel_range: tuple[float, float] | None = None
    background: str = BACKGROUND

    def __post_init__(self):
        check_classes(self.classes)
        background_class(self.classes, self.background)  # refuses a name that no class has
        if len(self.classes) > IGNORE_LABEL:
            raise ValueError(
                f"{len(self.classes)} classes; at most {IGNORE_LABEL} fit label maps of 8 bits"
            )
        self.loss_function.check_classes(self.classes)

    @property
    def background_class(self) -> int | None:
        """The class id of the background; None if no class is the background."""
        return background_class(self.classes, self.background)

    @property
    def image_channels(self) -> tuple[int, ...]:
        return (self.channels,)

    def init(self, key, batch):
        return self.model.init(key, batch["image"][:1], train=False)

    def prepare(self, batch):
        return {**batch, "normalizer": mean_valid_pixels(batch["labels"])}

    def loss(self, variables, batch, key, train: bool):
        outputs, updated = self.model.apply(
            variables,
            batch["image"],
            train=train,
            rngs={"dropout": fold_in_device(key)},
            mutable=["batch_stats"] if train else [],
        )
        logits, labels = outputs["logits"], batch["labels"]
        if logits.shape[:3] != labels.shape:
            raise ValueError(
                f"the network gives logits for {logits.shape[1:3]} pixels and the batch has labels "
                f"for {labels.shape[1:3]}; crop the labels in the input pipeline"
            )
        loss, terms = self.loss_function(outputs, batch, background=self.background_class)
        correct = (labels != IGNORE_LABEL) & (jnp.argmax(logits, axis=-1) == labels)
        hits = jnp.sum(correct, axis=(1, 2)).astype(jnp.float32)
        normalizer = batch.get("normalizer", mean_valid_pixels(labels))
        metrics = {"pixel_accuracy": jnp.mean(hits / jnp.maximum(normalizer, 1e-6))}
        extra = extra_terms(self.extra_losses, outputs, batch, variables, taken=(*metrics, *terms))
        if len(terms) + len(extra) > 1:  # a single term is the loss itself
            metrics |= terms | extra
        stats = updated.get("batch_stats", variables.get("batch_stats", {}))
        return sum(extra.values(), start=loss), {"metrics": metrics, "batch_stats": stats}

    def predict(self, variables, batch):
        model = self.evaluation_model or self.model
        # Without mutable collections, apply returns the outputs alone.
        outputs = cast(dict, model.apply(variables, batch["image"], train=False))
        logits = outputs["logits"]
        height, width = self.covering.kept_size(batch["image"].shape[1:3])
        top, left = (logits.shape[1] - height) // 2, (logits.shape[2] - width) // 2
        if min(top, left) < 0:
            raise ValueError(
                f"the network gives logits for {logits.shape[1:3]} pixels of an input of "
                f"{batch['image'].shape[1:3]}; the covering keeps {(height, width)} of them"
            )
        kept = logits[:, top : top + height, left : left + width]
        return {"probabilities": jax.nn.softmax(kept)}

    def inputs(self, example: dict) -> Iterator[dict[str, np.ndarray]]:
        image = self.preprocess({"image": example["image"]}, None)["image"]
        size = self._size(image)
        for view in self.views:
            seen, covering = augment(image, view, size=size), self.covering.scaled(view.scale)
            for position in covering.positions(seen.shape):
                yield {"image": covering.extract(seen, position)}

    def merge(self, example: dict, outputs: Iterable[dict]) -> dict:
        """Returns "probabilities" [height, width, classes], "labels" and the options' entries."""
        image = example["image"]
        size = self._size(image)
        windows = (output["probabilities"] for output in outputs)

        def stitched(view):
            shape, covering = augmented_size(size, view), self.covering.scaled(view.scale)
            count = len(covering.positions(shape))
            return covering.stitch(itertools.islice(windows, count), shape)

        probabilities = average_probabilities(
            map(stitched, self.views), self.views, image.shape[:2]
        )
        prediction = {}
        if self.refine is not None:
            prediction["unrefined_labels"] = probabilities.argmax(axis=-1).astype(np.uint8)
            probabilities = self.refine(probabilities, image)
        prediction |= {
            "probabilities": probabilities,
            "labels": probabilities.argmax(axis=-1).astype(np.uint8),
        }
        return prediction | (self.decode(probabilities) if self.decode else {})

    def _size(self, image) -> tuple[int, int]:
        """Returns the height and width at which the network sees an image, at scale 1."""
        size = image.shape[:2]
        return size if self.input_size is None else self.input_size(size)

    def evaluator(self) -> SummingEvaluator:
        count = len(self.classes)
        confusion = Confusion(count, background=self.background_class)
        unrefined = (Unrefined(count),) if self.refine is not None else ()
        return SummingEvaluator((confusion, *unrefined, *self.metrics))

    def picture(self, example: dict, prediction: dict, score: float) -> np.ndarray:
        return visualize.panel(
            example["image"],
            example["labels"],
            prediction["labels"],
            title=example["id"],
            scores={"mean IoU": score},
            classes=self.classes,
            background=self.background_class,
            instances=example.get("instances") if "instances" in prediction else None,
            predicted_instances=prediction.get("instances"),
        )
