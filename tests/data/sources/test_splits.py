"""Splits of the catalogue's data sets and of your own sources."""

import pytest

from segjax.data.sources.splits import as_objects, generated_splits, prepared_splits


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


def test_generated_splits_open_with_labels_or_with_objects(tmp_path):
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
