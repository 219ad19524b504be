"""segjax's side of the model benchmark: compiled train steps and predictions."""

from functools import partial

import inputs
import jax
import jax.numpy as jnp
import numpy as np
import optax

from segjax import pretrained
from segjax.data.instance_masks import crop_mask
from segjax.data.loading.pack_objects import box_frame_mask
from segjax.inference.coverings import WholeImage
from segjax.models import DeepLabV3, DeepLabV3Plus, MaskRCNN, UNet
from segjax.models.regions import RegionPooling
from segjax.models.rpn import Anchors, ProposalConfig
from segjax.recipes.mask_rcnn import FROZEN
from segjax.tasks import InstanceTask, SemanticTask
from segjax.training.compiler import compiler_options
from segjax.training.optimizer import OptimizerConfig, frozen_parameters
from segjax.training.parallel import DataParallel
from segjax.training.state import create_state
from segjax.training.step import make_train_step

SCHEDULE = optax.constant_schedule(1e-4)


def segmenter(network: str, dtype):
    """Returns a network by name, its number of classes and its image channels."""
    if network == "unet":
        model = UNet(2, features=32, padding="SAME", dropout_rate=0.0, dtype=dtype)
        return model, 2, 1
    shared = {"backbone": "resnet50", "align_corners": False, "dtype": dtype}
    if network == "deeplabv3":  # torchvision's
        model = DeepLabV3(
            21,
            output_stride=8,
            multi_grid=None,
            head_features=256,
            dropout_rate=0.5,
            auxiliary_head=True,
            **shared,
        )
        return model, 21, 3
    if network == "deeplabv3plus":  # segmentation-models-pytorch's
        model = DeepLabV3Plus(
            21,
            output_stride=16,
            multi_grid=(1, 1, 1),
            atrous_rates=(12, 24, 36),
            dropout_rate=0.5,
            head_features=256,
            decoder_convolutions=1,
            normalize_depthwise=False,
            **shared,
        )
        return model, 21, 3
    raise ValueError(f"no network {network!r}")


def semantic_train_step(**arguments):
    return train_step(*semantic_problem(**arguments))


def semantic_problem(network: str, batch: int, size: tuple[int, int], bfloat16: bool):
    """Returns the task and a batch on the host."""
    model, num_classes, channels = segmenter(network, jnp.bfloat16 if bfloat16 else None)
    task = SemanticTask(
        model,
        classes=tuple(map(str, range(num_classes))),
        channels=channels,
        covering=WholeImage(),
        preprocess=None,
    )
    data = {
        "image": inputs.images(batch, size, channels),
        "labels": inputs.labels(batch, size, num_classes),
    }
    return task, data


def semantic_inference(network: str, batch: int, size: tuple[int, int], bfloat16: bool):
    model, _, channels = segmenter(network, jnp.bfloat16 if bfloat16 else None)
    images = inputs.images(batch, size, channels)
    variables = initialized(model, images)
    predict = jax.jit(
        lambda v, x: model.apply(v, x)["logits"].argmax(-1).astype(jnp.uint8),
        compiler_options=compiler_options(),
    )
    images = jnp.asarray(images)
    return lambda: np.asarray(predict(variables, images))


def detector(bfloat16: bool) -> MaskRCNN:
    """Returns torchvision's `maskrcnn_resnet50_fpn`."""
    return MaskRCNN(
        90,
        backbone="resnet50",
        anchors=Anchors(rounded=True, stride="image"),
        pooling=RegionPooling(aligned=False, level_rule="torchvision"),
        proposals=ProposalConfig(min_size=1e-3),
        dtype=jnp.bfloat16 if bfloat16 else None,
    )


def instance_train_step(weights: str | None = None, **arguments):
    """Builds a step that starts from the weights of `torch_models.write_detector`, if given."""
    return train_step(
        *instance_problem(**arguments),
        frozen=frozen_backbone,
        variables=weights and detector_variables(weights),
    )


def frozen_backbone(params):
    """Returns the parts that the paper freezes: the stem, the first stage and all norms."""
    return frozen_parameters(OptimizerConfig(multipliers=FROZEN), params)


def detector_variables(weights: str):
    return pretrained.load("torchvision/maskrcnn_resnet50_fpn", weights, epsilon=1e-5).variables


def instance_problem(batch: int, size: tuple[int, int], objects: int, bfloat16: bool):
    """Returns the task and a batch on the host."""
    task = InstanceTask(
        model=detector(bfloat16),
        classes=tuple(map(str, range(91))),
        channels=3,
        buckets=(tuple(size),),
        preprocess=None,
        views=(),
        make_evaluator=None,
        proposals=ProposalConfig(pre_nms=2000, post_nms=2000, min_size=1e-3),
    )
    truth = inputs.objects(batch, size, objects, 91)
    masks = [
        [
            box_frame_mask(crop_mask(mask.astype(bool)), box, 112)
            for mask, box in zip(*image, strict=True)
        ]
        for image in zip(truth["masks"], truth["boxes"], strict=True)
    ]
    data = {
        "image": inputs.images(batch, size, 3),
        "size": np.tile(np.array(size, np.int32), (batch, 1)),
        "boxes": truth["boxes"],
        "classes": truth["classes"],
        "masks": np.array(masks),
        "dropped": np.zeros(batch, np.int32),
        "index": np.arange(batch, dtype=np.int32),
    }
    return task, data


def instance_inference(batch: int, size: tuple[int, int], bfloat16: bool, weights=None):
    """Builds a prediction with the weights of `torch_models.write_detector`, or initial ones."""
    model = detector(bfloat16)
    images = jnp.asarray(inputs.images(batch, size, 3))
    sizes = jnp.tile(jnp.array(size, jnp.int32), (batch, 1))
    predict = jax.jit(partial(model.apply, train=False), compiler_options=compiler_options())
    variables = detector_variables(weights) if weights else initialized(model, images, sizes[:1])
    variables = jax.device_put(variables)
    return Reported(lambda: jax.device_get(predict(variables, images, sizes)), detections)


def detections(found) -> str:
    return f"{int(found['valid'].sum())} detections"


def train_step(task, data: dict, *, frozen=None, variables=None):
    """Builds the step that `segjax.training.loop` runs, on one device.

    Args:
      frozen: as for `make_train_step`.
      variables: replace the task's initial variables.
    """
    optimizer = optax.sgd(SCHEDULE, momentum=0.9)
    parallel = DataParallel(devices=(jax.devices()[0],))
    state = create_state(task, optimizer, seed=0, batch=data, ema=False)
    if variables is not None:
        state = state.replace(**variables)
    state = parallel.replicate(state)
    step = parallel.train_step(make_train_step(task, optimizer, SCHEDULE, seed=0, frozen=frozen))
    ((_, batch),) = parallel.prefetch([data])

    def call():
        nonlocal state
        state, metrics = step(state, batch)
        call.note = f"loss {float(metrics['loss']):.3f}"

    return call


def initialized(model, images, *others):
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    arguments = jax.random.key(0), images[:1], *others
    init = jax.jit(partial(model.init, train=False)).lower(*arguments)
    return init.compile(compiler_options=options)(*arguments)


class Reported:
    """A call whose note describes its last result."""

    def __init__(self, call, describe):
        self._call, self._describe, self.note = call, describe, ""

    def __call__(self):
        self.note = self._describe(self._call())
