"""Mask R-CNN's second version equals torchvision's with the same weights."""

import jax
import numpy as np
import pytest

from segjax import pretrained
from tests.fixtures.reference_weights import load_record, reference_boxes, reference_image

HEIGHT, WIDTH = 192, 256
BOXES = reference_boxes(32, height=HEIGHT, width=WIDTH)
MASKED = 6  # boxes that the mask head gets


@pytest.fixture(scope="module")
def recorded_and_ours():
    record, state = load_record("torchvision_maskrcnn_resnet50_fpn_v2")
    converted = pretrained.convert("torchvision/maskrcnn_resnet50_fpn_v2", state)
    model = converted.model

    def stages(model, images, boxes):
        levels = model.pyramid(images)
        objectness, deltas, _ = model.rpn_outputs(levels, image_size=(HEIGHT, WIDTH))
        logits, moves = model.box_outputs(levels, boxes)
        masks = model.mask_outputs(levels, {"boxes": boxes[:, :MASKED]})["logits"]
        return levels, objectness, deltas, logits, moves, masks

    image = converted.preprocess({"image": 255 * reference_image(HEIGHT, WIDTH)}, None)["image"]
    run = jax.jit(lambda variables, *inputs: model.apply(variables, *inputs, method=stages))
    outputs = jax.device_get(run(converted.variables, image[None], BOXES[None]))
    return record, outputs, converted.task


def close(ours, theirs):
    """Asserts agreement to 1e-4 for outputs whose standard deviation is above 0.03."""
    assert np.std(theirs) > 0.03
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_the_pyramid_and_the_rpn_are_torchvisions(recorded_and_ours):
    record, (levels, objectness, deltas, *_), _ = recorded_and_ours
    for number, name in enumerate(("0", "1", "2", "3", "pool")):
        close(levels[number][..., ::32], record[f"pyramid_{name}"])
        rows, columns = levels[number].shape[1:3]
        for values, kind in ((objectness, "objectness"), (deltas, "deltas")):
            values = values[number].reshape(1, rows, columns, -1)[:, ::2, ::2]
            close(values, record[f"rpn_{kind}_{number}"])


def test_the_heads_outputs_for_given_boxes_are_torchvisions(recorded_and_ours):
    record, (*_, logits, deltas, masks), _ = recorded_and_ours
    close(logits[0], record["box_logits"])
    close(deltas[0], record["box_deltas"].reshape(len(BOXES), 6, 4)[:, 1:])
    close(masks[0], record["mask_logits"][..., 1:])


def test_photographs_are_resized_and_normalised_as_torchvision_does(recorded_and_ours):
    record, _, task = recorded_and_ours
    photo = np.rint(255 * reference_image(501, 640)).astype(np.uint8)
    [found] = task.inputs({"image": photo})
    np.testing.assert_array_equal(found["size"], record["size"])
    height, width = found["size"]
    expected = record["resized"]
    np.testing.assert_allclose(found["image"][:height:25, :width:25], expected, rtol=0, atol=2e-4)
    assert not found["image"][height:].any()
