"""Oxford-IIIT pets: TFDS's own data set, built by TFDS and read like ours."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.datasets.oxford_iiit_pet import oxford_iiit_pet_dataset_builder

from segjax.data.builder import decode_text
from segjax.labels import BACKGROUND


class Builder(oxford_iiit_pet_dataset_builder.Builder, skip_registration=True):
    """TFDS's builder, which downloads the files and needs TensorFlow to build but not to read.

    The attributes below are those of `SegmentationBuilder` that `segjax.data` reads.
    """

    pkg_dir_path = epath.Path(__file__).parent
    url_infos = oxford_iiit_pet_dataset_builder.Builder.url_infos  # its checksums
    license = "CC BY-SA 4.0"
    needs_tensorflow = True
    official_size = None
    class_names = ("pet", "background", "outline")
    background = BACKGROUND

    def dataset_info_from_configs(self, **options) -> tfds.core.DatasetInfo:
        """Returns TFDS's description of the data set, with the trimap as the target."""
        ours = {"supervised_keys": ("image", "segmentation_mask"), "license": self.license}
        return super().dataset_info_from_configs(**options | ours)

    @staticmethod
    def to_example(record: dict) -> dict[str, Any]:
        """Converts a record that TFDS has read to an example of a `Source`."""
        return {
            "id": decode_text(record["file_name"]).removesuffix(".jpg"),
            "image": record["image"],
            "labels": record["segmentation_mask"][..., 0] - np.uint8(1),  # the files have 1 to 3
        }
