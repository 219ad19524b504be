from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import mask_rcnn
from segjax.models.backbones.resnet import ResNet
from segjax.models.detections import DetectionConfig
from segjax.models.mask_rcnn import MaskRCNN
from segjax.models.normalization import BatchNorm, GroupNorm
from segjax.models.regions import RegionPooling
from segjax.models.roi_heads import mask_probabilities
from segjax.models.rpn import Anchors, ProposalConfig
from tests.models.mask_rcnn_tiny import (
    CLASSES,
    SIDE,
    SINGLE_ANCHORS,
    compiled_loss,
    packed_example,
    stack,
    tiny_model,
    tiny_task,
    variables_of,
)

IMAGES = jax.ShapeDtypeStruct((2, SIDE, SIDE, 3), jnp.float32)
SIZES = ((48, 64), (64, 40))


def parameter_shapes(model):
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}


@pytest.mark.parametrize("options", [{}, {"neck": "c4"}, {"neck": "dc5"}, {"mask_network": "mlp"}])
def test_running_the_layers_makes_the_variables_of_a_prediction(options):
    model = tiny_model(**options)
    key, images = jax.random.key(0), jnp.zeros(IMAGES.shape)
    by_layers = jax.eval_shape(partial(model.init, method="run_layers"), key, images)
    by_call = jax.eval_shape(model.init, key, images)
    assert jax.tree.structure(by_layers) == jax.tree.structure(by_call)
    assert jax.tree.leaves(by_layers) == jax.tree.leaves(by_call)


@pytest.fixture(scope="module")
def network():
    """(compiled function of images and sizes, a batch of two images of different sizes)."""
    model = tiny_model()
    variables, apply = variables_of(model), jax.jit(model.apply)
    batch = stack(*(packed_example(index, size=size) for index, size in enumerate(SIZES)))

    def run(images, sizes):
        return jax.device_get(apply(variables, images, sizes))

    return run, batch


def test_a_batch_of_two_equals_two_batches_of_one(network):
    run, batch = network
    both = run(batch["image"], batch["size"])
    assert both["valid"].any(axis=1).all()
    for place in (0, 1):
        alone = run(batch["image"][place : place + 1], batch["size"][place : place + 1])
        for name, value in alone.items():
            np.testing.assert_allclose(both[name][place], value[0], atol=2e-4, err_msg=name)


def test_what_is_found_in_an_image_depends_neither_on_the_others_nor_on_its_place(network):
    run, batch = network
    both = run(batch["image"], batch["size"])
    for order in ([1, 0], [0, 0], [1, 1]):
        other = run(batch["image"][order], batch["size"][order])
        for name in both:
            np.testing.assert_array_equal(other[name], both[name][order], err_msg=name)


def test_boxes_stay_in_the_image_whatever_its_padding_holds(network):
    run, batch = network
    clean = run(batch["image"], batch["size"])
    images = np.full_like(batch["image"], 3.0)
    for place, (height, width) in enumerate(SIZES):
        images[place, :height, :width] = batch["image"][place, :height, :width]
    dirty = run(images, batch["size"])
    # The convolutions see the padding.
    assert not np.array_equal(clean["scores"], dirty["scores"])
    for found in (clean, dirty):
        limits = np.tile(batch["size"][:, None, ::-1], 2)
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= limits).all()
        assert (found["boxes"][..., 2:] > found["boxes"][..., :2])[found["valid"]].all()


def test_detections_are_sorted_of_known_classes_and_zero_where_not_valid(network):
    run, batch = network
    images, sizes = batch["image"], batch["size"].copy()
    sizes[1] = 0  # an image without a pixel has no detection
    found = run(images, sizes)
    valid = found["valid"]
    assert valid[0].all()
    assert not valid[1].any()
    assert (np.diff(found["scores"][0]) <= 0).all()
    assert (found["scores"][0] > 0.2).all()
    assert set(found["classes"][0]) <= set(range(1, len(CLASSES)))
    masks = found["masks"][0]
    assert masks.shape[1:] == (8, 8)
    assert (masks > 0).all()
    assert (masks < 1).all()
    assert masks.std(axis=(1, 2)).min() > 0
    for name, value in found.items():
        assert not value[1].any(), name


