import threading

import pytest

from segjax.data.loading import ordered_map
from segjax.data.loading.ordered_map import map_in_threads


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    monkeypatch.setattr(ordered_map.os, "cpu_count", lambda: 4)


def test_results_come_in_the_order_of_the_items_whoever_is_first():
    second_is_done = threading.Event()

    def square(item):
        if item == 0:
            second_is_done.wait(timeout=60)
        if item == 1:
            second_is_done.set()
        return item * item

    assert list(map_in_threads(square, range(50))) == [item * item for item in range(50)]


def test_few_items_are_computed_ahead_of_use():
    started = []
    results = map_in_threads(started.append, range(1000))
    for _ in range(10):
        next(results)
    assert len(started) <= 10 + 2 * 4
    results.close()


def test_an_error_is_raised_in_the_place_of_its_item():
    def fail_at_three(item):
        if item == 3:
            raise OSError("no space left")
        return item

    results = map_in_threads(fail_at_three, range(9))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="no space left"):
        next(results)


def test_nothing_maps_to_nothing():
    assert list(map_in_threads(str, [])) == []
