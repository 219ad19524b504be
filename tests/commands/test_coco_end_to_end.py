"""A detector on files in COCO's format: its result files in pycocotools, from command to score."""

import contextlib
import io
import json
import os
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segjax.cli import main
from segjax.coco import run_lengths as rle
from segjax.commands import launch
from segjax.training.evaluate import read_evaluations
from segjax.training.experiment import load_module
from tests.models.mask_rcnn_tiny import SIDE, ellipses

EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "mask_rcnn" / "coco_files.py"
SMALL = [
    *("--network.backbone", "resnet18", "--network.width-multiplier", "0.125"),
    *("--network.norm", "batch", "--network.pixels", "tensorflow"),
    *("--network.fpn-features", "16", "--network.head-features", "16"),
    *("--network.fc-features", "32", "--network.anchor-sizes", "8", "16", "24", "32", "48"),
    *("--network.proposals.pre-nms", "40", "--network.proposals.post-nms", "20"),
    *("--network.detections.max-detections", "20", "--network.detections.max-candidates", "60"),
    *("--proposals.pre-nms", "40", "--proposals.post-nms", "30"),
    *("--anchor-sampling.size", "64", "--region-sampling.size", "24"),
    *("--input.max-objects", "6", "--input.mask-size", "28", "--input.buckets", "64", "64"),
    *("--input.resize.short-sides", "64", "--input.resize.max-size", "64"),
    *("--prediction.short-sides", "64", "--prediction.max-size", "64"),
    *("--prediction.buckets", "64", "64"),
    *("--train.num-steps", "150", "--train.batch-size", "4", "--train.num-workers", "0"),
    *("--train.eval-batch-size", "4", "--optimizer.name", "adamw"),
    *("--optimizer.learning-rate", "4e-3", "--optimizer.reference-batch-size", "4"),
    *("--optimizer.schedule", "cosine", "--optimizer.warmup-steps", "20"),
    "--optimizer.multipliers",  # none
]
# The data set's own ids, with gaps, in the order of neither the files nor the classes.
CATEGORIES = {18: "red", 3: "green"}
VAL_IDS = (907, 33, 5012, 404, 8, 77, 6, 55, 4, 1009, 2, 1)
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@pytest.fixture(autouse=True)
def same_flags(monkeypatch):
    """Commands set XLA's flags for their process, which here is that of all tests."""
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


def write_split(folder, split, *, first, ids):
    """Writes ellipses as images and a file in COCO's format; returns the two flags for them."""
    images, annotations = [], []
    (folder / split).mkdir(parents=True)
    for seed, number in enumerate(ids, start=first):
        example = ellipses(seed, objects=1 + seed % 3)
        name = f"{7 * seed % 40:02d}_{seed}.png"
        cv2.imwrite(str(folder / split / name), example["image"][..., ::-1])
        images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
        entries = (example[key] for key in ("boxes", "classes", "masks"))
        for box, class_id, mask in zip(*entries, strict=True):
            x_min, y_min, x_max, y_max = box.tolist()
            size = {"size": (SIDE, SIDE), "top": mask.top, "left": mask.left}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": [*CATEGORIES][class_id - 1],
                    "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
                    "segmentation": rle.encode(mask.pixels, **size),
                    "area": int(mask.area),
                    "iscrowd": int(split == "val" and seed % 5 == 0),
                }
            )
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content))
    flags = (f"--files.{split}-annotations", f"--files.{split}-images")
    return [flags[0], str(folder / f"{split}.json"), flags[1], str(folder / split)]


def pycocotools_scores(truth, results, iou_type):
    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO(str(truth))
        scoring = COCOeval(objects, objects.loadRes(str(results)), iou_type)
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return dict(zip(STATS, np.where(scoring.stats < 0, np.nan, scoring.stats), strict=True))


@pytest.mark.slow
@pytest.mark.optimized
def test_pycocotools_reads_the_results_and_gives_their_scores(tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    files = write_split(data, "train", first=0, ids=range(1, 41))
    files += write_split(data, "val", first=100, ids=VAL_IDS)
    module = load_module(EXPERIMENT)
    with jax.numpy_dtype_promotion("standard"):  # Optax's AdamW itself mixes dtypes
        launch.run(module.Config, module.build, EXPERIMENT, ["--workdir", str(run), *SMALL, *files])
    data = data.rename(tmp_path / "moved")
    truth, images = data / "val.json", data / "val"
    moved = [f"files.val_annotations={truth}", f"files.val_images={images}"]
    main(["evaluate", str(run), "--set", *moved])
    output = tmp_path / "out"
    main(["predict", str(run), str(images), "--annotations", str(truth), "--output", str(output)])

    scores = read_evaluations(run)["val"].metrics
    assert 0.05 < scores["mask_AP"] < 0.95
    for file in (run / "evaluation" / "detections" / "val.json", output / "detections.json"):
        rows = json.loads(file.read_text())
        assert {row["image_id"] for row in rows} <= {*VAL_IDS}
        assert {row["category_id"] for row in rows} == {*CATEGORIES}
        # With boxes in the file, pycocotools takes the sizes of masks from them.
        masks = tmp_path / "masks.json"
        masks.write_text(json.dumps([{k: row[k] for k in row if k != "bbox"} for row in rows]))
        for iou_type, kind, results in (("bbox", "box", file), ("segm", "mask", masks)):
            expected = pycocotools_scores(truth, results, iou_type)
            found = {name: scores[f"{kind}_{name}"] for name in STATS}
            np.testing.assert_allclose(
                [found[name] for name in STATS], [*expected.values()], rtol=0, atol=1e-9
            )
        expected = pycocotools_scores(truth, file, "segm")["AP"]
        assert scores["mask_AP"] == pytest.approx(expected, abs=1e-9)
