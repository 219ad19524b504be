"""What `segjax predict` writes of detections and of probabilities."""

import json

import cv2
import numpy as np
import pytest

from segjax.coco import run_lengths as rle
from segjax.commands.errors import UserError
from segjax.commands.prediction_files import DetectionFiles, LabelFiles, write_probabilities
from segjax.data.images import read_image
from segjax.data.tiff_metadata import PageTags
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
    files = DetectionFiles(tmp_path, CLASSES, category_ids=(7, "n"), most=2, notes=["a note"])
    first = {"id": "a", "original": np.zeros((40, 60, 1), np.uint8), "path": tmp_path / "a.png"}
    boxes = [[5, 6, 25, 16], [30, 10, 50, 40]]
    files.write(first, make_prediction(boxes, [2, 1], [0.75, 0.25], (40, 60)))
    second = {"id": "b_page1", "original": np.zeros((600, 700, 3), np.uint16)}
    second |= {"path": tmp_path / "b.tif", "page": 1}
    files.write(second, make_prediction([], [], [], (600, 700)))
    return tmp_path, files.finish()


def test_detections_are_results_and_a_table_says_what_their_ids_mean(written):
    folder, lines = written
    results = json.loads((folder / "detections.json").read_text())
    table = json.loads((folder / "images.json").read_text())
    assert table["images"] == [
        {"id": 1, "file_name": str(folder / "a.png"), "height": 40, "width": 60},
        {"id": 2, "file_name": str(folder / "b.tif"), "height": 600, "width": 700, "page": 1},
    ]
    assert table["categories"] == [{"id": 7, "name": "cell"}, {"id": "n", "name": "nucleus"}]
    first, second = results
    assert (first["bbox"], first["score"]) == ([5, 6, 20, 10], 0.75)
    assert (first["image_id"], first["category_id"]) == (1, "n")
    assert (second["bbox"], second["category_id"]) == ([30, 10, 20, 30], 7)
    keys = {"image_id", "category_id", "bbox", "segmentation", "score"}
    assert all(row.keys() == keys for row in results)
    assert "2 objects with scores" in lines[0]
    assert any("image ids: 1 to 2, made up" in line for line in lines)
    assert "a note" in lines
    assert any("1 of 2 images have 2 detections" in line for line in lines)


def test_an_example_with_an_image_id_keeps_it(tmp_path):
    files = DetectionFiles(tmp_path, CLASSES, category_ids=(1, 2), most=100)
    example = {"id": "a", "original": np.zeros((40, 60, 1), np.uint8), "path": tmp_path / "a.png"}
    files.write(
        example | {"image_id": 42}, make_prediction([[5, 6, 25, 16]], [2], [0.75], (40, 60))
    )
    assert not any("made up" in line for line in files.finish())
    results = json.loads((tmp_path / "detections.json").read_text())
    truth = json.loads((tmp_path / "images.json").read_text())
    assert [image["id"] for image in truth["images"]] == [42]
    truth["annotations"] = [row | {"id": 1, "iscrowd": 0, "area": 200} for row in results]
    for iou_type in ("bbox", "segm"):
        assert evaluate_coco(truth, results, iou_type)["AP"] == pytest.approx(1)


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
    names = ["detections.json", "images.json", "overlays"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_probabilities_are_rounded_half_up_to_16_bits(tmp_path):
    steps = np.array([0, 0.4999, 0.5, 1, 1.5, 32767.5, 65534.4999, 65534.5, 65535, 65535.01])
    expected = [0, 0, 1, 1, 2, 32768, 65534, 65535, 65535, 65535]
    probabilities = np.stack([steps / 65535, 1 - steps / 65535], axis=-1)[None]
    write_probabilities(tmp_path, "a", probabilities, classes=["rare", "w x/y"], kind="png")
    np.testing.assert_array_equal(read_image(tmp_path / "a_rare.png")[0, :, 0], expected)
    second = read_image(tmp_path / "a_w_x_y.png")[0, :, 0]
    assert (second[0], second[-1]) == (65535, 0)
    write_probabilities(
        tmp_path, "a", np.float32(probabilities), classes=["rare", "w x/y"], kind="npy"
    )
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.float32(probabilities))


def test_instances_keep_the_place_of_a_tiff_too(tmp_path):
    files = LabelFiles(tmp_path, ("ground", "cell"), background=0, probabilities="npy")
    instances = np.zeros((40, 60), np.int32)
    instances[5:9, 5:9] = 300
    labels = (instances > 0).astype(np.uint8)
    example = {"id": "a", "original": np.zeros((40, 60, 1), np.uint8)}
    example["tags"] = PageTags(resolution=(300, 300, 2))
    with pytest.raises(UserError, match="predicts none"):
        files.write(example, {"labels": labels, "instances": instances})
    for kind, values in (("labels", labels), ("instances", instances)):
        written = read_image(tmp_path / f"{kind}_tiff" / "a.tif")[..., 0]
        np.testing.assert_array_equal(written, values)
    names = [line.partition(" ")[0] for line in files.finish()]
    assert names[:4] == ["labels", "labels_tiff", "instances", "instances_tiff"]
