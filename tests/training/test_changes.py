"""What a resumed run says about its data and its schedule."""

import optax
import pytest

from segjax.training.changes import changes, recorded
from segjax.training.data import RunData

pytestmark = pytest.mark.quick


def record(parts, *, examples=4):
    pixels = {"types": ["uint8"], "range": [0, 255]}
    data = RunData([{}] * examples, {"val": [{}]}, pixels, parts)
    return recorded(optax.constant_schedule(0.1), 3, data)


def test_nothing_is_said_where_nothing_changes():
    assert record(2)["examples"] == {"train": 4, "val": 1}
    assert changes(3, record(2), record(2)) == []
    assert changes(3, {}, record(1)) == []  # a checkpoint of an early version


def test_another_number_of_parts_is_another_order():
    [said] = changes(3, record(2), record(4))
    assert said.startswith("training reads 4 parts of the data, and read 2: the examples come in")
    earlier = record(1)
    del earlier["parts"]  # a checkpoint of a version without parts
    assert len(changes(3, earlier, record(2))) == 1
    assert changes(3, earlier, record(1)) == []
