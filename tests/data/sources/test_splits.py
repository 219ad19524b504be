"""Splits of the catalogue's data sets and of your own sources."""

import pytest

from segjax.data.sources.catalog import dataset_names
from segjax.data.sources.splits import as_objects, generated_splits, prepared_splits
from segjax.labels import background_class


def test_prepared_splits_describe_a_data_set_that_need_not_be_there(tmp_path):
    splits = prepared_splits("coco", data_dir=tmp_path)
    assert splits.classes[:2] == ("background", "person")
    assert splits.channels == 3
    assert splits.category_ids[-1] == 90
    assert set(splits.evaluation) == {"val"}
    with pytest.raises(FileNotFoundError, match="coco is not prepared"):
        splits.train()


def test_an_unknown_name_is_refused_before_anything_opens(tmp_path):
    with pytest.raises(ValueError, match="no data set is named 'camvit'"):
        prepared_splits("camvit", data_dir=tmp_path)


def test_generated_splits_open_with_labels_or_with_objects(few_cells, tmp_path):
    splits = generated_splits(
        "synthetic_cells", data_dir=tmp_path, train="train[:2]", evaluation={"held": "test[:1]"}
    )
    assert (splits.classes, splits.channels) == (("background", "cell"), 1)
    source = splits.train()
    assert len(source) == 2
    assert "labels" in source[0]
    objects = as_objects(splits)
    example = objects.evaluation["held"]()[0]
    assert len(example["boxes"]) == len(example["masks"]) > 0
    assert objects.classes == splits.classes


@pytest.mark.parametrize("name", dataset_names())
def test_a_data_set_says_which_class_is_its_background(name, tmp_path):
    folder = name.partition("/")[0]
    expected = {
        "ade20k": None,  # begins with the wall
        "camvid": None,  # begins with the sky
        "cityscapes": None,  # begins with the road
        "isbi2012": "membrane",
        "oxford_iiit_pet": "background",  # class 1
    }.get(folder, "background")
    splits = prepared_splits(name, data_dir=tmp_path)
    found = background_class(splits.classes, splits.background)
    assert (found if found is None else splits.classes[found]) == expected
