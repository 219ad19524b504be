"""The image files of a JSON file in COCO's format: checks by their headers."""

import json

import numpy as np
from PIL import Image

from segjax.data.sources import coco_files
from segjax.data.sources.coco_files import CocoInstances
from tests.data.sources.test_coco_files import SIZE, turned_by_exif


def test_images_that_stand_upright_by_their_tag_hide_no_wrong_one(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_files, "SUSPECTS_DECODED", 1)
    path, images = turned_by_exif(tmp_path, 6)
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["height"], image["width"] = SIZE[::-1]
    content["annotations"] = []
    path.write_text(json.dumps(content))
    source = CocoInstances(path, images)
    assert source.file_problems() == {}
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(images / "70.png")
    assert set(source.file_problems()) == {2}
