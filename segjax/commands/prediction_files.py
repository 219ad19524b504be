"""The files of `segjax predict`: label maps or detections, and pictures of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax.coco import run_lengths as rle
from segjax.data.images import write_labels
from segjax.files.atomic import write_json
from segjax.pictures.instances import draw_detections
from segjax.pictures.overlays import overlay, overlay_instances, with_legend, write_png

SHOWN_SCORE = 0.5  # lowest score of a detection that pictures show


class LabelFiles:
    """Writes labels/, overlays/ and, if the model separates objects, instances/.

    Args:
      output: the folder.
      classes: the names of the classes.
      background: the class that pictures leave uncoloured, or None.
    """

    def __init__(self, output: Path, classes: Sequence[str], *, background: int | None):
        self._folders = {name: output / name for name in ("labels", "instances", "overlays")}
        self._classes = classes
        self._background = background
        self._has_instances = False
        self._folders["labels"].mkdir(parents=True, exist_ok=True)

    def write(self, example: dict, prediction: dict) -> None:
        """Writes the files of one image, named after its "id"."""
        name, instances = f"{example['id']}.png", prediction.get("instances")
        labels = prediction["labels"]
        write_labels(self._folders["labels"] / name, labels)
        if instances is None:
            picture = overlay(example["original"], labels, background=self._background)
            picture = with_legend(picture, labels, self._classes, background=self._background)
        else:
            self._has_instances = True
            self._folders["instances"].mkdir(exist_ok=True)
            write_labels(self._folders["instances"] / name, instances)
            picture = overlay_instances(example["original"], instances)
        write_png(self._folders["overlays"] / name, picture)

    def finish(self) -> list[str]:
        """Returns lines of text that say what was written."""
        values = ", ".join(f"{value} {name}" for value, name in enumerate(self._classes))
        lines = [f"labels     {self._folders['labels']}  ({values})"]
        if self._has_instances:
            where = self._folders["instances"]
            lines.append(f"instances  {where}  (0 background, then one number per object)")
        return [*lines, f"overlays   {self._folders['overlays']}"]


class DetectionFiles:
    """Writes overlays/ and `detections.json`, one file in COCO's format for all images.

    The file has three lists. "images": "id" from 1, "file_name" as the user gave it, "height",
    "width", and "page" for files with several pages. "categories": the classes, "id" from 1.
    "annotations": all detections, by descending score in each image, with COCO's keys ("bbox"
    [x, y, width, height], "area" of the mask, "segmentation" in compressed run lengths, "iscrowd"
    0) and a "score". The annotations also hold all keys of COCO's result format.

    Args:
      output: the folder.
      classes: the names of the classes, the background first.
    """

    def __init__(self, output: Path, classes: Sequence[str]):
        self._output = output
        self._classes = classes
        self._images, self._annotations = [], []

    def write(self, example: dict, prediction: dict) -> None:
        """Writes the picture of one image, and keeps its detections for `finish`.

        Args:
          example: "id", "original" [height, width, channels], "path" and optionally "page".
          prediction: "boxes", "scores" (descending), "classes" and "masks" (see
            `segjax.coco.run_lengths`).
        """
        boxes, masks = np.asarray(prediction["boxes"], np.float64), prediction["masks"]
        scores, classes = (np.asarray(prediction[name]) for name in ("scores", "classes"))
        height, width = example["original"].shape[:2]
        image = {"id": len(self._images) + 1, "file_name": str(example["path"])}
        image |= {"height": height, "width": width}
        if "page" in example:
            image["page"] = example["page"]
        self._images.append(image)
        for (x_min, y_min, x_max, y_max), score, class_id, mask in zip(
            boxes.tolist(), scores.tolist(), classes.tolist(), masks, strict=True
        ):
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image["id"],
                    "category_id": class_id,
                    "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
                    "area": rle.area(mask),
                    "segmentation": mask,
                    "iscrowd": 0,
                    "score": score,
                }
            )
        shown = np.flatnonzero(scores >= SHOWN_SCORE)
        picture = draw_detections(
            example["original"],
            boxes=boxes[shown],
            classes=classes[shown],
            scores=scores[shown],
            masks=[masks[index] for index in shown],
            class_names=self._classes,
        )
        write_png(self._output / "overlays" / f"{example['id']}.png", picture)

    def finish(self) -> list[str]:
        """Writes `detections.json`; returns lines of text that say what was written."""
        categories = [{"id": i, "name": name} for i, name in enumerate(self._classes) if i]
        content = {"images": self._images, "categories": categories}
        content["annotations"] = self._annotations
        path = write_json(self._output / "detections.json", content, indent=None)
        overlays = self._output / "overlays"
        return [
            f"detections  {path}  (COCO's format: {len(self._annotations)} objects with scores)",
            f"overlays    {overlays}  (objects with a score of {SHOWN_SCORE} or more)",
        ]
