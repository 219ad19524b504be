"""What `segjax predict` writes of detections."""

import json

import cv2
import numpy as np
import pytest

from segjax.coco import run_lengths as rle
from segjax.commands.prediction_files import DetectionFiles
from segjax.evaluation.coco import evaluate_coco

CLASSES = ("background", "cell", "nucleus")


def make_prediction(boxes, classes, scores, size):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    masks = []
    for x_min, y_min, x_max, y_max in boxes.astype(int):
        mask = np.zeros(size, bool)
        mask[y_min:y_max, x_min:x_max] = True
        masks.append(rle.encode(mask))
    scores, classes = np.array(scores, np.float32), np.array(classes, np.int32)
    return {"boxes": boxes, "classes": classes, "scores": scores, "masks": masks}


@pytest.fixture
def written(tmp_path):
    files = DetectionFiles(tmp_path, CLASSES)
    first = {"id": "a", "original": np.zeros((40, 60, 1), np.uint8), "path": tmp_path / "a.png"}
    boxes = [[5, 6, 25, 16], [30, 10, 50, 40]]
    files.write(first, make_prediction(boxes, [2, 1], [0.75, 0.25], (40, 60)))
    second = {"id": "b_page1", "original": np.zeros((600, 700, 3), np.uint16)}
    second |= {"path": tmp_path / "b.tif", "page": 1}
    files.write(second, make_prediction([], [], [], (600, 700)))
    return tmp_path, files.finish()


def test_detections_are_one_file_in_coco_format_with_scores(written):
    folder, lines = written
    content = json.loads((folder / "detections.json").read_text())
    assert content["images"] == [
        {"id": 1, "file_name": str(folder / "a.png"), "height": 40, "width": 60},
        {"id": 2, "file_name": str(folder / "b.tif"), "height": 600, "width": 700, "page": 1},
    ]
    assert content["categories"] == [{"id": 1, "name": "cell"}, {"id": 2, "name": "nucleus"}]
    first, second = content["annotations"]
    assert (first["bbox"], first["area"], first["score"]) == ([5, 6, 20, 10], 200, 0.75)
    assert (first["image_id"], first["category_id"], first["iscrowd"]) == (1, 2, 0)
    assert second["bbox"] == [30, 10, 20, 30]
    assert "2 objects with scores" in lines[0]
    # It is its own ground truth, and its annotations are results.
    for iou_type in ("bbox", "segm"):
        assert evaluate_coco(content, content["annotations"], iou_type)["AP"] == pytest.approx(1)


def test_pictures_show_detections_of_high_score(written):
    folder, _ = written
    assert sorted(path.name for path in (folder / "overlays").iterdir()) == ["a.png", "b_page1.png"]
    picture = cv2.imread(str(folder / "overlays" / "a.png"))
    factor = picture.shape[0] // 40
    assert picture.shape == (40 * factor, 60 * factor, 3)
    assert picture[11 * factor, 15 * factor].any()
    assert not picture[25 * factor, 40 * factor].any()
    assert cv2.imread(str(folder / "overlays" / "b_page1.png")).shape == (600, 700, 3)


def test_no_broken_file_is_left_behind(written):
    folder, _ = written
    assert sorted(path.name for path in folder.iterdir()) == ["detections.json", "overlays"]
