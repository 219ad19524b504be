"""Detections as COCO's result files: ids of images and categories."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from segjax.coco import run_lengths as rle
from segjax.coco.ids import result_ids
from segjax.commands.coco_results import describe_capacity, match_images, write_results
from segjax.commands.errors import UserError
from segjax.data.instance_masks import CroppedMask
from segjax.evaluation.coco import evaluate_coco
from segjax.evaluation.instance_evaluator import CocoEvaluator

CLASSES = ("background", "cell", "nucleus")


def listing(*images):
    return SimpleNamespace(
        path=Path("listing.json"),
        image_ids=tuple(number for number, _, _ in images),
        file_names=tuple(name for _, name, _ in images),
        sizes=np.array([size for _, _, size in images], np.int32),
    )


def test_images_of_one_name_are_told_apart_by_their_folders():
    known = listing((1, "a/x.png", (4, 6)), (2, "b/x.png", (4, 6)), (3, "y.png", (0, 0)))
    files = [(Path("data/b/x.png"), 1, (4, 6)), (Path("y.png"), 1, (9, 9))]
    assert match_images(files, known) == [2, 3]
    with pytest.raises(UserError, match="several images of this name"):
        match_images([(Path("x.png"), 1, (4, 6))], known)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([(Path("x.png"), 1, (6, 4))], r"says \(4, 6\): another image, or one of another"),
        ([(Path("x.png"), 2, (4, 6))], "2 pages cannot all have the id 1"),
        ([(Path("z.png"), 1, (4, 6))], "1 of 1 images are not in listing.json: z.png"),
        ([(Path("x.png"), 1, (4, 6)), (Path("d/x.png"), 1, (4, 6))], "several files are the"),
    ],
)
def test_files_that_are_not_the_listed_images_are_refused(files, message):
    with pytest.raises(UserError, match=message):
        match_images(files, listing((1, "x.png", (4, 6))))


def test_a_file_names_ids_first_then_the_training_and_the_rest_are_new():
    listed = {5: "cell", 8: "other"}
    ids = result_ids(("cell", "nucleus", "debris"), own=(1, 2, 8), listed=listed)
    assert ids.ids == (5, 2, 9)  # 8 is another category of the file
    assert ids.made_up == ("debris",)
    assert ids.listed


def test_results_of_an_evaluation_have_the_ids_of_the_split_and_its_scores(tmp_path):
    mask = np.zeros((20, 30), bool)
    mask[4:10, 5:25] = True
    example = {
        "id": "a",
        "image_id": 42,
        "image": np.zeros((20, 30, 3), np.uint8),
        "boxes": np.array([[5, 4, 25, 10]], np.float32),
        "classes": np.array([2]),
        "masks": (CroppedMask(0, 0, mask),),
        "crowd": np.zeros(1, bool),
        "areas": np.array([120.0]),
    }
    prediction = {key: example[key] for key in ("boxes", "classes")}
    prediction |= {"scores": np.array([0.5]), "masks": [rle.encode(mask)]}
    evaluator = CocoEvaluator(CLASSES)
    evaluator.update(example, prediction)
    task = SimpleNamespace(classes=CLASSES, most_detections=100)
    source = SimpleNamespace(category_ids=(7, "n"))
    (line,) = write_results(evaluator, source, task, split="val", folder=tmp_path)
    assert "1 detections)" in line
    results = json.loads((tmp_path / "detections" / "val.json").read_text())
    assert [(row["image_id"], row["category_id"]) for row in results] == [(42, "n")]
    table = json.loads((tmp_path / "detections" / "val_images.json").read_text())
    truth = table | {"categories": table["categories"][1:]}  # numbers and texts have no order
    truth["annotations"] = [row | {"id": 1, "area": 120.0, "iscrowd": 0} for row in results]
    assert evaluate_coco(truth, results, "segm")["AP"] == pytest.approx(1)
    assert write_results(object(), source, task, split="val", folder=tmp_path) == []


def test_images_at_the_capacity_of_the_model_are_counted():
    assert describe_capacity([3, 99], 100) == []
    (line,) = describe_capacity([100, 7, 100], 100)
    assert line.startswith("2 of 3 images have 100 detections, the most that the model finds")
