"""What `segjax predict` writes: label maps of a segmentation, or detections; pictures of both."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax.coco import run_lengths as rle
from segjax.data.images import write_labels
from segjax.files.atomic import write_json
from segjax.pictures.instances import draw_detections
from segjax.pictures.overlays import overlay, overlay_instances, with_legend, write_png

SHOWN_SCORE = 0.5  # of the detections in pictures, the least


class LabelFiles:
    """Writes labels/, instances/ where there are any, and overlays/.

    Args:
      output: the folder.
      classes: their names.
      background: the class that pictures leave uncoloured, or None.
    """

    def __init__(self, output: Path, classes: Sequence[str], *, background: int | None):
        self._folders = {name: output / name for name in ("labels", "instances", "overlays")}
        self._classes = classes
        self._background = background
        self._has_instances = False
        self._folders["labels"].mkdir(parents=True, exist_ok=True)

    def write(self, example: dict, prediction: dict) -> None:
        """Writes the files of one image, which are named after its "id"."""
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
        """Returns lines that tell people what there is now."""
        values = ", ".join(f"{value} {name}" for value, name in enumerate(self._classes))
        lines = [f"labels     {self._folders['labels']}  ({values})"]
        if self._has_instances:
            where = self._folders["instances"]
            lines.append(f"instances  {where}  (0 background, then a number for each object)")
        return [*lines, f"overlays   {self._folders['overlays']}"]


class DetectionFiles:
    """Writes overlays/ and `detections.json`, one file in COCO's format for all images.

    The file has "images" ("id" from 1, "file_name" as the user gave it, "height", "width", and
    "page" in files of several), "categories" (the classes, "id" from 1) and "annotations" as COCO
    has them ("bbox" [x, y, width, height], "area" of the mask, "segmentation" in compressed run
    lengths, "iscrowd" 0) with a "score" each: all detections, by descending score in each image.
    Without their other keys the annotations are COCO's result format.

    Args:
      output: the folder.
      classes: their names, the background first.
    """

    def __init__(self, output: Path, classes: Sequence[str]):
        self._output = output
        self._classes = classes
        self._images, self._annotations = [], []

    def write(self, example: dict, prediction: dict) -> None:
        """Writes the picture of one image, and keeps its detections for the file.

        Args:
          example: "id", "original" [height, width, channels], "path" and perhaps "page".
          prediction: "boxes", "scores" descending, "classes" and "masks" as
            `segjax.coco.run_lengths`.
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
        """Writes `detections.json`; returns lines that tell people what there is now."""
        categories = [{"id": i, "name": name} for i, name in enumerate(self._classes) if i]
        content = {"images": self._images, "categories": categories}
        content["annotations"] = self._annotations
        path = write_json(self._output / "detections.json", content, indent=None)
        return [
            f"detections  {path}  (COCO's format: {len(self._annotations)} objects with scores)",
            f"overlays    {self._output / 'overlays'}  (those of score {SHOWN_SCORE} or more)",
        ]
