"""mmdetection's Mask R-CNN, converted, equals mmdetection's with the same weights."""

import jax
import numpy as np
import pytest

from segjax import pretrained
from segjax.coco.classes import COCO_CLASSES
from segjax.models.detections import detect
from segjax.models.rpn import propose
from segjax.pretrained import SOURCES
from tests.fixtures.reference_weights import load_record, reference_boxes, reference_image
from tests.pretrained.source_shapes import source_shapes, zeros

SIZE = HEIGHT, WIDTH = 192, 256
BOXES = reference_boxes(32, height=HEIGHT, width=WIDTH)
MASKED = 6  # boxes that the mask head gets


def close(ours, theirs, atol=1e-4):
    """Asserts agreement for outputs whose standard deviation is above 0.03."""
    assert np.std(theirs) > 0.03
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def load(name):
    """Returns the record of a model, the converted one, and its input."""
    record, state = load_record("mmdet_mask_rcnn_" + name.replace("-", "_"))
    converted = pretrained.convert(f"mmdet/mask-rcnn_{name}", state)
    image = converted.preprocess({"image": 255 * reference_image(*SIZE)}, None)["image"]
    return record, converted, image


def test_every_stage_is_mmdetections():
    record, converted, image = load("r50_fpn")
    close(image[::16, ::16], record["normalised"])

    def stages(model, images, boxes):
        levels, sizes = model.pyramid(images), np.array([SIZE])
        rpn = model.rpn_outputs(levels, image_size=SIZE)
        proposals = propose(*rpn, sizes, model.proposals)["boxes"]
        logits, moves = model.box_outputs(levels, boxes)
        masks = model.mask_outputs(levels, {"boxes": boxes[:, :MASKED]})["logits"]
        valid = np.ones((1, len(BOXES)), bool)
        found = detect(logits, moves, boxes, valid, sizes, model.detections)
        return levels, rpn, proposals, logits, moves, masks, found

    model, variables = converted.model, converted.variables
    run = jax.jit(lambda variables, *inputs: model.apply(variables, *inputs, method=stages))
    outputs = jax.device_get(run(variables, image[None], BOXES[None]))
    levels, rpn, proposals, logits, deltas, masks, found = outputs
    for number, level in enumerate(levels):
        close(level[..., ::32], record[f"pyramid_{number}"])
        rows, columns = level.shape[1:3]
        for values, kind in zip(rpn[:2], ("objectness", "deltas"), strict=True):
            values = values[number].reshape(1, rows, columns, -1)[:, ::2, ::2]
            close(values, record[f"rpn_{kind}_{number}"])
    close(logits[0], np.roll(record["box_logits"], 1, axis=1))
    close(deltas[0].reshape(len(BOXES), -1), record["box_deltas"])
    close(masks[0], record["mask_logits"])
    close(proposals[0, :100], record["proposals"], atol=2e-3)
    count = len(record["detected_scores"])
    assert count == found["valid"].sum() > 50
    close(found["scores"][0, :count], record["detected_scores"], atol=1e-5)
    np.testing.assert_array_equal(found["classes"][0, :count] - 1, record["detected_labels"])
    close(found["boxes"][0, :count], record["detected_bboxes"], atol=2e-3)


def test_the_caffe_styles_backbone_is_mmdetections():
    record, converted, image = load("r50-caffe_fpn")
    close(image[::16, ::16], record["normalised"][..., ::-1])  # BGR there, RGB in our models
    backbone = converted.model.backbone
    variables = {kind: parts["backbone"] for kind, parts in converted.variables.items()}
    # XLA leaves out the stages after the one that is wanted.
    run = jax.jit(lambda variables, images: backbone.apply(variables, images)["stage2"])
    expected = record["stage2"]
    # Its pixels are not divided by a deviation, so its maps are larger.
    close(run(variables, image[None])[..., ::32], expected, atol=1e-5 * np.ptp(expected))


def test_the_published_models_have_cocos_classes_and_boxes_of_eighty():
    for name, stride_in in (("r101_fpn", "3x3"), ("r101-caffe_fpn", "1x1")):
        conversion = SOURCES[f"mmdet/mask-rcnn_{name}"]({}, name=f"mmdet/mask-rcnn_{name}")
        assert conversion.model.backbone.stride_in == stride_in
        assert conversion.task.classes == COCO_CLASSES
        assert conversion.task.category_ids[-1] == 90
    shapes = source_shapes("mmdet/mask-rcnn_x101-32x8d_fpn")
    known = {
        "backbone.layer4.2.conv2.weight": (2048, 64, 3, 3),
        "roi_head.bbox_head.fc_cls.weight": (81, 1024),
        "roi_head.bbox_head.fc_reg.weight": (320, 1024),
        "roi_head.bbox_head.shared_fcs.0.weight": (1024, 256 * 7 * 7),
        "roi_head.mask_head.conv_logits.weight": (80, 256, 1, 1),
        "roi_head.mask_head.upsample.weight": (256, 256, 2, 2),
    }
    assert {name: shapes[name] for name in known} == known
    # Checkpoints of mmdetection 1.x have boxes for the background, too.
    old = zeros(shapes | {"roi_head.bbox_head.fc_reg.weight": (324, 1024)})
    with pytest.raises(ValueError, match=r"1 of another shape: .*fc_reg\.weight \[324, 1024\]"):
        pretrained.convert("mmdet/mask-rcnn_x101-32x8d_fpn", old)
