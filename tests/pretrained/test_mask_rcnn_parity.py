"""Mask R-CNN equals torchvision's with the same weights, stage by stage.

The records come from torchvision's compiled operators, whose RoIAlign takes zero for samples more
than one cell outside a map, as ours does. Two of the 1,000 proposals have such samples.
"""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import pretrained
from segjax.inference.paste import paste
from segjax.losses.instance import DetectionLoss
from segjax.models.detections import DetectionConfig, detect
from segjax.models.normalization import BatchNorm
from segjax.models.regions import AnchorSampling, RegionSampling
from segjax.models.roi_heads import mask_probabilities
from segjax.models.rpn import ProposalConfig, propose
from segjax.ops import roi_align
from segjax.ops.classes import select_class
from segjax.pretrained.torchvision_detection import maskrcnn_table
from segjax.tasks.instance import InstanceTask
from tests.fixtures.reference_weights import load_record

NAME = "torchvision/maskrcnn_resnet50_fpn"
SIZE = (192, 256)


@pytest.fixture(scope="module")
def recorded():
    record, state = load_record("torchvision_maskrcnn_resnet50_fpn")
    return record, pretrained.convert(NAME, state, epsilon=1e-5)


@pytest.fixture(scope="module")
def outputs(recorded):
    """Returns each stage's outputs for torchvision's inputs to it."""
    record, converted = recorded
    model = converted.model

    def stages(model, images, proposals, detected):
        levels = model.pyramid(images)
        rpn = model.rpn_outputs(levels, image_size=SIZE)
        sizes = jnp.asarray([SIZE])
        logits, deltas = model.box_outputs(levels, proposals)
        valid = jnp.ones(proposals.shape[:2], bool)
        # Here every box scores above the threshold, so all of them are candidates.
        config = DetectionConfig(min_size=1e-2, max_candidates=5000)
        return {
            "levels": levels,
            "rpn": rpn,
            "proposals": propose(*rpn, sizes, model.proposals),
            "logits": logits,
            "deltas": deltas,
            "detections": detect(logits, deltas, proposals, valid, sizes, config),
            "masks": model.mask_outputs(levels, {"boxes": detected})["logits"],
        }

    @jax.jit
    def run(variables, *inputs):
        return model.apply(variables, *inputs, method=stages)

    inputs = record["normalised_image"], record["proposals"][None], record["detection_boxes"][None]
    return jax.device_get(run(converted.variables, *inputs))


def test_the_pyramid_is_torchvisions(recorded, outputs):
    record, _ = recorded
    for level, name in zip(outputs["levels"], ("0", "1", "2", "3", "pool"), strict=True):
        np.testing.assert_allclose(level[..., ::16], record[f"pyramid_{name}"], atol=1e-4)


def test_objectness_deltas_and_anchors_are_torchvisions(recorded, outputs):
    record, _ = recorded
    objectness, deltas, anchors = outputs["rpn"]
    for level in range(5):
        expected = record[f"rpn_objectness_{level}"].reshape(1, -1)
        np.testing.assert_allclose(objectness[level], expected, atol=1e-4)
        expected = record[f"rpn_deltas_{level}"].reshape(1, -1, 4)
        np.testing.assert_allclose(deltas[level], expected, atol=1e-4)
    np.testing.assert_array_equal(np.concatenate(anchors), record["anchors"])


def test_proposals_are_torchvisions(recorded, outputs):
    """Only neighbours whose logits differ by less than 1e-6 may come in another order."""
    record, _ = recorded
    found = {name: value[0] for name, value in outputs["proposals"].items()}
    assert found["valid"].all()
    distance = np.abs(found["boxes"] - record["proposals"][:, None]).max(axis=-1)
    order = distance.argmin(axis=1)  # the place of each of torchvision's proposals in ours
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    np.testing.assert_allclose(found["boxes"][order], record["proposals"], atol=1e-3)
    assert np.abs(found["objectness"][order] - found["objectness"]).max() < 1e-6


def test_the_box_heads_outputs_are_torchvisions(recorded, outputs):
    record, _ = recorded
    np.testing.assert_allclose(outputs["logits"][0], record["box_logits"], atol=1e-4)
    expected = record["box_deltas"].reshape(1000, 6, 4)[:, 1:]
    np.testing.assert_allclose(outputs["deltas"][0], expected, atol=1e-4)


