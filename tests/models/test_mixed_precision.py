"""`network.bfloat16`: products are in bfloat16; everything that sums or decides is in float32.

The train step of a small network of each family is traced, not run, and every operation of its
jaxpr is checked: forward and backward pass, optimiser and metrics.
"""

import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.data.augmentation.semantic import Normalize
from segjax.inference.coverings import WholeImage
from segjax.losses.semantic import SemanticLoss
from segjax.models.layers import Convolution, UpConvolution
from segjax.models.regions import RegionPooling, RegionSampling
from segjax.models.rpn import ProposalConfig
from segjax.ops.roi_align import roi_align
from segjax.ops.roi_pool import roi_pool
from segjax.recipes.deeplab_networks import (
    DeepLabV1Config,
    DeepLabV2Config,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
)
from segjax.recipes.mask_rcnn_networks import MaskRCNNConfig
from segjax.recipes.unet import UNetConfig
from segjax.tasks.instance import InstanceTask
from segjax.tasks.semantic import SemanticTask
from segjax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer
from segjax.training.state import TrainState
from segjax.training.step import make_train_step
from tests.variables import random_variables

SIDE = 65
ASPP = {"aspp_features": 16, "width_multiplier": 1 / 4}
REGIONS = {
    "width_multiplier": 1 / 4,
    "anchor_sizes": (8.0, 16.0, 32.0, 48.0, 64.0),
    "fpn_features": 16,
    "fc_features": 24,
    "head_features": 16,
    "mask_convolutions": 1,
    "box_resolution": 3,
    "mask_resolution": 6,
}
NETWORKS = {
    "unet": UNetConfig(features=4, depth=2, padding="SAME"),
    "unet_norm": UNetConfig(features=4, depth=2, padding="SAME", norm="batch"),
    "v1": DeepLabV1Config(width_multiplier=1 / 8, head_features=16, multi_scale_features=True),
    "v2": DeepLabV2Config(backbone="vgg16", width_multiplier=1 / 8),
    "v3": DeepLabV3Config(backbone="resnet18", multi_grid=None, auxiliary_head=True, **ASPP),
    "v3plus": DeepLabV3PlusConfig(
        backbone="mobilenet_v2",
        image_pooling=(3, 3),
        low_level_features=8,
        decoder_features=16,
        **ASPP,
    ),
    "mask_rcnn": MaskRCNNConfig(backbone="resnet18", norm="group", head_norm="group", **REGIONS),
    "mask_rcnn_pool": MaskRCNNConfig(
        backbone="resnet18",
        neck="dc5",
        pooling=RegionPooling("pool"),
        mask_network="mlp",
        mask_loss="softmax",
        **REGIONS,
    ),
}
EACH = pytest.mark.parametrize("name", NETWORKS)

