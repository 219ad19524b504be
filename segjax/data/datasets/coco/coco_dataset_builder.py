"""COCO 2017: everyday scenes in which each object is outlined."""

from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from segjax.coco.classes import COCO_CATEGORIES, COCO_CLASSES
from segjax.coco.index import CocoIndex, read_coco_index
from segjax.coco.run_lengths import decode, encode
from segjax.data.augmentation.instance import keep_objects
from segjax.data.builder import SegmentationBuilder, decode_text, image_feature
from segjax.data.instance_masks import crop_mask
from segjax.data.sources.coco_example import read_coco_example
from segjax.data.sources.files import ExampleFiles, SourceListing, keep_complete, note_sizes

PUBLISHED = {"train": 118287, "val": 5000}


class Builder(SegmentationBuilder):
    """Photographs with the boxes, classes and masks (as run lengths) of their objects."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    homepage = "https://cocodataset.org"
    license = "Annotations CC BY 4.0; the images are Flickr's, subject to its terms of use"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The folder with train2017, val2017 and annotations/instances_{train,val}2017.json: "
        "https://cocodataset.org/#download"
    )
    official_size = None
    category_ids = tuple(COCO_CATEGORIES)

    @property
    def class_names(self) -> tuple[str, ...]:
        return COCO_CLASSES

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image_id": tfds.features.Scalar(np.int64),
            "image": image_feature(channels=3),
            "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
            "classes": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "masks": tfds.features.Text(),  # the run lengths of one object on each line
            "crowd": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
            "areas": tfds.features.Tensor(shape=(None,), dtype=np.float32),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def find_examples(self, source: Path) -> SourceListing:
        splits, problems, notes, sizes = {}, [], [], {}
        for split in PUBLISHED:
            annotations = source / "annotations" / f"instances_{split}2017.json"
            try:
                index = _index(annotations)
            except ValueError as error:
                problems.append(str(error))
                continue
            examples = []
            for place, name in enumerate(index.file_names):
                paths = {"image": source / f"{split}2017" / name, "annotations": annotations}
                examples.append(ExampleFiles(Path(name).stem, paths, page=place))
            splits[split] = keep_complete(examples, problems)
            sizes[split] = len(examples)
            notes += [f"{annotations}: {note}" for note in index.notes]
        return SourceListing(splits, problems, notes + note_sizes(sizes, PUBLISHED))

    def read_example(self, files: ExampleFiles) -> dict:
        index = _index(files.paths["annotations"])
        example = read_coco_example(index, files.page, files.paths["image"].parent)
        # COCO 2017 outlines all objects; the prepared set has no entry for objects with boxes only.
        example = keep_objects(example, example["has_mask"])
        del example["has_mask"]
        return {"id": files.id, **example}

    @staticmethod
    def to_record(example: dict) -> dict[str, object]:
        """Converts an example to the features that TFDS stores, without the image."""
        size = example["image"].shape[:2]
        counts = [
            encode(mask.pixels, size=size, top=mask.top, left=mask.left)["counts"]
            for mask in example["masks"]
        ]
        record = {key: value for key, value in example.items() if key != "image"}
        return {**record, "masks": "\n".join(counts)}

    @staticmethod
    def to_example(record: dict) -> dict:
        """Converts a record that TFDS has read to an example of a `Source`."""
        size = record["image"].shape[:2]
        counts = decode_text(record["masks"]).split()
        return {
            **record,
            "id": decode_text(record["id"]),
            "image_id": int(record["image_id"]),
            "masks": tuple(crop_mask(decode({"size": size, "counts": run})) for run in counts),
        }


def _index(annotations: Path) -> CocoIndex:
    if not annotations.is_file():
        raise ValueError(f"{annotations}: missing")
    return _index_of_version(annotations, annotations.stat().st_mtime_ns)


@lru_cache(maxsize=2)  # one for each split
def _index_of_version(annotations: Path, modified: int) -> CocoIndex:
    index = read_coco_index(annotations)
    if index.categories != COCO_CATEGORIES:
        raise ValueError(f"{annotations}: the categories are not the 80 of COCO 2017")
    return index
