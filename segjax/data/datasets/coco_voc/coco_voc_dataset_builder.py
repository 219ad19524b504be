"""COCO 2017 with the 20 classes of PASCAL VOC, for pre-training."""

import json
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from segjax.coco.masks import draw_segmentation
from segjax.data.builder import SegmentationBuilder, image_feature, label_feature
from segjax.data.images import match_channels, read_image
from segjax.data.sources.files import ExampleFiles, SourceListing, keep_complete, note_sizes
from segjax.data.voc_classes import VOC_CLASSES
from segjax.labels import IGNORE_LABEL

# COCO's category id of each VOC class, in VOC's order; COCO has no category 0.
CATEGORIES = (0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
CLASS_OF_CATEGORY = {category: class_id for class_id, category in enumerate(CATEGORIES) if category}
# COCO's names of these categories, if they differ from VOC's.
COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
LEAST_AREA = 1000  # a training image has more pixels of VOC's classes than this
PUBLISHED = {"train": 118287, "val": 5000}  # images in the annotations


class Builder(SegmentationBuilder):
    """Instances drawn as class ids by the rules of torchvision's reference script.

    Source: references/segmentation/coco_utils.py in pytorch/vision.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    homepage = "https://cocodataset.org"
    license = "Annotations CC BY 4.0; the images are Flickr's, subject to its terms of use"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The folder with train2017, val2017 and annotations/instances_{train,val}2017.json: "
        "https://cocodataset.org/#download"
    )
    official_size = None

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": image_feature(channels=3),
            "labels": label_feature(VOC_CLASSES),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def find_examples(self, source: Path) -> SourceListing:
        splits, problems, sizes = {}, [], {}
        for split in PUBLISHED:
            annotations = source / "annotations" / f"instances_{split}2017.json"
            try:
                images = _read_annotations(annotations)
            except ValueError as error:
                problems.append(str(error))
                continue
            examples = []
            for name, image in images.items():
                if (
                    split == "val"
                    or sum(drawn["area"] for drawn in image["instances"]) > LEAST_AREA
                ):
                    path = source / f"{split}2017" / f"{name}.jpg"
                    paths = {"image": path, "annotations": annotations}
                    examples.append(ExampleFiles(name, paths))
            splits[split] = keep_complete(examples, problems)
            sizes[split] = len(images)
        return SourceListing(splits, problems, note_sizes(sizes, PUBLISHED))

    def read_example(self, files: ExampleFiles) -> dict[str, Any]:
        image = match_channels(read_image(files.paths["image"]), 3)
        annotated = _read_annotations(files.paths["annotations"])[files.id]
        size = annotated["height"], annotated["width"]
        if image.shape[:2] != size:
            raise ValueError(
                f"{files.paths['image']}: size {image.shape[:2]}, but "
                f"{files.paths['annotations']} says {size}"
            )
        try:
            labels = draw_classes(annotated["instances"], size)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{files.paths['annotations']}: image {files.id}: {error}") from error
        return {"id": files.id, "image": image, "labels": labels}


def draw_classes(instances: list[dict], size: tuple[int, int]) -> np.ndarray:
    """Draws instances as class ids, uint8 [H, W]: 0 = no instance, 255 = several overlap.

    Args:
      instances: annotations of COCO with "category_id" and "segmentation", polygons or run lengths.
      size: height and width.
    """
    labels = np.zeros(size, np.uint8)
    covers = np.zeros(size, np.uint16)
    for instance in instances:
        mask = draw_segmentation(instance["segmentation"], size)
        labels[mask] = CLASS_OF_CATEGORY[instance["category_id"]]
        covers += mask
    labels[covers > 1] = IGNORE_LABEL
    return labels


def _read_annotations(path: Path) -> dict[str, dict]:
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    return _read_version(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)  # one for each split
def _read_version(path: Path, modified: int) -> dict[str, dict]:
    """Reads the size and the instances of VOC's classes of each image, by the image's name."""
    try:
        content = json.loads(path.read_bytes())
        names = {category["id"]: category["name"] for category in content["categories"]}
        of_image = defaultdict(list)
        for annotation in content["annotations"]:
            if annotation["category_id"] in CLASS_OF_CATEGORY:
                kept = {key: annotation[key] for key in ("category_id", "segmentation", "area")}
                of_image[annotation["image_id"]].append(kept)
        images = {
            Path(image["file_name"]).stem: {
                "height": image["height"],
                "width": image["width"],
                "instances": of_image[image["id"]],
            }
            for image in sorted(content["images"], key=lambda image: image["id"])
        }
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not the instances of COCO ({error!r})") from error
    for category, class_id in CLASS_OF_CATEGORY.items():
        expected = COCO_NAMES.get(VOC_CLASSES[class_id], VOC_CLASSES[class_id])
        if names.get(category) != expected:
            raise ValueError(
                f"{path}: category {category} is {names.get(category)!r}; COCO's is {expected!r}"
            )
    return images
