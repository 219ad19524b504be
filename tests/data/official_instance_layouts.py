"""Writes small data sets with objects in the layouts of COCO, Cityscapes and the DSB."""

import json

import numpy as np
from PIL import Image

from segjax.coco import run_lengths as rle
from segjax.coco.classes import COCO_CATEGORIES

SIZES = {7: (40, 60), 30: (60, 40), 200: (40, 40)}  # of COCO's images, by their ids


def write_coco(folder):
    """Three images in each split: two objects and a crowd; only a box without extent; nothing."""
    rng = np.random.default_rng(0)
    categories = [{"id": number, "name": name} for number, name in COCO_CATEGORIES.items()]
    for split in ("train", "val"):
        images = [
            {"id": number, "file_name": f"{number:012d}.jpg", "height": h, "width": w}
            for number, (h, w) in SIZES.items()
        ]
        (folder / f"{split}2017").mkdir(parents=True)
        for image in images:
            pixels = rng.integers(0, 256, (image["height"], image["width"], 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{split}2017" / image["file_name"])
        crowd = np.zeros(SIZES[30], bool)
        crowd[50:55, 3:9] = True
        runs = {"size": list(SIZES[30]), "counts": rle.run_lengths(crowd).tolist()}
        square = [[5, 10, 25, 10, 25, 40, 5, 40]]
        dot = [[30.1, 30.1, 30.2, 30.1, 30.2, 30.2]]
        annotations = [
            {"image_id": 30, "category_id": 90, "bbox": [5, 10, 20, 30], "segmentation": square},
            {"image_id": 30, "category_id": 1, "bbox": [30, 30, 0.5, 0.5], "segmentation": dot},
            {"image_id": 30, "category_id": 3, "bbox": [3, 50, 6, 5], "segmentation": runs},
            {"image_id": 7, "category_id": 3, "bbox": [3, 5, 0, 5], "segmentation": square},
        ]
        for number, annotation in enumerate(annotations):
            annotation |= {"id": number, "area": 1.5 * number, "iscrowd": int(number == 2)}
        content = {"images": images[::-1], "annotations": annotations, "categories": categories}
        path = folder / "annotations" / f"instances_{split}2017.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))


def write_cityscapes(folder):
    """One frame in each split: two cars, one touching a group of cars, a person and a road."""
    ids = np.full((20, 24), 7, np.int32)
    ids[2:8, 2:8], ids[2:8, 8:14], ids[2:8, 14:20] = 26_000, 26_001, 26
    ids[10:18, 4:7] = 24_003
    for split in ("train", "val", "test"):
        name = f"aachen_{split}"
        image = folder / "leftImg8bit" / split / "aachen" / f"{name}_leftImg8bit.png"
        truth = folder / "gtFine" / split / "aachen" / f"{name}_gtFine_instanceIds.png"
        for path, array in ((image, np.zeros((20, 24, 3), np.uint8)), (truth, np.uint16(ids))):
            path.parent.mkdir(parents=True)
            Image.fromarray(array).save(path)
    return ids


def write_nuclei(folder):
    """Six grey and six stained images with two nuclei each, as maps of ids."""
    rng = np.random.default_rng(2)
    ids = np.zeros((40, 48), np.uint16)
    ids[5:17, 5:17], ids[20:34, 30:44] = 1, 2
    for number in range(12):
        image = rng.integers(0, 256, (40, 48, 3), np.uint8)
        image = image[..., :1].repeat(3, axis=2) if number % 2 else image
        for kind, array in (("images", image), ("labels", ids)):
            path = folder / kind / f"nuclei_{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
