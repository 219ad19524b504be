"""Flat dicts of nested ones."""

from segjax.files.nested import flatten


def test_each_value_has_one_dotted_key_in_order():
    nested = {"train": {"steps": 10, "ema": {"decay": 0.9}}, "seed": 0, "rows": [{"a": 1}]}
    expected = {"train.steps": 10, "train.ema.decay": 0.9, "seed": 0, "rows": [{"a": 1}]}
    assert list(flatten(nested).items()) == list(expected.items())


def test_an_empty_dict_stays_a_value():
    assert flatten({"a": {}, "b": {"c": {}}}) == {"a": {}, "b.c": {}}
