"""A wrong shape or dtype stops a network when it is traced, and the message names the argument."""

import jax
import pytest

from segjax import models
from segjax.models import detections, regions, roi_heads, rpn
from segjax.models.backbones.resnet import ResNet
from tests.models.mask_rcnn_tiny import tiny_model
from tests.models.subsampling import Subsampling
from tests.wrong_calls import KEY, calls, flags, floats, integers, trace

RESNET = ResNet(stage_sizes=(1, 1, 1, 1), width=4, block="basic")
MODELS = {
    "DeepLabV1": models.DeepLabV1(3, backbone=Subsampling(), head_features=4),
    "DeepLabV2": models.DeepLabV2(3, backbone=Subsampling(), atrous_rates=(1,), scales=(1.0, 0.5)),
    "DeepLabV3": models.DeepLabV3(3, backbone=Subsampling(), aspp_features=4),
    "DeepLabV3Plus": models.DeepLabV3Plus(
        3, backbone=Subsampling(), aspp_features=4, decoder_features=4, low_level_features=2
    ),
    "MaskRCNN": tiny_model(),
    "EncoderUNet": models.EncoderUNet(3, backbone=RESNET, decoder_features=(4,) * 5),
    "UNet": models.UNet(3, features=2, depth=2, padding="SAME"),
}
IMAGES = floats(2, 64, 64, 3)
WRONG_IMAGES = [("images", floats(64, 64, 3)), ("images", integers(2, 64, 64, 3))]


def called(module):
    """Returns `module` as a function of its inputs that initialises its variables itself."""

    def call(**arguments):
        return module.init_with_output(jax.random.key(0), **arguments)[0]

    return call


TABLE = {name: (called(model), {"images": IMAGES}, WRONG_IMAGES) for name, model in MODELS.items()}
TABLE["MaskRCNN"] = (
    called(MODELS["MaskRCNN"]),
    {"images": IMAGES, "sizes": integers(2, 2)},
    [*WRONG_IMAGES, ("sizes", integers(2))],
)
LEVELS = [floats(2, 8, 8, 5), floats(2, 4, 4, 5)]
REGIONS = floats(6, 4, 4, 5)
WRONG_REGIONS = [("x", floats(2, 6, 4, 4, 5)), ("x", floats(6, 5))]
TABLE |= {
    "RPNHead": (
        called(rpn.RPNHead(3)),
        {"levels": LEVELS},
        [("levels", [LEVELS[0], floats(4, 4, 5)])],
    ),
    "propose": (
        rpn.propose,
        {
            "objectness": [floats(2, 9), floats(2, 5)],
            "deltas": [floats(2, 9, 4), floats(2, 5, 4)],
            "anchors": [floats(9, 4), floats(5, 4)],
            "sizes": integers(2, 2),
            "config": rpn.ProposalConfig(pre_nms=4, post_nms=4),
        },
        [
            ("objectness", [floats(9), floats(5)]),
            ("deltas", [floats(2, 9, 4)]),
            ("deltas", [floats(2, 9, 4), floats(2, 9, 4)]),
            ("anchors", [floats(9, 4)]),
            ("anchors", [floats(2, 9, 4), floats(2, 5, 4)]),
            ("sizes", integers(2)),
        ],
    ),
    "BoxHead": (called(roi_heads.BoxHead()), {"x": REGIONS}, WRONG_REGIONS),
    "ResidualHead": (called(roi_heads.ResidualHead(width=2)), {"x": REGIONS}, WRONG_REGIONS),
    "MaskHead": (called(roi_heads.MaskHead(3)), {"x": REGIONS}, WRONG_REGIONS),
    "MLPMaskHead": (called(roi_heads.MLPMaskHead(3)), {"x": REGIONS}, WRONG_REGIONS),
    "BoxPredictor": (called(roi_heads.BoxPredictor(3)), {"x": floats(6, 5)}, [("x", REGIONS)]),
    "mask_probabilities": (
        roi_heads.mask_probabilities,
        {"logits": REGIONS, "classes": integers(6)},
        [("logits", floats(2, 6, 4, 4, 5)), ("classes", integers(5)), ("classes", floats(6))],
    ),
    "RegionPooling": (
        regions.RegionPooling(),
        {"levels": LEVELS, "boxes": floats(2, 3, 4), "strides": (8, 16), "output_size": 3},
        [("boxes", floats(2, 3, 5))],
    ),
    "AnchorSampling": (
        regions.AnchorSampling(size=4),
        {
            "key": KEY,
            "anchors": floats(9, 4),
            "truth_boxes": floats(3, 4),
            "truth_valid": flags(3),
        },
        [
            ("anchors", floats(1, 9, 4)),
            ("truth_boxes", floats(3, 5)),
            ("truth_valid", flags(4)),
            ("truth_valid", integers(3)),
        ],
    ),
    "RegionSampling": (
        regions.RegionSampling(size=4),
        {
            "key": KEY,
            "proposals": floats(9, 4),
            "proposals_valid": flags(9),
            "truth_boxes": floats(3, 4),
            "truth_classes": integers(3),
        },
        [
            ("proposals", floats(2, 9, 4)),
            ("proposals_valid", flags(3)),
            ("proposals_valid", floats(9)),
            ("truth_boxes", floats(3)),
            ("truth_classes", integers(9)),
            ("truth_classes", flags(3)),
        ],
    ),
    "repeat_valid": (
        regions.repeat_valid,
        {"values": floats(5, 4), "valid": flags(5)},
        [("valid", flags(4)), ("valid", integers(5))],
    ),
    "detect": (
        detections.detect,
        {
            "logits": floats(2, 6, 4),
            "deltas": floats(2, 6, 3, 4),
            "proposals": floats(2, 6, 4),
            "valid": flags(2, 6),
            "sizes": integers(2, 2),
            "config": detections.DetectionConfig(max_detections=4),
        },
        [
            ("logits", floats(12, 4)),
            ("deltas", floats(2, 6, 4, 4)),
            ("deltas", floats(2, 6, 12)),
            ("proposals", floats(2, 6, 3, 4)),
            ("valid", flags(6)),
            ("valid", integers(2, 6)),
            ("sizes", integers(2)),
        ],
    ),
}


def test_the_table_has_every_public_model():
    assert set(MODELS) == set(models.__all__)


@pytest.mark.parametrize("name", TABLE)
def test_the_right_call_is_traced(name):
    function, arguments, _ = TABLE[name]
    trace(function, arguments)


@pytest.mark.parametrize(("function", "arguments", "named"), calls(TABLE))
def test_a_wrong_call_names_the_argument(function, arguments, named):
    with pytest.raises(AssertionError, match=rf"\[{named}\]"):
        trace(function, arguments)
