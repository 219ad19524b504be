"""What a converter expects of a state dict."""

import jax
import jax.numpy as jnp
import numpy as np

from segjax.pretrained import SOURCES
from segjax.pretrained.mapping import Source, shapes_of


def source_shapes(name, hints=None, **options):
    """Returns {name in the source: shape} for a name of `SOURCES`.

    Args:
      hints: {name: shape} of arrays from whose shapes the converter reads sizes.
    """
    conversion = SOURCES[name](zeros(hints or {}), name=name, **options)
    shapes = shapes_of(conversion.model)
    assert shapes.keys() == conversion.table.keys(), name
    entries = conversion.table.items()
    return {s.name: s.shape(shapes[path]) for path, s in entries if isinstance(s, Source)}


def zeros(shapes):
    """Returns {name: zeros} that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def forward(model, variables, images, **options):
    """Applies a model as one compiled function."""
    return jax.jit(lambda v, x: model.apply(v, x, **options))(variables, jnp.asarray(images))


def detectron2_mask_rcnn_shapes(depth, neck, *, classes, groups=1, group_width=64):
    """Returns {name: shape} of detectron2's Mask R-CNN, listed from its modules.

    Args:
      depth: 50 or 101, of the ResNet.
      neck: "FPN", "C4" or "DC5".
      classes: without the background.
    """
    shapes = {}

    def layer(name, *shape):
        shapes[f"{name}.weight"] = shape
        # An up-convolution has its outputs on the second axis.
        shapes[f"{name}.bias"] = (shape[1 if name.endswith("deconv") else 0],)

    def frozen(name, *shape):
        shapes[f"{name}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.norm.{part}"] = shape[:1]

    def stage(prefix, blocks, inputs, inner, outputs):
        for block in range(blocks):
            name = f"{prefix}.{block}"
            if block == 0:
                frozen(f"{name}.shortcut", outputs, inputs, 1, 1)
            frozen(f"{name}.conv1", inner, inputs if block == 0 else outputs, 1, 1)
            frozen(f"{name}.conv2", inner, inner // groups, 3, 3)
            frozen(f"{name}.conv3", outputs, inner, 1, 1)

    body = "backbone.bottom_up" if neck == "FPN" else "backbone"
    frozen(f"{body}.stem.conv1", 64, 3, 7, 7)
    inputs, inner, outputs = 64, groups * group_width, 256
    for number, blocks in enumerate((3, 4, 6 if depth == 50 else 23, 3), 2):
        in_heads = neck == "C4" and number == 5
        stage(
            "roi_heads.res5" if in_heads else f"{body}.res{number}", blocks, inputs, inner, outputs
        )
        if neck == "FPN":
            layer(f"backbone.fpn_lateral{number}", 256, outputs, 1, 1)
            layer(f"backbone.fpn_output{number}", 256, 256, 3, 3)
        inputs, inner, outputs = outputs, 2 * inner, 2 * outputs
    channels, anchors = {"FPN": (256, 3), "C4": (1024, 15), "DC5": (2048, 15)}[neck]
    head = "proposal_generator.rpn_head"
    layer(f"{head}.conv", channels, channels, 3, 3)
    layer(f"{head}.objectness_logits", anchors, channels, 1, 1)
    layer(f"{head}.anchor_deltas", 4 * anchors, channels, 1, 1)
    if neck == "C4":
        features = channels = 2048
    else:
        features = 1024
        layer("roi_heads.box_head.fc1", features, channels * 7 * 7)
        layer("roi_heads.box_head.fc2", features, features)
    layer("roi_heads.box_predictor.cls_score", classes + 1, features)
    layer("roi_heads.box_predictor.bbox_pred", 4 * classes, features)
    for number in range(0 if neck == "C4" else 4):
        layer(f"roi_heads.mask_head.mask_fcn{number + 1}", 256, channels, 3, 3)
        channels = 256
    layer("roi_heads.mask_head.deconv", channels, 256, 2, 2)
    layer("roi_heads.mask_head.predictor", classes, 256, 1, 1)
    return shapes
