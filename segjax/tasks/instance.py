"""Instance segmentation: the task of Mask R-CNN, a class, a box and a mask for each object."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from segjax.inference.instance_tiles import InstanceTiles, Window, join_windows
from segjax.inference.instance_views import merge_views, to_original_frame
from segjax.inference.paste import PasteRule, paste_to_masks, paste_to_rle
from segjax.labels import check_classes
from segjax.losses.instance import DetectionLoss, take
from segjax.losses.terms import LossTerm, check_names, extra_terms
from segjax.models.detections import BOX_WEIGHTS
from segjax.models.groups import sum_over_groups
from segjax.models.mask_rcnn import MASK_GROUP, MaskRCNN
from segjax.models.regions import AnchorSampling, RegionSampling, repeat_valid
from segjax.models.rpn import RPN_BOX_WEIGHTS, ProposalConfig, propose
from segjax.ops.boxes import encode_boxes
from segjax.ops.devices import fold_in_device, mean_count
from segjax.ops.masks import targets_from_boxes
from segjax.pictures.instances import instance_panel
from segjax.tasks.protocol import Evaluator

SIDE_MULTIPLE = 32  # an image that fits no bucket is padded to multiples of this
# (outputs of the mask branch, batch, regions) → weighted loss of each region, [batch, regions].
# `regions` holds some of the positive regions: "boxes", "classes", "matched" (the index of the
# object) and "mask_targets" [batch, regions, height, width].
MaskTerm = Callable[[dict, dict, dict], jax.Array]


@dataclass(frozen=True)
class InstanceView:
    """A size, and optionally a flip, at which the network sees an image.

    Attributes:
      resize: (example, None) → example with a resized "image": a transform such as
        `segjax.data.augmentation.instance.ResizeShortSide` with a single length.
      flip: whether to flip left and right.
    """

    resize: Callable[[dict, None], dict]
    flip: bool = False


@dataclass(frozen=True)
class InstanceTask:
    """The task for Mask R-CNN; see `protocol.Task`.

    Attributes:
      model: the network; see `segjax.models.MaskRCNN`.
      classes: names of the classes, background first.
      channels: number of channels of the images.
      buckets: sizes (height, width). An image is padded to the smallest that it fits, or else to
        multiples of 32. The network is compiled for each size, so keep them few.
      preprocess: (example, None) → example with a float32 "image", which is then padded with zeros.
      views: the views of an image whose detections are merged.
      make_evaluator: returns a new evaluator, such as
        `segjax.evaluation.instance_evaluator.CocoEvaluator`.
      loss_function: weights and forms of the losses.
      extra_losses: further terms by name, which are added to the loss and logged. Each is a
        function (outputs, batch, variables) → scalar; see `segjax.losses.terms.LossTerm`. The
        outputs are the "levels" of the pyramid; by level, the RPN's "objectness" [batch, anchors],
        "anchor_deltas" [batch, anchors, 4] and "anchors" [anchors, 4]; "sampled_anchors"
        (`AnchorSampling`) and the heads' "regions" (`RegionSampling`), both with "box_targets"
        [batch, ..., 4]; the box head's "class_logits" [batch, regions, 1 + classes] and
        "box_deltas" [batch, regions, classes or 1, 4].
      extra_mask_losses: further terms of the mask branch by name. Each is a function (outputs,
        batch, regions) → [batch, regions], because the branch runs on a few regions at a time. Its
        mean over all positive regions of the whole batch is added to the loss and logged. See
        `MaskTerm`, and `MaskRCNN.mask_outputs` for the outputs.
      proposals: how training selects proposals; prediction uses the model's own setting.
      anchor_sampling, region_sampling: how the losses sample anchors and regions.
      mask_targets: (masks, boxes of the masks, regions, index of each region's mask, size=side) →
        targets of one image's regions. By default, masks are in the frames of their boxes.
      paste_rule: how masks become pixels; see `segjax.inference.paste`.
      mask_threshold: pixels of at least this probability belong to the object.
      category_ids: the training data's ids of the classes without the background, for results in
        COCO's format; None if the data have none.
      pixel_range: values that become 0 and 255 in images of types that `preprocess` does not take,
        such as (0, 65535); None refuses them.
      tiles: windows in which a larger image is predicted, each like an image of its own; see
        `segjax.inference.instance_tiles`. None predicts every image as a whole.
    """

    entries: ClassVar[tuple[str, ...]] = ("image", "boxes", "classes", "masks")
    background_class: ClassVar[int] = 0
    whole_rows: ClassVar[str] = (
        "Mask R-CNN keeps each image on one device, because proposals, regions and masks read any "
        "part of it"
    )

    model: MaskRCNN
    classes: tuple[str, ...]
    channels: int
    buckets: tuple[tuple[int, int], ...]
    preprocess: Callable[[dict, None], dict]
    views: tuple[InstanceView, ...]
    make_evaluator: Callable[[], Evaluator]
    loss_function: DetectionLoss = DetectionLoss()
    extra_losses: Mapping[str, LossTerm] = field(default_factory=dict)
    extra_mask_losses: Mapping[str, MaskTerm] = field(default_factory=dict)
    proposals: ProposalConfig = ProposalConfig(pre_nms=2000)
    anchor_sampling: AnchorSampling = AnchorSampling()
    region_sampling: RegionSampling = RegionSampling()
    mask_targets: Callable[..., jax.Array] = targets_from_boxes
    paste_rule: PasteRule = "detectron2"
    mask_threshold: float = 0.5
    category_ids: tuple[int | str, ...] | None = None
    pixel_range: tuple[float, float] | None = None
    tiles: InstanceTiles | None = None

    def __post_init__(self):
        check_classes(self.classes)

    @property
    def image_channels(self) -> tuple[int, ...]:
        return (1, self.channels) if self.channels > 1 else (1,)  # grey is repeated

    @property
    def most_detections(self) -> float:
        """The largest number of detections in an image: with tiles, only each tile has one."""
        return math.inf if self.tiles else self.model.detections.max_detections

    def init(self, key, batch):
        return self.model.init(key, batch["image"][:1], method="run_layers")

    def prepare(self, batch):
        return batch

    def loss(self, variables, batch, key, train: bool):
        """Computes the five losses of Mask R-CNN on a batch of packed examples.

        Anchors and regions are sampled with a key per example, derived from its "index", so that
        the samples do not depend on the devices.
        """

        def run(model):
            return self._outputs(model, batch, key, train)

        outputs, updated = self.model.apply(
            variables,
            method=run,
            rngs={"dropout": fold_in_device(key)},
            mutable=["batch_stats"] if train else [],
        )
        terms = self.loss_function.rpn_terms(outputs) | self.loss_function.box_terms(outputs)
        mask_loss, mask_terms = self._mask_losses(variables, outputs, batch, train)
        regions = outputs["regions"]
        metrics = terms | mask_terms
        metrics |= {
            "positive_regions": jnp.mean(jnp.sum(regions["positive"], axis=1, dtype=jnp.float32)),
            "dropped_objects": jnp.mean(batch["dropped"].astype(jnp.float32)),
        }
        extra = extra_terms(self.extra_losses, outputs, batch, variables, taken=metrics)
        stats = updated.get("batch_stats", variables.get("batch_stats", {}))
        loss = self.loss_function.weighted(terms) + mask_loss
        loss = sum(extra.values(), start=loss)
        return loss, {"metrics": metrics | extra, "batch_stats": stats}

    def _outputs(self, model: MaskRCNN, batch, key, train: bool) -> dict:
        """Runs the network on a device's batch, stage by stage; see `extra_losses` for the keys."""
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
        anchors = jnp.concatenate(rpn[2])
        sampled = jax.vmap(self.anchor_sampling, in_axes=(0, None, 0, 0))(
            keys[:, 0], anchors, truth, classes > 0
        )
        sampled["box_targets"] = encode_boxes(
            take(truth, sampled["matched"]), anchors[sampled["index"]], RPN_BOX_WEIGHTS
        )
        regions["box_targets"] = encode_boxes(
            take(truth, regions["matched"]), regions["boxes"], BOX_WEIGHTS
        )
        class_logits, box_deltas = model.box_outputs(levels, regions["boxes"], train)
        outputs = {
            "levels": levels,
            **dict(zip(("objectness", "anchor_deltas", "anchors"), rpn, strict=True)),
            "sampled_anchors": sampled,
            "regions": regions,
            "class_logits": class_logits,
            "box_deltas": box_deltas,
        }
        if train and model.masks_need_all_regions:
            outputs["masks"] = model.mask_outputs(levels, self._masked(regions, batch), train)
        return outputs

    def _masked(self, regions, batch) -> dict:
        """Returns the regions for the mask branch: the first places, which hold all positives.

        Regions of objects without a mask are no longer positive: they add nothing to the mask
        branch's losses and do not count in their means.
        """
        masked = {
            name: value[:, : self.region_sampling.positives] for name, value in regions.items()
        }
        masked |= {"boxes": jax.vmap(repeat_valid)(masked["boxes"], masked["positive"])}
        if "has_mask" in batch:
            masked["positive"] &= take(batch["has_mask"], masked["matched"])
        return masked

    def _mask_losses(self, variables, outputs, batch, train):
        """Returns the weighted sum of the mask branch's losses, and each loss by name."""
        check_names(self.extra_mask_losses, taken=vars(self.loss_function))
        regions = self._masked(outputs["regions"], batch)
        normalizer = mean_count(regions["positive"])

        def losses(outputs, regions):
            """The losses of a few regions of each image.

            There must be no collectives here, because devices run different numbers of groups.
            """
            positive, size = regions["positive"], outputs["logits"].shape[2]
            targets = jax.vmap(partial(self.mask_targets, size=size))(
                batch["masks"], batch["boxes"], regions["boxes"], regions["matched"]
            )
            regions = regions | {"mask_targets": targets}
            mask = self.loss_function.mask_term(
                outputs["logits"], regions, form=self.model.mask_loss, normalizer=normalizer
            )
            extra = {
                name: jnp.sum(jnp.where(positive, term(outputs, batch, regions), 0.0)) / normalizer
                for name, term in self.extra_mask_losses.items()
            }
            total = sum(extra.values(), start=self.loss_function.mask * mask)
            return total, {"mask": mask, **extra}

        if "masks" in outputs:
            return losses(outputs["masks"], regions)

        def of_group(operands, regions):
            variables, levels = operands
            outputs = self.model.apply(variables, levels, regions, train, method="mask_outputs")
            return losses(outputs, regions)

        return sum_over_groups(
            of_group,
            (self.model.mask_variables(variables), outputs["levels"]),
            regions,
            regions["positive"],
            size=MASK_GROUP,
        )

    def predict(self, variables, batch):
        found = self.model.apply(variables, batch["image"], batch["size"], train=False)
        return found | {"size": batch["size"]}  # for `merge`

    def inputs(self, example: dict) -> Iterator[dict[str, np.ndarray]]:
        for window in self._windows(example["image"]):
            yield from self._inputs(window.cut(example["image"]))

    def _inputs(self, pixels: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        for view in self.views:
            image = view.resize({"image": pixels}, None)["image"]
            if image.shape[2] < self.channels:  # a grey image for a colour network
                image = image.repeat(self.channels, axis=2)
            image = self.preprocess({"image": image}, None)["image"]
            if view.flip:
                image = image[:, ::-1]
            height, width = image.shape[:2]
            bucket = self._bucket(height, width)
            padded = np.zeros((*bucket, image.shape[2]), np.float32)
            padded[:height, :width] = image
            yield {"image": padded, "size": np.array([height, width], np.int32)}

    def _windows(self, image: np.ndarray) -> list[Window]:
        height, width = image.shape[:2]
        if self.tiles is None:
            return [Window(0, 0, height, width)]
        return self.tiles.windows((height, width))

    def _bucket(self, height: int, width: int) -> tuple[int, int]:
        fitting = [size for size in self.buckets if size[0] >= height and size[1] >= width]
        if fitting:
            return min(fitting, key=lambda size: size[0] * size[1])
        height, width = (-(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE for side in (height, width))
        return height, width

    def merge(self, example: dict, outputs: Iterable[dict]) -> dict:
        """Returns "boxes", "scores", "classes" and "masks" (run lengths) in image coordinates."""
        size = example["image"].shape[:2]
        windows, outputs = self._windows(example["image"]), iter(outputs)
        options: dict = {"rule": self.paste_rule, "threshold": self.mask_threshold}
        if len(windows) == 1:
            found = self._merge_views(outputs, size)
            masks = paste_to_rle(found["masks"], found["boxes"], size, **options)
            return found | {"masks": masks}
        in_windows = []
        for window in windows:
            found = self._merge_views(itertools.islice(outputs, len(self.views)), window.size)
            masks = paste_to_masks(found["masks"], found["boxes"], window.size, **options)
            in_windows.append(found | {"masks": masks})
        return join_windows(in_windows, windows, size)

    def _merge_views(self, outputs: Iterable[dict], size: tuple[int, int]) -> dict:
        """Returns "boxes", "scores", "classes" and "masks" (in the frames of the boxes)."""
        views = []
        for view, output in zip(self.views, outputs, strict=True):
            valid = output["valid"]
            found = {name: output[name][valid] for name in ("boxes", "scores", "classes", "masks")}
            views.append(
                to_original_frame(found, view_size=output["size"], size=size, mirrored=view.flip)
            )
        if len(views) == 1:
            return views[0]
        return merge_views(
            views,
            iou_threshold=self.model.detections.nms_threshold,
            max_detections=self.model.detections.max_detections,
        )

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