PRODUCTS = ("conv_general_dilated", "dot_general", "convolution", "roi_align")
SUMS = ("reduce_sum", "cumsum", "reduce_window_sum", "scatter-add", "scatter_add", "psum")
FEW = 4  # terms; the gradient of a doubled map sums two at a time
DELICATE = (
    *("exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "erf", "logsumexp", "pow"),
    *("sqrt", "rsqrt", "cbrt", "square", "integer_pow", "top_k", "sort", "argmax"),
)
# All operations of these rooms are float32: losses, boxes, their choice, and the optimiser.
FLOAT32_FILES = (
    *("/segjax/losses/", "/segjax/models/detections.py", "/segjax/ops/boxes.py"),
    *("/segjax/ops/nms.py", "/segjax/ops/matching.py", "/segjax/ops/masks.py"),
    *("/segjax/ops/anchors.py", "/optax/"),
)
# Products in float32: interpolation of logits and maps, and the coverage of masks.
FLOAT32_PRODUCTS = ("/segjax/ops/resize.py", "/segjax/ops/masks.py")


def task_of(config):
    if isinstance(config, MaskRCNNConfig):
        return InstanceTask(
            config.model(2),
            ("background", "red", "green"),
            channels=3,
            buckets=((SIDE, SIDE),),
            preprocess=Normalize(127.5, 64.0),
            views=(),
            make_evaluator=dict,
            proposals=ProposalConfig(pre_nms=20, post_nms=16),
            region_sampling=RegionSampling(size=16),
        )
    return SemanticTask(
        config.model(3),
        ("sky", "road", "car"),
        channels=3,
        covering=WholeImage(),
        preprocess=Normalize(127.5, 64.0),
        loss_function=SemanticLoss(dice=1.0),
    )


def batch_of(config) -> dict:
    """Returns the shapes of a batch."""
    side = 64 if isinstance(config, UNetConfig) else SIDE

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((2, *shape), dtype)

    batch = {"image": array(jnp.float32, side, side, 3)}
    if not isinstance(config, MaskRCNNConfig):
        return batch | {"labels": array(jnp.int32, side, side)}
    return batch | {
        "size": array(jnp.int32, 2),
        "boxes": array(jnp.float32, 3, 4),
        "classes": array(jnp.int32, 3),
        "masks": array(jnp.uint8, 3, 8, 8),
        "index": array(jnp.int32),
        "dropped": array(jnp.int32),
    }


@functools.cache
def traced(name):
    """Returns the step's operations with their source files, and the shapes of its results."""
    config = type(NETWORKS[name])(**(vars(NETWORKS[name]) | {"bfloat16": True}))
    task, batch = task_of(config), batch_of(config)
    settings = OptimizerConfig(weight_decay=1e-4, clip_norm=1.0)
    schedule = learning_rate_schedule(settings, num_steps=10, batch_size=2)
    optimizer = make_optimizer(settings, schedule)

    def create(batch):
        variables = task.init(jax.random.key(0), batch)
        params = variables["params"]
        state = TrainState(
            jnp.zeros((), jnp.int32),
            params,
            variables.get("batch_stats", {}),
            optimizer.init(params),
        )
        return state, task.predict(variables, batch)

    state, predictions = jax.eval_shape(create, batch)
    step = make_train_step(task, optimizer, schedule, seed=0)
    jaxpr, results = jax.make_jaxpr(step, return_shape=True)(state, batch)
    return tuple(operations(jaxpr.jaxpr)), (*results, predictions)


def operations(jaxpr):
    """Yields all operations of a jaxpr and of the jaxprs inside it, each with its source file.

    That is the innermost one outside of JAX; a derivative has the file of its function.
    """
    for operation in jaxpr.eqns:
        inner = [x for value in operation.params.values() for x in inner_jaxprs(value)]
        for part in inner:
            yield from operations(part)
        if not inner:
            frames = operation.source_info.traceback.frames
            files = (frame.file_name.replace("\\", "/") for frame in frames)
            rooms = ("/segjax/", "/optax/", "/flax/")
            yield operation, next((x for x in files if any(room in x for room in rooms)), "")


def inner_jaxprs(value):
    if isinstance(value, tuple | list):
        return [x for entry in value for x in inner_jaxprs(entry)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []


def has_bfloat16(variables) -> bool:
    return any(getattr(x.aval, "dtype", None) == jnp.bfloat16 for x in variables)


def described(operation, file) -> str:
    shapes = [str(x.aval) for x in operation.invars]
    return f"{operation.primitive.name} of {', '.join(shapes)} in {file}"


def terms(operation) -> float:
    """Returns the number of terms of a sum."""
    name, shape = operation.primitive.name, operation.invars[0].aval.shape
    if name == "reduce_sum":
        return math.prod(shape[axis] for axis in operation.params["axes"])
    if name == "reduce_window_sum":
        return math.prod(operation.params["window_dimensions"])
    if name == "cumsum":
        return shape[operation.params["axis"]]
    return math.inf


@EACH
def test_parameters_statistics_optimiser_metrics_and_predictions_are_float32(name):
    _, results = traced(name)
    floats = [leaf for leaf in jax.tree.leaves(results) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert len(floats) > 10
    assert {leaf.dtype for leaf in floats} == {np.dtype(np.float32)}


@EACH
def test_products_are_in_bfloat16(name):
    half, full = 0, []
    for operation, file in traced(name)[0]:
        if not operation.primitive.name.startswith(PRODUCTS):
            continue
        # RoIAlign's other operands are coordinates.
        operands = operation.invars[: 1 if "roi" in operation.primitive.name else 2]
        if all(x.aval.dtype == jnp.bfloat16 for x in operands):
            half += 1
        elif not file.endswith(FLOAT32_PRODUCTS):
            full.append(described(operation, file))
    assert half > 10
    assert full == []


@EACH
def test_no_sum_of_more_than_a_few_terms_is_in_bfloat16(name):
    wrong = [
        described(operation, file)
        for operation, file in traced(name)[0]
        if operation.primitive.name in SUMS
        and has_bfloat16(operation.invars)
        and terms(operation) > FEW
    ]
    assert wrong == []


@EACH
def test_exponentials_logarithms_roots_and_order_are_float32(name):
    found = [entry for entry in traced(name)[0] if entry[0].primitive.name in DELICATE]
    assert found
    assert [described(*entry) for entry in found if has_bfloat16(entry[0].invars)] == []


@EACH
def test_losses_boxes_statistics_and_optimiser_see_no_bfloat16(name):
    found = [entry for entry in traced(name)[0] if any(part in entry[1] for part in FLOAT32_FILES)]
    assert len(found) > 50
    assert [described(*entry) for entry in found if has_bfloat16(entry[0].invars)] == []


# Sums of many equal terms. A sum in bfloat16 stops growing after 256 of them.
def assert_like_float32(function, *arguments):
    """Asserts that bfloat16 and float32 arguments give the same up to bfloat16's rounding."""
    half = jax.jit(function)(*(x.astype(jnp.bfloat16) for x in arguments))
    full = jax.jit(function)(*arguments)
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(full), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=2**-6, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [Convolution(2, kernel_size=1, use_bias=True), UpConvolution(2)],
    ids=["convolution", "up_convolution"],
)
def test_the_gradient_of_a_bias_sums_over_all_positions(layer):
    images = jnp.ones((2, 40, 40, 3))
    variables = random_variables(layer, np.ones(images.shape, np.float32))

    def gradient(images):
        model = layer.clone(dtype=images.dtype)

        def total(params):
            return jnp.sum(model.apply({"params": params}, images), dtype=jnp.float32)

        return jax.grad(total)(variables["params"])["bias"]

    assert_like_float32(gradient, images)


@pytest.mark.parametrize(
    "pool",
    [
        partial(roi_align, spatial_scale=1.0, sampling_ratio=2, aligned=True, output_size=3),
        partial(roi_pool, spatial_scale=1.0, output_size=3),
    ],
    ids=["roi_align", "roi_pool"],
)
def test_the_gradient_of_a_cell_sums_over_all_boxes_that_read_it(pool):
    boxes = jnp.tile(jnp.asarray([0.0, 0.0, 6.0, 6.0]), (1, 1000, 1))
    features = jnp.arange(64, dtype=jnp.float32).reshape(1, 8, 8, 1) % 7

    def gradient(features):
        return jax.grad(lambda x: jnp.sum(pool(x, boxes), dtype=jnp.float32))(features)

    assert_like_float32(gradient, features)