def test_detections_are_torchvisions(recorded, outputs):
    record, _ = recorded
    found = {name: value[0] for name, value in outputs["detections"].items()}
    assert found["valid"].all()
    np.testing.assert_array_equal(found["classes"], record["detection_labels"])
    np.testing.assert_allclose(found["scores"], record["detection_scores"], atol=1e-5)
    np.testing.assert_allclose(found["boxes"], record["detection_boxes"], atol=1e-3)


def test_masks_are_torchvisions_before_and_after_they_are_pasted(recorded, outputs):
    record, _ = recorded
    classes, logits = record["detection_labels"].astype(np.int32), outputs["masks"][0]
    chosen = select_class(logits, classes - 1)
    np.testing.assert_allclose(chosen, record["mask_logits_of_detected_label"], atol=1e-4)
    probabilities = np.asarray(mask_probabilities(logits, classes))[:8]
    pasted = [
        paste(mask, box, SIZE, rule="torchvision")
        for mask, box in zip(probabilities, record["detection_boxes"][:8], strict=True)
    ]
    expected = record["pasted_masks"].astype(np.float32)
    assert expected.max() > 0.4
    np.testing.assert_allclose(pasted, expected, atol=1e-3)  # recorded in float16


def test_losses_and_gradients_are_torchvisions():
    """Every anchor and proposal is sampled, so nothing is random. Norms use batch statistics."""
    record, state = load_record("torchvision_maskrcnn_resnet50_fpn_losses")
    converted = pretrained.convert(NAME, state, epsilon=1e-5)
    backbone = converted.model.backbone.clone(norm=BatchNorm)

    def mask_targets(masks, mask_boxes, boxes, matched, *, size):
        """torchvision's `project_masks_on_boxes`: RoIAlign of masks of the whole image."""
        del mask_boxes
        options = {"spatial_scale": 1.0, "sampling_ratio": 0, "aligned": False}
        maps = jnp.moveaxis(masks, 0, -1)[None]
        targets = roi_align(maps, boxes[None], output_size=size, **options)[0]
        return jnp.take_along_axis(targets, matched[:, None, None, None], axis=-1)[..., 0]

    task = InstanceTask(
        model=converted.model.clone(backbone=backbone),
        classes=converted.classes,
        channels=3,
        buckets=(),
        preprocess=converted.preprocess,
        views=(),
        make_evaluator=dict,
        loss_function=DetectionLoss(rpn_beta=1 / 9, box_beta=1 / 9, rpn_normalizer="sampled"),
        proposals=ProposalConfig(pre_nms=2000, post_nms=2000, min_size=1e-3),
        anchor_sampling=AnchorSampling(size=12_276),
        region_sampling=RegionSampling(size=2003),
        mask_targets=mask_targets,
    )
    image = converted.preprocess({"image": 255 * record["input"]}, None)["image"]
    batch = {
        "image": image[None].astype(np.float32),
        "size": np.array([SIZE], np.int32),
        "boxes": record["target_boxes"][None],
        "classes": record["target_labels"][None].astype(np.int32),
        "masks": record["target_masks"][None].astype(np.float32),
        "dropped": np.zeros(1, np.int32),
        "index": np.zeros(1, np.int32),
    }
    stats = converted.variables["batch_stats"]

    @jax.jit
    def run(params):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            return task.loss(variables, batch, jax.random.key(0), True)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, aux), gradients = run(converted.variables["params"])
    names = {
        "classes": "loss_classifier",
        "box": "loss_box_reg",
        "mask": "loss_mask",
        "objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
    }
    for ours, theirs in names.items():
        np.testing.assert_allclose(aux["metrics"][ours], record[theirs], rtol=1e-3, err_msg=ours)
    gradients = flax.traverse_util.flatten_dict(gradients, sep="/")
    compared = 0
    for path, source in maskrcnn_table(v2=False).items():
        collection, _, path = path.partition("/")
        if collection == "params":
            norm = np.linalg.norm(np.asarray(gradients[path], np.float64))
            expected = record[f"gradient_norm/{source.name}"]
            np.testing.assert_allclose(norm, expected, rtol=0.01, err_msg=path)
            compared += 1
    assert compared == len(gradients)
