"""Instance segmentation: a class, a box and a mask for each object."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from segjax.inference.instance_views import merge_views, to_original_frame
from segjax.inference.paste import PasteRule, paste_to_rle
from segjax.losses import detection
from segjax.models.mask_rcnn import MaskRCNN
from segjax.models.regions import AnchorSampling, RegionSampling, repeat_valid
from segjax.models.roi_heads import select_class
from segjax.models.rpn import RPN_BOX_WEIGHTS, ProposalConfig, propose
from segjax.ops.boxes import encode_boxes
from segjax.ops.devices import mean_count
from segjax.ops.masks import targets_from_boxes
from segjax.pictures.instances import instance_panel

SIDE_MULTIPLE = 32  # of an image that fits no bucket


@dataclass(frozen=True)
class DetectionLoss:
    """Weights and forms of the five losses; the defaults are detectron2's."""

    objectness: float = 1.0
    rpn_box: float = 1.0
    classes: float = 1.0
    box: float = 1.0
    mask: float = 1.0
    rpn_beta: float = 0.0
    """Where the RPN's smooth L1 becomes linear; torchvision 1/9, the paper's code 1/9."""
    box_beta: float = 0.0
    """The same of the box head; torchvision 1/9, the paper's code 1."""
    rpn_normalizer: Literal["fixed", "sampled"] = "fixed"
    """Divide the RPN's losses by the anchors that were asked for (detectron2), or by those that
    were found (torchvision)."""


@dataclass(frozen=True)
class InstanceView:
    """One way to look at an image.

    Attributes:
      resize: (example, None) → example with the "image" resized: a transform such as
        `segjax.data.augmentation.instance.ResizeShortSide` with a single length.
      flip: exchange left and right.
    """

    resize: Callable[[dict, None], dict]
    flip: bool = False


