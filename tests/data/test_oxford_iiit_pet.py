"""The Oxford-IIIT pets, a data set of TFDS's own."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from segjax.data import prepare as prepare_module
from segjax.data.checks.check import check
from segjax.data.prepare import prepare
from segjax.data.sources.catalog import make_builder
from segjax.data.sources.semantic import open_dataset


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


def test_tfdss_own_pets_are_read_without_tensorflow(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 12, 10, 3), np.uint8)
    trimaps = rng.integers(1, 4, (3, 12, 10), np.uint8)

    def records(self, dl_manager):
        return {
            "train": [
                (
                    number,
                    {
                        "image": png(images[number]),
                        "label": 3,
                        "species": 1,
                        "file_name": f"beagle_{number}.jpg",
                        "segmentation_mask": png(trimaps[number]),
                        "head_bbox": tfds.features.BBox(0.0, 0.0, 0.5, 0.5),
                    },
                )
                for number in range(3)
            ]
        }

    builder = make_builder("oxford_iiit_pet", data_dir=tmp_path)
    monkeypatch.setattr(type(builder), "_split_generators", records)
    builder.download_and_prepare(file_format="array_record")
    source = open_dataset("oxford_iiit_pet", "train", data_dir=tmp_path)
    assert source.class_names == ("pet", "background", "outline")
    for example in source:
        number = int(example["id"].removeprefix("beagle_"))
        np.testing.assert_array_equal(example["image"], images[number])
        np.testing.assert_array_equal(example["labels"], trimaps[number] - 1)
        assert example["labels"].dtype == np.uint8
    report = check("oxford_iiit_pet", data_dir=tmp_path)
    assert report.problems == []
    assert report.splits["train"].num_examples == 3


def test_building_tfdss_own_pets_says_that_it_needs_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'segjax\[tensorflow\]'"):
        prepare("oxford_iiit_pet", data_dir=tmp_path)
    with pytest.raises(ValueError, match="downloaded by TFDS and takes no --source"):
        check("oxford_iiit_pet", source=tmp_path, data_dir=tmp_path)


def test_the_files_of_tfdss_own_pets_are_verified_by_tfdss_checksums(tmp_path):
    urls = make_builder("oxford_iiit_pet", data_dir=tmp_path).url_infos
    assert {url.rpartition("/")[2] for url in urls} >= {"images.tar.gz", "annotations.tar.gz"}
