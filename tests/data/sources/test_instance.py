"""Sources of examples with objects, over prepared data sets."""

import dataclasses

import numpy as np
import pytest

from segjax.data.prepare import open_generated, prepare
from segjax.data.sources.instance import ObjectSource
from segjax.data.sources.semantic import open_dataset
from tests.data.official_instance_layouts import write_coco


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Three images, one of which has objects besides a crowd."""
    folder, data_dir = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("data")
    write_coco(folder)
    prepare("coco", source=folder, data_dir=data_dir)
    return open_dataset("coco", "train", data_dir=data_dir)


def test_images_without_objects_are_left_out_if_asked(coco):
    every, some = ObjectSource(coco), ObjectSource(coco, empty_share=0.0)
    assert coco.object_counts.tolist() == [0, 2, 0]
    assert (len(every), len(some)) == (3, 1)
    assert some[0]["id"] == every[1]["id"]
    np.testing.assert_array_equal(every.sizes, coco.sizes)
    np.testing.assert_array_equal(some.sizes, coco.sizes[1:2])
    with pytest.raises(IndexError, match="example 1 of 1 in coco"):
        some[1]


def test_a_share_of_images_without_objects_is_kept(coco):
    some = ObjectSource(coco, empty_share=0.5)
    assert sorted(some.object_counts.tolist()) == [0, 2]
    assert some.notes == ("1 of 2 images without objects are left out (input.empty_share 0.5)",)
    seen = {ObjectSource(coco, empty_share=0.5, seed=seed)[0]["id"] for seed in range(9)}
    assert len(seen) == 2  # the first image, or the one with objects after it was left out


def test_a_set_prepared_before_objects_were_counted_says_so(coco):
    old = dataclasses.replace(coco, object_counts=None)
    assert len(ObjectSource(old)) == 3
    with pytest.raises(ValueError, match=r"coco has no object_counts.* prepared before"):
        ObjectSource(old, empty_share=0.0)


def test_objects_are_made_of_a_map_of_instances(tmp_path):
    source = open_generated("synthetic_cells", "test[:6]", data_dir=tmp_path)
    info = tmp_path / "synthetic_cells" / "1.0.0" / "dataset_info.json"
    made = info.stat().st_mtime_ns
    assert len(open_generated("synthetic_cells", "test", data_dir=tmp_path)) == 16
    assert info.stat().st_mtime_ns == made
    objects = ObjectSource(source, empty_share=0.0)
    assert len(objects) == len(source)
    for index in (0, 5):
        example, found = source[index], objects[index]
        ids = np.unique(example["instances"][example["instances"] > 0])
        assert len(found["masks"]) == source.object_counts[index] == len(ids)
        assert found["classes"].tolist() == [1] * len(ids)
        assert sum(mask.area for mask in found["masks"]) == (example["instances"] > 0).sum()
