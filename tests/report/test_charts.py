"""The curves, confusion tables and numbers of a report."""

import re

import numpy as np
import pytest

from segjax.report.charts import Series, confusion_table, format_number, line_chart
from tests.report.test_report import Structure, rows


def test_a_line_goes_through_its_points_and_breaks_where_undefined():
    chart = line_chart("a", [Series("s", [0, 10, 20, 30, 40], [0.0, 1.0, None, 1.0, 0.5])])
    (path,) = re.findall(r' d="(.*?)"', chart)
    points = [tuple(map(float, pair)) for pair in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
    assert re.sub(r"[^ML]", "", path) == "MLML"
    x, y = np.array(points).T
    np.testing.assert_allclose((x - x[0]) / (x[-1] - x[0]), [0, 0.25, 0.75, 1], atol=1e-3)
    np.testing.assert_allclose((y - y[0]) / (y[1] - y[0]), [0, 1, 1, 0.5], atol=1e-3)
    assert y[1] < y[0], "larger values are higher up"


@pytest.mark.parametrize(
    "values", [[], [None], [float("nan")] * 3, [3.0], [0.0, 0.0], [-1e-9, 1e9], [1e-8, 1e-3, 1.0]]
)
def test_charts_take_any_values(values):
    series = [Series("s", list(range(len(values))), values)]
    for chart in (line_chart("a", series), line_chart("a", series, logarithmic=True)):
        Structure(chart)
        assert not re.search(r"nan|inf", chart)


def test_long_curves_are_thinned_without_changing_their_course():
    steps = np.arange(100_000)
    chart = line_chart("a", [Series("s", steps, (steps / 1e5).tolist())])
    assert len(chart) < 20_000
    for path in re.findall(r' d="(.*?)"', chart):
        x, y = np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", path), float).T
        np.testing.assert_allclose(y, np.interp(x, x[[0, -1]], y[[0, -1]]), atol=0.2)


def test_confusion_table_shows_shares_of_each_row_and_the_largest_confusions():
    table = confusion_table([[6, 2, 0], [0, 0, 0], [1, 0, 9]], ["a", "b", "c"])
    assert rows(table, "a") == [["75.0", "25.0", "·"]]
    assert rows(table, "b") == [["·", "·", "·"]]
    assert rows(table, "c") == [["10.0", "·", "90.0"]]
    confusions = re.findall(r"<li>(.*?)</li>", table)
    assert confusions == [
        "a predicted as b: 25.0 % of a (2)",
        "c predicted as a: 10.0 % of c (1)",
    ]


def test_confusion_table_of_many_classes_is_only_the_largest_confusions():
    size = 150
    table = confusion_table(np.ones((size, size), int).tolist(), [str(i) for i in range(size)])
    assert "<table" not in table
    assert table.count("<li>") == 5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (0, "0"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (0.000123456, "0.0001235"),
        (1.0, "1.0000"),
        (123.456, "123.5"),
    ],
)
def test_numbers_have_about_four_digits(value, text):
    assert format_number(value) == text
