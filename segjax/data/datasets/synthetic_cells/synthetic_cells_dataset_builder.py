"""Pictures of touching cells, drawn by `segjax.data.sources.synthetic`; nothing to download."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from segjax.data.builder import (
    SegmentationBuilder,
    image_feature,
    instance_feature,
    label_feature,
)
from segjax.data.sources.files import ExampleFiles, SourceListing
from segjax.data.sources.synthetic import synthetic_cells

SIZE = (256, 256)
SPLITS = {"train": 64, "validation": 16, "test": 16}


class Builder(SegmentationBuilder):
    """96 pictures of 256×256; the number of a picture in the whole set seeds its generator."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    # There is no web page. Without a homepage, TFDS names a catalogue page that does not exist.
    homepage = "segjax.data.sources.synthetic"
    license = "Apache-2.0"
    official_size = SIZE

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": image_feature(channels=1),
            "labels": label_feature(["background", "cell"]),
            "instances": instance_feature(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def find_examples(self, source: Path) -> SourceListing:
        splits, start = {}, 0
        for split, count in SPLITS.items():
            numbers = range(start, start + count)
            splits[split] = [ExampleFiles(f"cells_{i:03d}", {}, page=i) for i in numbers]
            start += count
        return SourceListing(splits, [])

    def read_example(self, files: ExampleFiles) -> dict[str, Any]:
        image, instances = synthetic_cells(np.random.default_rng(files.page), size=SIZE)
        return {
            "id": files.id,
            "image": image,
            "labels": (instances > 0).astype(np.uint8),
            "instances": instances,
        }
