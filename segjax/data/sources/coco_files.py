"""Objects with masks from any JSON file in COCO's format, read image by image."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segjax.coco.index import CocoIndex, has_mask, read_coco_index
from segjax.data.images import match_channels, read_image
from segjax.data.instance_masks import CroppedMask, mask_from_segmentation


@dataclass(frozen=True, eq=False)
class CocoInstances:
    """The images and objects of a file in COCO's format, read on demand.

    An example is as `segjax.data.sources.protocol.Source` says for objects: "id" str, "image_id"
    int, "image" uint8 or uint16 [H, W, 3], and for n objects "boxes" float32 [n, 4] (as annotated,
    clipped to the image), "classes" int32 [n], "masks" (a tuple of `CroppedMask`), "crowd" bool [n]
    and "areas" float32 [n] (as annotated).

    Images are sorted by their ids. An "id" is the name of the image file without its suffix, or the
    image's id if two files have the same name. Classes are 1, 2, ... in the order of the category
    ids, which may have gaps. Masks are COCO's own, pixel by pixel; an object too small for any
    pixel has an empty mask.

    Opening reads the whole file once. COCO's train2017 takes half a minute and, for a moment, 1 GB;
    about 25 MB are kept and pickled to worker processes.

    Attributes:
      annotations: the JSON file.
      images: the folder of the image files.
      drop_empty: leave out images without objects or with crowds alone, as detectron2 does for
        training (FILTER_EMPTY_ANNOTATIONS).
      ids: the name of each example.

    Raises:
      FileNotFoundError: the file, the folder or an image is missing.
      ValueError: the file is not in COCO's format, or no image is left.
    """

    annotations: Path
    images: Path
    drop_empty: bool = field(default=False, kw_only=True)
    ids: tuple[str, ...] = field(init=False, repr=False)
    _index: CocoIndex = field(init=False, repr=False)
    _places: np.ndarray = field(init=False, repr=False)  # of the examples in the index

    def __post_init__(self):
        path, folder = (Path(given).expanduser() for given in (self.annotations, self.images))
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected annotations in COCO's format")
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; expected the images of {path}")
        index = read_coco_index(path.absolute())
        places = np.arange(len(index.image_ids))
        if self.drop_empty:
            objects = np.concatenate([[0], np.cumsum(~index.crowd)])[index.first]
            places = places[np.diff(objects) > 0]
        if not len(places):
            raise ValueError(f"{path}: no images" + " with objects" * self.drop_empty)
        for name, value in (
            ("annotations", path.absolute()),
            ("images", folder.absolute()),
            ("ids", _names(index, places)),
            ("_index", index),
            ("_places", places),
        ):
            object.__setattr__(self, name, value)
        self._check_files()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> dict:
        if not 0 <= number < len(self):
            raise IndexError(f"example {number} of {len(self)} in {self.annotations}")
        place = self._places[number]
        example = read_coco_example(self._index, int(place), self.images)
        return {"id": self.ids[number], **example}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, "background" first."""
        return ("background", *self._index.categories.values())

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The category ids of the classes 1, 2, ..., which results in COCO's format need."""
        return tuple(self._index.categories)

    @property
    def image_ids(self) -> np.ndarray:
        """The image id of each example, int64 [n]."""
        return self._index.image_ids[self._places]

    @property
    def sizes(self) -> np.ndarray:
        """The height and width of each image, int32 [n, 2]."""
        return self._index.sizes[self._places]

    @property
    def notes(self) -> tuple[str, ...]:
        """The annotations that were left out and the reason, one sentence each."""
        return self._index.notes

    def _check_files(self) -> None:
        """Raises FileNotFoundError for missing images, before training starts."""
        present = {entry.name for entry in os.scandir(self.images)}
        names = [self._index.file_names[place] for place in self._places]
        missing = [
            name for name in names if name not in present and not (self.images / name).is_file()
        ]
        if missing:
            raise FileNotFoundError(
                f"{self.images / missing[0]}: missing, and {len(missing) - 1} more of the "
                f"{len(names)} images of {self.annotations}"
            )


def read_coco_example(index: CocoIndex, place: int, images: Path) -> dict:
    """Reads one image of an index and its objects: an example without "id".

    Args:
      index: the images and annotations of a file.
      place: the number of the image in the index.
      images: the folder of the image files.

    Raises:
      ValueError: the image is unreadable or its size is not the index's (the message names the
        file), or a mask cannot be drawn (the message names the annotation).
    """
    path = images / index.file_names[place]
    size = tuple(index.sizes[place].tolist())
    image = match_channels(read_image(path), 3)
    if image.shape[:2] != size:
        raise ValueError(f"{path}: size {image.shape[:2]}, but {index.path} says {size}")
    found = index.annotations(place)
    masks = tuple(_draw_mask(annotation, size, index.path) for annotation in found)
    numbers = {category: number for number, category in enumerate(index.categories, 1)}
    boxes = np.array([annotation["bbox"] for annotation in found], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    areas = [
        annotation.get("area", mask.area) for annotation, mask in zip(found, masks, strict=True)
    ]
    return {
        "image_id": int(index.image_ids[place]),
        "image": image,
        "boxes": np.clip(boxes, 0, [*size[::-1]] * 2).astype(np.float32),
        "classes": np.array([numbers[a["category_id"]] for a in found], np.int32),
        "masks": masks,
        "crowd": np.array([bool(a.get("iscrowd", 0)) for a in found], bool),
        "areas": np.array(areas, np.float32),
    }


def _draw_mask(annotation: dict, size: tuple[int, int], path: Path) -> CroppedMask:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):  # polygons of fewer than three corners enclose nothing
        segmentation = [polygon for polygon in segmentation if has_mask([polygon])]
    try:
        return mask_from_segmentation(segmentation, size)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: annotation {annotation.get('id')} of image {annotation['image_id']}: {error}"
        ) from error


def _names(index: CocoIndex, places: np.ndarray) -> tuple[str, ...]:
    """The names of the files without suffix, or the ids of the images if two names are equal."""
    names = tuple(Path(index.file_names[place]).stem for place in places)
    if len(set(names)) < len(names):
        return tuple(map(str, index.image_ids[places].tolist()))
    return names