@dataclass(frozen=True)
class InstanceTask:
    """The task of `segjax.tasks` for Mask R-CNN.

    Attributes:
      model: see `segjax.models.MaskRCNN`.
      classes: their names, background first.
      channels: of the images.
      buckets: (height, width) to which images are padded, the smallest that fits; few, since each
        is compiled for. Sides that fit none are padded to a multiple of 32.
      preprocess: (example, None) → example with a float32 "image"; padding is zero after it.
      views: over which the detections of an image are merged.
      make_evaluator: returns an object with the evaluator's methods, such as
        `segjax.evaluation.instance_evaluator.CocoEvaluator`.
      loss_function: weights and forms of the losses.
      proposals: how training chooses them; prediction's way is the model's.
      anchor_sampling, region_sampling: what the losses look at.
      mask_targets: (masks, boxes of the masks, regions, index of each region's mask, size=side) →
        targets of one image's regions; by default from masks in the frames of their boxes.
      paste_rule: how masks become pixels; see `segjax.inference.paste`.
      mask_threshold: a pixel of at least this probability is the object's.
    """

    model: MaskRCNN
    classes: tuple[str, ...]
    channels: int
    buckets: tuple[tuple[int, int], ...]
    preprocess: Callable[[dict, None], dict]
    views: tuple[InstanceView, ...]
    make_evaluator: Callable[[], Any]
    loss_function: DetectionLoss = DetectionLoss()
    proposals: ProposalConfig = ProposalConfig(pre_nms=2000)
    anchor_sampling: AnchorSampling = AnchorSampling()
    region_sampling: RegionSampling = RegionSampling()
    mask_targets: Callable[..., jax.Array] = targets_from_boxes
    paste_rule: PasteRule = "detectron2"
    mask_threshold: float = 0.5

    def init(self, key, batch):
        return self.model.init(key, batch["image"][:1], train=False)

    def prepare(self, batch):
        return batch

    def loss(self, variables, batch, key, train: bool):
        """Computes the five losses of Mask R-CNN on a batch of packed examples.

        Anchors and regions are drawn by a key for each example, from its "index", so that the
        draw does not depend on the devices.
        """

        def outputs(model):
            return self._outputs(model, batch, key, train)

        (terms, metrics), updated = self.model.apply(
            variables, method=outputs, mutable=["batch_stats"] if train else []
        )
        loss = sum(getattr(self.loss_function, name) * term for name, term in terms.items())
        stats = updated.get("batch_stats", variables.get("batch_stats", {}))
        return loss, {"metrics": terms | metrics, "batch_stats": stats}

    def _outputs(self, model: MaskRCNN, batch, key, train: bool):
        """The losses of one device's batch, stage by stage."""
        images, truth, classes = batch["image"], batch["boxes"], batch["classes"]
        keys = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(key, index)))(
            batch["index"]
        )
        levels = model.pyramid(images, train)
        rpn = model.rpn_outputs(levels, image_size=images.shape[1:3], train=train)
        proposals = propose(*rpn, batch["size"], self.proposals)
        regions = jax.vmap(self.region_sampling)(
            keys[:, 1], proposals["boxes"], proposals["valid"], truth, classes
        )
        # Positive ones come first: the mask head looks at no others.
        masked = {
            name: value[:, : self.region_sampling.positives] for name, value in regions.items()
        }
        terms = self._rpn_losses(rpn, keys[:, 0], truth, classes)
        terms |= self._box_losses(model, levels, regions, truth, train)
        terms["mask"] = self._mask_loss(model, levels, masked, batch, train)
        metrics = {
            "positive_regions": jnp.mean(jnp.sum(regions["positive"], axis=1, dtype=jnp.float32)),
            "dropped_objects": jnp.mean(batch["dropped"].astype(jnp.float32)),
        }
        return terms, metrics

    def _rpn_losses(self, rpn, keys, truth, classes):
        objectness, deltas, anchors = rpn
        objectness, deltas = (jnp.concatenate(levels, axis=1) for levels in (objectness, deltas))
        anchors = jnp.concatenate(anchors)
        drawn = jax.vmap(self.anchor_sampling, in_axes=(0, None, 0, 0))(
            keys, anchors, truth, classes > 0
        )
        index, positive, valid = drawn["index"], drawn["positive"], drawn["valid"]
        targets = encode_boxes(take(truth, drawn["matched"]), anchors[index], RPN_BOX_WEIGHTS)
        if self.loss_function.rpn_normalizer == "fixed":
            normalizer = float(self.anchor_sampling.size * index.shape[0])
        else:
            normalizer = mean_count(valid)
        return {
            "objectness": detection.objectness_loss(
                take(objectness, index), positive, valid, normalizer=normalizer
            ),
            "rpn_box": detection.box_loss(
                take(deltas, index),
                targets,
                positive,
                beta=self.loss_function.rpn_beta,
                normalizer=normalizer,
            ),
        }

    def _box_losses(self, model, levels, regions, truth, train):
        logits, deltas = model.box_outputs(levels, regions["boxes"], train)
        if not model.class_agnostic_boxes:
            chosen = jnp.maximum(regions["classes"], 1) - 1
            deltas = jnp.take_along_axis(deltas, chosen[..., None, None], axis=2)
        targets = encode_boxes(take(truth, regions["matched"]), regions["boxes"], model.box_weights)
        normalizer = mean_count(regions["valid"])
        return {
            "classes": detection.class_loss(
                logits, regions["classes"], regions["valid"], normalizer=normalizer
            ),
            "box": detection.box_loss(
                deltas[:, :, 0],
                targets,
                regions["positive"],
                beta=self.loss_function.box_beta,
                normalizer=normalizer,
            ),
        }

    def _mask_loss(self, model, levels, regions, batch, train):
        boxes = jax.vmap(repeat_valid)(regions["boxes"], regions["positive"])
        normalizer = mean_count(regions["positive"])

        def loss(logits, regions):
            positive, classes = regions["positive"], regions["classes"]
            targets = jax.vmap(partial(self.mask_targets, size=logits.shape[2]))(
                batch["masks"], batch["boxes"], regions["boxes"], regions["matched"]
            )
            if model.mask_loss == "softmax":
                return detection.softmax_mask_loss(
                    logits, targets, classes, positive, normalizer=normalizer
                )
            flat = logits.reshape(-1, *logits.shape[2:])
            if logits.shape[-1] == 1:
                chosen = flat[..., 0]
            else:
                chosen = select_class(flat, jnp.maximum(classes, 1).reshape(-1) - 1)
            chosen = chosen.reshape(logits.shape[:4])
            return detection.mask_loss(chosen, targets, positive, normalizer=normalizer)

        regions = regions | {"boxes": boxes}
        return model.sum_over_masks(loss, levels, regions, regions["positive"], train)

    def predict(self, variables, batch):
        found = self.model.apply(variables, batch["image"], batch["size"], train=False)
        return found | {"size": batch["size"]}  # for `merge`

    def inputs(self, example: dict) -> Iterator[dict[str, np.ndarray]]:
        for view in self.views:
            image = view.resize({"image": example["image"]}, None)["image"]
            if image.shape[2] < self.channels:  # grey
                image = image.repeat(self.channels, axis=2)
            image = self.preprocess({"image": image}, None)["image"]
            if view.flip:
                image = image[:, ::-1]
            height, width = image.shape[:2]
            bucket = self._bucket(height, width)
            padded = np.zeros((*bucket, image.shape[2]), np.float32)
            padded[:height, :width] = image
            yield {"image": padded, "size": np.array([height, width], np.int32)}

    def _bucket(self, height: int, width: int) -> tuple[int, int]:
        fitting = [size for size in self.buckets if size[0] >= height and size[1] >= width]
        if fitting:
            return min(fitting, key=lambda size: size[0] * size[1])
        return tuple(-(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE for side in (height, width))

    def merge(self, example: dict, outputs: Iterable[dict]) -> dict:
        """Returns "boxes", "scores", "classes" and "masks" (run lengths) in the image's pixels."""
        size = example["image"].shape[:2]
        views = []
        for view, output in zip(self.views, outputs, strict=True):
            valid = output["valid"]
            found = {name: output[name][valid] for name in ("boxes", "scores", "classes", "masks")}
            views.append(
                to_original_frame(found, view_size=output["size"], size=size, mirrored=view.flip)
            )
        found = views[0]
        if len(views) > 1:
            found = merge_views(
                views,
                iou_threshold=self.model.detections.nms_threshold,
                max_detections=self.model.detections.max_detections,
            )
        masks = paste_to_rle(
            found["masks"],
            found["boxes"],
            size,
            rule=self.paste_rule,
            threshold=self.mask_threshold,
        )
        return found | {"masks": masks}

    def evaluator(self):
        return self.make_evaluator()

    def picture(self, example: dict, prediction: dict, score: float) -> np.ndarray:
        return instance_panel(
            example,
            prediction,
            class_names=self.classes,
            title=example["id"],
            scores={"quality": score},
        )


def take(values, index):
    """Takes of [batch, n, ...] the entries at `index` [batch, m]: [batch, m, ...]."""
    return jax.vmap(lambda of_image, places: of_image[places])(values, index)
