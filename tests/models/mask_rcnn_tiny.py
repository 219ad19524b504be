"""A Mask R-CNN with few channels, its task and batches for it, which the tests share."""

from functools import partial

import jax
import numpy as np

from segjax.data.augmentation.semantic import Normalize
from segjax.data.instance_masks import crop_mask, tight_boxes
from segjax.data.loading.pack_objects import PackObjects
from segjax.data.sources.protocol import BATCH_DTYPES
from segjax.losses.instance import DetectionLoss
from segjax.models.backbones.resnet import ResNet
from segjax.models.detections import DetectionConfig
from segjax.models.mask_rcnn import MaskRCNN
from segjax.models.normalization import BatchNorm
from segjax.models.regions import RegionSampling
from segjax.models.rpn import Anchors, ProposalConfig
from segjax.tasks.instance import InstanceTask
from tests.variables import random_variables

SIDE = 64
CLASSES = ("background", "red", "green")
NORMALIZE = Normalize(127.5, 64.0)
PACK = PackObjects(((SIDE, SIDE),), max_objects=3, normalize=NORMALIZE, mask_size=8)
WEIGHTS = DetectionLoss(objectness=2.0, rpn_box=3.0, classes=0.5, box=1.5, mask=0.7)
FROZEN = partial(BatchNorm, frozen=True)
PYRAMID_ANCHORS = Anchors(sizes=((8.0,), (16.0,), (24.0,), (32.0,), (48.0,)))
SINGLE_ANCHORS = Anchors(sizes=((8.0, 16.0, 32.0),))


def tiny_model(
    neck="fpn", *, norm=FROZEN, backbone=None, network=MaskRCNN, **attributes
) -> MaskRCNN:
    """Returns the network with all of its parts, as small as possible."""
    resnet = ResNet(
        stage_sizes=(1, 1, 1, 1),
        width=4,
        norm=norm,
        # C4's head is a bottleneck; basic blocks compile faster.
        **({"num_stages": 3} if neck == "c4" else {"block": "basic"}),
    )
    return network(
        len(CLASSES) - 1,
        **{
            "backbone": resnet if backbone is None else backbone,
            "neck": neck,
            "norm": norm,
            "fpn_features": 8,
            "anchors": PYRAMID_ANCHORS if neck == "fpn" else SINGLE_ANCHORS,
            "fc_features": 8,
            "head_features": 8,
            "mask_convolutions": 1,
            "box_resolution": 3,
            "mask_resolution": 4,
            "proposals": ProposalConfig(pre_nms=20, post_nms=16),
            "detections": DetectionConfig(max_detections=5, score_threshold=0.2),
            **attributes,
        },
    )


def tiny_task(model, **attributes) -> InstanceTask:
    return InstanceTask(
        **{
            "model": model,
            "classes": CLASSES,
            "channels": 3,
            "buckets": ((SIDE, SIDE),),
            "preprocess": NORMALIZE,
            "views": (),
            "make_evaluator": dict,
            "proposals": ProposalConfig(pre_nms=20, post_nms=16),
            "region_sampling": RegionSampling(size=16),
            "loss_function": WEIGHTS,
            **attributes,
        }
    )


def ellipses(index, *, objects=2, size=(SIDE, SIDE)) -> dict:
    """Returns an instance example: ellipses on noise, in the colours of their classes."""
    rng = np.random.default_rng((index, objects))
    image = rng.normal(100, 20, (*size, 3))
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    classes, masks = rng.integers(1, len(CLASSES), objects).astype(np.int32), []
    for label in classes:
        height, width = rng.integers(14, 30, 2)
        top, left = rng.integers(0, np.subtract(size, (height, width)) + 1)
        inside = ((y - top) / height * 2 - 1) ** 2 + ((x - left) / width * 2 - 1) ** 2 <= 1
        image[inside] += 100 * np.eye(3)[label - 1]
        masks.append(crop_mask(inside))
    return {
        "id": f"ellipses_{index}",
        "image": np.clip(image, 0, 255).astype(np.uint8),
        "boxes": tight_boxes(masks),
        "classes": classes,
        "masks": tuple(masks),
        "crowd": np.zeros(objects, bool),
        "areas": np.array([mask.area for mask in masks], np.float32),
    }


def packed_example(index, **options) -> dict:
    """Returns an example as a batch holds it; `options` go to `ellipses`."""
    packed = PACK(ellipses(index, **options), np.random.default_rng(0))
    return {name: packed[name] for name in BATCH_DTYPES if name in packed} | {
        "index": np.int32(index)
    }


def stack(*examples) -> dict:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def variables_of(model) -> dict:
    """Draws variables in NumPy, for boxes and logits that differ between places."""
    variables = random_variables(model, np.zeros((1, SIDE, SIDE, 3), np.float32))

    def calm(path, leaf):
        names = {key.key for key in path}
        return 0.1 * leaf if names & {"deltas", "objectness", "class_logits"} else leaf

    return jax.tree_util.tree_map_with_path(calm, variables)


def compiled_loss(task):
    """Compiles (variables, batch, key) → ((training loss, aux), gradients of the parameters)."""

    @jax.jit
    def run(variables, batch, key):
        def loss(params):
            return task.loss(variables | {"params": params}, batch, key, True)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return run
