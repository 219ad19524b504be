"""The files of `segjax predict`: label maps or detections, and pictures of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax.commands.coco_results import describe_capacity
from segjax.commands.errors import UserError
from segjax.commands.prediction_names import ProbabilityFormat, probability_names
from segjax.data.images import write_labels
from segjax.data.label_tiffs import write_label_tiff
from segjax.files.atomic import write_json
from segjax.pictures.instances import draw_detections
from segjax.pictures.overlays import overlay, overlay_instances, with_legend, write_png

SHOWN_SCORE = 0.5  # lowest score of a detection that pictures show


class LabelFiles:
    """Writes labels/, overlays/ and, if the model separates objects, instances/.

    The label maps and instances of TIFF pages with a resolution or a place on the map are written
    as TIFF files as well, which keep it, to labels_tiff/ and instances_tiff/.

    Args:
      output: the folder.
      classes: the names of the classes.
      background: the class that pictures leave uncoloured, or None.
      probabilities: the format of probability maps; None writes none. See `write_probabilities`.
    """

    def __init__(
        self,
        output: Path,
        classes: Sequence[str],
        *,
        background: int | None,
        probabilities: ProbabilityFormat | None = None,
    ):
        self.output = output
        self._classes = classes
        self._background = background
        self._probabilities: ProbabilityFormat | None = probabilities
        self._written: set[str] = set()

    def write(self, example: dict, prediction: dict) -> None:
        """Writes the files of one image, named after its "id"; see `segjax.data.label_tiffs`.

        Args:
          example: "id", "original" [height, width, channels], and optionally "tags", those of its
            page.
          prediction: "labels", and optionally "instances" and "probabilities".

        Raises:
          UserError: probability maps are asked for, and the prediction has none.
        """
        name, instances = example["id"], prediction.get("instances")
        labels = prediction["labels"]
        self._write_map("labels", labels, example)
        if instances is None:
            picture = overlay(example["original"], labels, background=self._background)
            picture = with_legend(picture, labels, self._classes, background=self._background)
        else:
            self._write_map("instances", instances, example)
            picture = overlay_instances(example["original"], instances)
        write_png(self.folder("overlays") / f"{name}.png", picture)
        if self._probabilities is not None:
            if "probabilities" not in prediction:
                raise UserError("--probabilities: this model predicts none")
            write_probabilities(
                self.folder("probabilities"),
                name,
                prediction["probabilities"],
                classes=self._classes,
                kind=self._probabilities,
            )

    def finish(self) -> list[str]:
        """Returns lines of text that say what was written."""
        values = ", ".join(f"{value} {name}" for value, name in enumerate(self._classes))
        objects = "0 background, then one number per object"
        kept = "with the resolution and the place of TIFF images"
        formats = {
            "npy": "float32 [height, width, classes]",
            "png": "16 bits, 65535 for 1; one file per class",
            None: "",
        }
        lines = {
            "labels": values,
            "labels_tiff": f"the same {kept}" if "labels" in self._written else values,
            "instances": objects,
            "instances_tiff": f"the same {kept}" if "instances" in self._written else objects,
            "probabilities": formats[self._probabilities],
            "overlays": "",
        }
        width = max(map(len, self._written)) + 2
        return [
            f"{name:{width}}{self.output / name}" + f"  ({text})" * bool(text)
            for name, text in lines.items()
            if name in self._written
        ]

    def _write_map(self, kind: str, values: np.ndarray, example: dict) -> None:
        write_labels(self.folder(kind) / f"{example['id']}.png", values)
        if example.get("tags"):
            path = self.folder(f"{kind}_tiff") / f"{example['id']}.tif"
            write_label_tiff(path, values, example["tags"])

    def folder(self, name: str) -> Path:
        """Returns a folder of the output, which is made when it is first asked for."""
        folder = self.output / name
        if name not in self._written:
            folder.mkdir(parents=True, exist_ok=True)
            self._written.add(name)
        return folder


def write_probabilities(
    folder: Path,
    name: str,
    probabilities: np.ndarray,
    *,
    classes: Sequence[str],
    kind: ProbabilityFormat,
) -> None:
    """Writes the class probabilities of one image.

    "npy" writes NAME.npy, float32 [height, width, classes], the values of the prediction. "png"
    writes NAME_CLASS.png for each class, grey of 16 bits: round(65535 · p), halves up, with p
    limited to 0…1. So pixel / 65535 differs from p by at most 1 / 131070.

    Args:
      folder: the folder, which exists.
      name: the name of the image's files.
      probabilities: [height, width, classes].
      classes: the names of the classes.
      kind: the format.
    """
    names = probability_names(name, classes, kind)
    if kind == "npy":
        np.save(folder / names[0], np.asarray(probabilities, np.float32))
        return
    for number, file_name in enumerate(names):
        exact = probabilities[..., number].astype(np.float64).clip(0, 1)
        write_labels(folder / file_name, np.floor(exact * 65535 + 0.5).astype(np.uint16))


class DetectionFiles:
    """Writes overlays/, `detections.json` and `images.json`.

    `detections.json` is a list in COCO's result format, which COCO's own tools load: "image_id",
    "category_id", "bbox" [x, y, width, height], "segmentation" in compressed run lengths and
    "score", by descending score in each image. `images.json` has the "images" ("id", "file_name" as
    the user gave it, "height", "width", and "page" for files with several pages) and "categories"
    ("id", "name") that the ids stand for.

    Args:
      output: the folder.
      classes: the names of the classes, the background first.
      category_ids: the ids of the classes, without the background.
      most: the largest number of detections that the model finds in an image.
      notes: lines of text about the ids.
    """

    def __init__(
        self,
        output: Path,
        classes: Sequence[str],
        *,
        category_ids: Sequence[int | str],
        most: float,
        notes: Sequence[str] = (),
    ):
        self._output = output
        self._classes = classes
        self._category_ids = tuple(category_ids)
        self._most = most
        self._notes = [*notes]
        self._images, self._results, self._counts = [], [], []
        self._made_up = False

    def write(self, example: dict, prediction: dict) -> None:
        """Writes the picture of one image, and keeps its detections for `finish`.

        Args:
          example: "id", "original" [height, width, channels], "path", and optionally "page" and
            "image_id"; without "image_id", images are numbered from 1.
          prediction: "boxes", "scores" (descending), "classes" and "masks" (see
            `segjax.coco.run_lengths`).
        """
        boxes, masks = np.asarray(prediction["boxes"], np.float64), prediction["masks"]
        scores, classes = (np.asarray(prediction[name]) for name in ("scores", "classes"))
        height, width = example["original"].shape[:2]
        self._made_up |= "image_id" not in example
        number = example.get("image_id", len(self._images) + 1)
        image = {"id": number, "file_name": str(example["path"])}
        image |= {"height": height, "width": width}
        if "page" in example:
            image["page"] = example["page"]
        self._images.append(image)
        self._counts.append(len(scores))
        for (x_min, y_min, x_max, y_max), score, class_id, mask in zip(
            boxes.tolist(), scores.tolist(), classes.tolist(), masks, strict=True
        ):
            self._results.append(
                {
                    "image_id": number,
                    "category_id": self._category_ids[class_id - 1],
                    "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
                    "segmentation": mask,
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
        """Writes the JSON files; returns lines of text that say what was written."""
        names = zip(self._category_ids, self._classes[1:], strict=True)
        table = {
            "images": self._images,
            "categories": [{"id": number, "name": name} for number, name in names],
        }
        path = write_json(self._output / "detections.json", self._results, indent=None)
        images = write_json(self._output / "images.json", table, indent=None)
        overlays = self._output / "overlays"
        lines = [
            f"detections  {path}  (COCO's result format: {len(self._results)} objects with scores)",
            f"images      {images}  (the images and categories that the ids stand for)",
            f"overlays    {overlays}  (objects with a score of {SHOWN_SCORE} or more)",
        ]
        if self._made_up:
            lines.append(
                f"image ids: 1 to {len(self._images)}, made up in the order of the images; "
                "--annotations FILE takes a data set's own"
            )
        return [*lines, *self._notes, *describe_capacity(self._counts, self._most)]