def test_masks_are_computed_for_the_groups_with_a_detection_alone(network, monkeypatch):
    run, batch = network
    all_found = run(batch["image"], batch["size"])
    threshold = float(all_found["scores"][0, 1:3].mean())
    few = all_found["scores"] > threshold
    assert list(few[0]) == [True, True, False, False, False]
    computed = []

    def counted(logits, *arguments, **options):
        jax.debug.callback(lambda _: computed.append(logits.shape), logits)
        return mask_probabilities(logits, *arguments, **options)

    monkeypatch.setattr(mask_rcnn, "MASK_GROUP", 1)
    monkeypatch.setattr(mask_rcnn, "mask_probabilities", counted)
    model = tiny_model(
        detections=DetectionConfig(max_detections=5, score_threshold=threshold),
    )
    found = jax.device_get(jax.jit(model.apply)(variables_of(model), batch["image"], batch["size"]))
    jax.effects_barrier()
    np.testing.assert_array_equal(found["valid"], few)
    expected = np.where(few[..., None, None], all_found["masks"], 0)
    np.testing.assert_allclose(found["masks"], expected, rtol=0, atol=2e-5)
    assert computed == [(2, 8, 8, 2)] * few.sum(axis=1).max()


BATCH_NORM = partial(BatchNorm, momentum=0.5)
GROUP_NORM = partial(GroupNorm, num_groups=2)
# Together these cover each norm, neck, head, loss and pooling in few programs.
VARIANTS = {
    "fpn, frozen": lambda: tiny_model(),
    "fpn, batch norm, two-convolution RPN, 1conv1fc": lambda: tiny_model(
        norm=BATCH_NORM,
        fpn_norm=BATCH_NORM,
        head_norm=BATCH_NORM,
        rpn_convolutions=2,
        box_convolutions=1,
        box_fully_connected=1,
    ),
    "c4, batch norm, RoIPool, softmax masks": lambda: tiny_model(
        "c4", norm=BATCH_NORM, pooling=RegionPooling("pool"), mask_loss="softmax"
    ),
    "dc5, group norm, RoIWarp, class-agnostic, MLP": lambda: tiny_model(
        "dc5",
        norm=GROUP_NORM,
        pooling=RegionPooling("warp"),
        class_agnostic_boxes=True,
        class_agnostic_masks=True,
        mask_network="mlp",
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_finite_losses_whose_gradients_reach_every_parameter(variant):
    model = VARIANTS[variant]()
    variables = variables_of(model)
    batch = stack(*(packed_example(index, size=size) for index, size in enumerate(SIZES)))
    run = compiled_loss(tiny_task(model))
    (loss, aux), gradients = jax.device_get(run(variables, batch, jax.random.key(0)))
    assert np.isfinite(loss)
    assert all(aux["metrics"][name] > 0 for name in ("objectness", "rpn_box", "classes", "mask"))
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
        assert gradient.any(), jax.tree_util.keystr(path)
    before = jax.device_get(variables.get("batch_stats", {}))
    changed = {
        jax.tree_util.keystr(path): not np.array_equal(old, new)
        for (path, old), new in zip(
            jax.tree_util.tree_leaves_with_path(before),
            jax.tree.leaves(aux["batch_stats"]),
            strict=True,
        )
    }
    assert bool(changed) == ("group norm" not in variant)
    assert all(changed.values()) if "batch norm" in variant else not any(changed.values()), changed


def test_the_variants_outputs_have_the_shapes_of_their_heads():
    sides = {"fpn": 8, "c4": 6, "dc5": 8}
    for make in VARIANTS.values():
        model = make()
        found = jax.eval_shape(
            lambda model=model: model.init_with_output(jax.random.key(0), jnp.zeros(IMAGES.shape))
        )[0]
        side = sides[model.neck]
        assert {name: value.shape for name, value in found.items()} == {
            "boxes": (2, 5, 4),
            "scores": (2, 5),
            "classes": (2, 5),
            "masks": (2, 5, side, side),
            "valid": (2, 5),
        }


# torchvision documents the sizes of its two networks. Both include a box and a mask of the
# background; v1's leaves out the scales and biases of frozen norms, 2 · 26,560.
BACKGROUND = 4 * 1025 + 257


def test_resnet50_fpn_has_torchvisions_number_of_parameters():
    count = sum(int(np.prod(shape)) for shape in parameter_shapes(MaskRCNN(90)).values())
    assert count == 44_401_393 - BACKGROUND + 2 * 26_560


def test_the_second_version_has_torchvisions_number_of_parameters():
    model = MaskRCNN(
        90,
        rpn_convolutions=2,
        box_convolutions=4,
        box_fully_connected=1,
        fpn_norm=BatchNorm,
        head_norm=BatchNorm,
        norm=BatchNorm,
    )
    count = sum(int(np.prod(shape)) for shape in parameter_shapes(model).values())
    assert count == 46_359_409 - BACKGROUND


def test_parameters_are_named_by_their_stage():
    shapes = parameter_shapes(tiny_model())
    parts = {"backbone", "fpn", "rpn", "box_head", "box_predictor", "mask_head"}
    assert {path.split("/")[0] for path in shapes} == parts
    single = parameter_shapes(tiny_model("dc5"))
    assert {path.split("/")[0] for path in single} == parts - {"fpn"}


def test_c4_has_the_last_stage_in_its_heads_alone():
    shapes = parameter_shapes(tiny_model("c4"))
    assert not any(path.startswith("backbone/stage4") for path in shapes)
    whole = tiny_model("c4").backbone.clone(num_stages=4)
    backbone = parameter_shapes(tiny_model("dc5", backbone=whole))
    stage = {k.split("/", 2)[2]: v for k, v in backbone.items() if k.startswith("backbone/stage4_")}
    head = {k.split("/", 2)[2]: v for k, v in shapes.items() if k.startswith("box_head/")}
    assert head == stage
    assert not any(path.startswith("mask_head/convolution") for path in shapes)


def test_a_backbone_by_name_has_the_models_norm_and_dtype():
    model = MaskRCNN(2, backbone="resnet101", norm=GroupNorm, dtype=jnp.bfloat16, neck="c4")
    assert (model.backbone.stage_sizes, model.backbone.num_stages) == ((3, 4, 23, 3), 3)
    assert (model.backbone.norm, model.backbone.dtype) == (GroupNorm, jnp.bfloat16)


@pytest.mark.parametrize("neck", ["c5", "dc5"])
def test_a_single_map_may_come_from_any_backbone(neck):
    model = tiny_model(neck, backbone="mobilenet_v2")
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    (level,) = jax.eval_shape(partial(model.apply, method=model.pyramid), variables, IMAGES)
    (stride,) = model.strides
    assert level.shape == (2, *(side // stride for side in IMAGES.shape[1:3]), 320)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters_and_outputs():
    model = tiny_model(dtype=jnp.bfloat16, backbone=tiny_model().backbone.clone(dtype=jnp.bfloat16))
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    levels = jax.eval_shape(partial(model.apply, method=model.pyramid), variables, IMAGES)
    assert {level.dtype for level in levels} == {jnp.dtype(jnp.bfloat16)}
    found = jax.eval_shape(model.apply, variables, IMAGES)
    for name in ("boxes", "scores", "masks"):
        assert found[name].dtype == jnp.float32, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"neck": "bifpn"}, r"neck is one of \(.*\); got 'bifpn'"),
        ({"mask_network": "transformer"}, "mask_network is one of .*'transformer'"),
        ({"mask_loss": "dice"}, "mask_loss is one of .*'dice'"),
        ({"mask_loss": "softmax", "class_agnostic_masks": True}, "no class-agnostic mask"),
        ({"backbone": "resnet20"}, "no backbone 'resnet20'"),
        ({"neck": "c4", "backbone": "vgg16"}, "'c4' needs a ResNet with bottlenecks; got VGG16"),
        ({"neck": "c4", "backbone": "resnet34"}, "'c4' needs a ResNet with bottlenecks; got"),
        ({"neck": "c4", "backbone": ResNet((1, 1, 1, 1))}, "ResNet of neck 'c4' .*num_stages=3"),
        ({"backbone": ResNet((1, 1, 1, 1), num_stages=3)}, "ResNet of neck 'fpn' .*num_stages=4"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskRCNN(2, **arguments)


@pytest.mark.parametrize(
    ("neck", "arguments", "message"),
    [
        ("fpn", {"backbone": "vgg16"}, "'fpn' reads stage1 … stage4; VGG16 lacks stage1, stage2"),
        ("fpn", {"anchors": SINGLE_ANCHORS}, "anchors.sizes has 1 levels, and the model 5"),
        ("c4", {"anchors": Anchors()}, "anchors.sizes has 5 levels, and the model 1"),
        ("fpn", {"pooling": RegionPooling("pool")}, "'pool' reads a single map.* has 4"),
        ("c4", {"pooling": RegionPooling("crop")}, "align, warp or pool; got 'crop'"),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_the_model_is_made_ready(neck, arguments, message):
    with pytest.raises(ValueError, match=message):
        parameter_shapes(tiny_model(neck, **arguments))


def test_capacities_are_those_of_the_configuration():
    model = tiny_model(
        proposals=ProposalConfig(pre_nms=3, post_nms=40),
        detections=DetectionConfig(max_detections=90),
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    found = jax.eval_shape(model.apply, variables, IMAGES)
    assert found["boxes"].shape == (2, 90, 4)
