"""Settings of prediction for converted weights: what each does to the task and its predictions."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from segjax.data.augmentation.instance import Enlarge, ResizeShortSide
from segjax.inference.coverings import SlidingWindow, WholeImage
from segjax.inference.views import View, rotations_and_flips
from segjax.ops.dense_crf import CrfConfig, refine_probabilities
from segjax.pretrained.converted import Pretrained
from segjax.pretrained.instance_tasks import coco_task
from segjax.pretrained.preprocess import IMAGENET
from segjax.pretrained.torchvision_detection import Resize
from segjax.recipes.prediction_of_weights import settings_of, with_prediction
from segjax.tasks.instance import InstanceView
from segjax.training.configuration import UnknownSetting
from tests.models.mask_rcnn_tiny import CLASSES, tiny_model, variables_of
from tests.training import tiny


@pytest.fixture(scope="module")
def detector():
    model = tiny_model()
    task = coco_task(
        model,
        classes=CLASSES,
        preprocess=IMAGENET,
        paste_rule="torchvision",
        resize=Resize(ResizeShortSide((48,), 64, rounding="down", antialias=False)),
        buckets=((64, 64),),
    )
    return Pretrained(model, variables_of(model), IMAGENET, task)


@pytest.fixture(scope="module")
def photo():
    blobs = np.random.default_rng(0).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    return blobs.repeat(16, axis=0).repeat(16, axis=1)


@pytest.fixture(scope="module")
def segmenter():
    task = tiny.make_task(tiny.Config(workdir=Path()))
    return Pretrained(task.model, {}, task.preprocess, task)


def test_a_detector_keeps_its_settings_unless_they_change(detector):
    same = with_prediction(detector, {})
    assert same.task == detector.task
    assert settings_of(detector)["prediction"] == {
        "short_sides": [48],
        "max_size": 64,
        "flip": False,
        "mask_threshold": 0.5,
        "tile": None,
        "tile_overlap": 0.25,
    }


def test_the_score_threshold_and_the_number_of_detections_select_among_detections(detector, photo):
    found = detector.predict(photo)
    assert len(found["scores"]) == detector.model.detections.max_detections
    threshold = float(found["scores"][2])
    confident = with_prediction(detector, {"network.detections.score_threshold": threshold})
    np.testing.assert_array_equal(confident.predict(photo)["scores"], found["scores"][:2])
    fewer = with_prediction(detector, {"network.detections.max_detections": 1})
    np.testing.assert_array_equal(fewer.predict(photo)["boxes"], found["boxes"][:1])
    low = {"network.detections.score_threshold": 0, "network.detections.max_detections": 40}
    more = with_prediction(detector, low).predict(photo)
    assert len(more["scores"]) > len(found["scores"])
    np.testing.assert_array_equal(more["scores"][:5], found["scores"])


def test_sizes_and_flips_are_views_that_keep_the_rule_of_the_source(detector):
    changes = {"prediction.short_sides": [32, 48], "prediction.flip": True}
    task = with_prediction(detector, changes | {"prediction.mask_threshold": 0.25}).task
    resizes = [
        Resize(ResizeShortSide((side,), 64, rounding="down", antialias=False)) for side in (32, 48)
    ]
    expected = [(resize, flip) for resize in resizes for flip in (False, True)]
    assert [(view.resize, view.flip) for view in task.views] == expected
    assert task.mask_threshold == 0.25


def test_a_semantic_model_takes_scales_flips_and_a_crf(segmenter):
    assert with_prediction(segmenter, {}).task == segmenter.task
    changes = {"prediction.scales": [0.5, 1], "prediction.flip": True, "prediction.refine": True}
    task = with_prediction(segmenter, changes | {"prediction.crf.num_iterations": 3}).task
    assert task.views == tuple(
        View(flip=flip, scale=scale) for scale in (0.5, 1.0) for flip in (False, True)
    )
    assert task.refine.func is refine_probabilities
    assert task.refine.keywords == {"config": CrfConfig(num_iterations=3)}
    assert dataclasses.replace(task, views=segmenter.task.views, refine=None) == segmenter.task


def test_windows_of_a_semantic_model_replace_the_sizes_of_its_source(segmenter):
    changes = {"prediction.size": [64, 96], "prediction.window_stride": [48, 64]}
    task = with_prediction(segmenter, changes).task
    assert task.covering == SlidingWindow((64, 96), (48, 64))
    assert task.input_size is None
    whole = dataclasses.replace(segmenter.task, covering=WholeImage((33, 33), 16))
    whole = dataclasses.replace(segmenter, task=whole)
    with pytest.raises(ValueError, match="multiple of 16 plus 1"):
        with_prediction(whole, changes)
    with pytest.raises(ValueError, match="size and window_stride go together"):
        with_prediction(segmenter, {"prediction.size": [64, 96]})


def test_bad_settings_are_refused(detector, segmenter):
    for model, name in ((segmenter, "prediction.output_stride"), (detector, "prediction.scales")):
        with pytest.raises(UnknownSetting, match=name.rpartition(".")[2]):
            with_prediction(model, {name: [8]})
    for model, name, value, complaint in (
        (segmenter, "prediction.scales", [], r"scales=\[\]; expected one or more above 0"),
        (segmenter, "prediction.scales", [0], "expected one or more above 0"),
        (segmenter, "prediction.flip", "yes", "flip='yes'; expected bool"),
        (detector, "prediction.short_sides", [], "expected one or more lengths"),
        (detector, "prediction.short_sides", [80], "max_size 64 is less than 80"),
        (detector, "prediction.tile", 0, "tile=0; expected a side of at least 1 pixel"),
        (detector, "network.detections.score_threshold", 2, "score_threshold=2.0; expected 0 to 1"),
        (detector, "network.detections.max_detections", 0, "max_detections=0; expected at least 1"),
    ):
        with pytest.raises(ValueError, match=complaint):
            with_prediction(model, {name: value})


def test_the_settings_of_a_published_model_are_those_that_it_predicts_with(detector, segmenter):
    views = (InstanceView(ResizeShortSide((48,), 64)), InstanceView(ResizeShortSide((56,), 64)))
    flipped = tuple(InstanceView(view.resize, flip) for view in views for flip in (False, True))
    changed = dataclasses.replace(detector.task, views=flipped, mask_threshold=0.4)
    model = dataclasses.replace(detector, task=changed)
    assert settings_of(model)["prediction"] == {
        **{"short_sides": [48, 56], "max_size": 64, "flip": True, "mask_threshold": 0.4},
        **{"tile": None, "tile_overlap": 0.25},
    }
    assert with_prediction(model, {"prediction.mask_threshold": 0.3}).task.views == flipped
    enlarged = dataclasses.replace(detector.task, views=(InstanceView(Enlarge(2.0)),))
    model = dataclasses.replace(detector, task=enlarged)
    assert with_prediction(model, {"prediction.mask_threshold": 0.3}).task.views == enlarged.views
    found = with_prediction(model, {"prediction.short_sides": [64]}).task.views
    assert found == (InstanceView(ResizeShortSide((64,), 1333)),)

    refine = partial(refine_probabilities, config=CrfConfig(num_iterations=3))
    task = dataclasses.replace(segmenter.task, views=rotations_and_flips(), refine=refine)
    model = dataclasses.replace(segmenter, task=task)
    found = with_prediction(model, {"prediction.crf.appearance_weight": 7.0}).task
    assert found.views == rotations_and_flips()
    assert found.refine.keywords["config"] == CrfConfig(num_iterations=3, appearance_weight=7.0)
