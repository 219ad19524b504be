"""Writes small files in COCO's format with their images."""

import json

import numpy as np
from PIL import Image

SIZE = (20, 30)
BOX = [2, 3, 10, 5]
POLYGON = [[2, 3, 12, 3, 12, 8, 2, 8]]


def annotation(number, image=5, category=7, **more):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": BOX,
        "area": 50.5,
        "iscrowd": 0,
        "segmentation": POLYGON,
        **more,
    }


def drawn():
    """The mask of `POLYGON`."""
    mask = np.zeros(SIZE, bool)
    mask[3:8, 2:12] = True
    return mask


def write(folder, *annotations, **parts):
    """Writes three images, by ids 5, 9 and 70, and a file that describes them."""
    (folder / "images").mkdir()
    content = {
        "info": {"description": 'nested {["]}: è, \u4e2d', "list": [1, {"annotations": []}]},
        "annotations": list(annotations),
        "images": [
            {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for number, name in ((70, "c.png"), (5, "ü é.png"), (9, "b.png"))
        ],
        "categories": [{"id": 90, "name": "straße"}, {"id": 7, "name": "cell"}],
        **parts,
    }
    for image in content["images"]:
        pixels = np.full(SIZE, image["id"], np.uint8)
        Image.fromarray(pixels).save(folder / "images" / image["file_name"])
    path = folder / "objects.json"
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return path, folder / "images"


def without_sizes(content):
    content["images"][0] |= {"height": -1, "width": -1}
    content["images"][1] |= {"height": None, "width": None}
    del content["images"][2]["height"]
