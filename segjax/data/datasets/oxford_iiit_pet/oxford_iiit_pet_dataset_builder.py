"""Oxford-IIIT pets: a data set of TFDS's own, built by TFDS and read as ours are."""

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.datasets.oxford_iiit_pet import oxford_iiit_pet_dataset_builder

from segjax.data.builder import decode_text


class Builder(oxford_iiit_pet_dataset_builder.Builder, skip_registration=True):
    """TFDS's builder: it downloads the files, and needs TensorFlow to build but not to read.

    What it has for `segjax.data` are the attributes of `SegmentationBuilder` below.
    """

    pkg_dir_path = epath.Path(__file__).parent
    url_infos = oxford_iiit_pet_dataset_builder.Builder.url_infos  # its checksums
    license = "CC BY-SA 4.0"
    needs_tensorflow = True
    official_size = None
    class_names = ("pet", "background", "outline")

    def dataset_info_from_configs(self, **options) -> tfds.core.DatasetInfo:
        """Returns what TFDS knows of the data set, with the trimap as the target."""
        ours = {"supervised_keys": ("image", "segmentation_mask"), "license": self.license}
        return super().dataset_info_from_configs(**options | ours)

    @staticmethod
    def to_example(record: dict) -> dict[str, np.ndarray | str]:
        """Turns a record as TFDS reads it into an example of a `Source`."""
        return {
            "id": decode_text(record["file_name"]).removesuffix(".jpg"),
            "image": record["image"],
            "labels": record["segmentation_mask"][..., 0] - np.uint8(1),  # in the files 1 to 3
        }
