"""Sums of metrics over examples and over processes."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from segjax.evaluation.bootstrap import resampled_counts
from segjax.evaluation.evaluator import RESAMPLES, SummingEvaluator


@dataclass(frozen=True)
class Share:
    """The share of counted pixels above a threshold; NaN without counted pixels."""

    name: str
    threshold: float = 0.5

    def counts(self, example, prediction):
        above = np.count_nonzero(prediction["values"][example["mask"]] > self.threshold)
        return {"above": np.int64(above), "pixels": np.int64(example["mask"].sum())}

    def result(self, counts):
        pixels = int(counts["pixels"])
        return {self.name: int(counts["above"]) / pixels if pixels else math.nan}

    def example_score(self, counts):
        return self.result(counts)[self.name]


@dataclass(frozen=True)
class Constant:
    """Adds the same array for every example."""

    value: np.ndarray

    def counts(self, example, prediction):
        return {"sum": self.value}

    def result(self, counts):
        return {"sum": counts["sum"].tolist()}

    def example_score(self, counts):
        return 0.0


def pairs(count):
    rng = np.random.default_rng(0)
    return [
        (
            {"id": f"image {7 * number % 10}", "mask": rng.random((4, 5)) < 0.7},
            {"values": rng.random((4, 5))},
        )
        for number in range(count)
    ]


def evaluate(metrics, examples):
    evaluator = SummingEvaluator(metrics)
    scores = [evaluator.update(*pair) for pair in examples]
    return evaluator, scores


def test_the_result_is_the_ratio_of_sums_and_the_score_is_each_examples_own():
    examples = pairs(3)
    evaluator, scores = evaluate((Share("low", 0.2), Share("high", 0.8)), examples)
    values = [prediction["values"][example["mask"]] for example, prediction in examples]
    assert evaluator.result() == {
        "low": np.mean(np.concatenate(values) > 0.2),
        "high": np.mean(np.concatenate(values) > 0.8),
    }
    assert scores == [np.mean(v > 0.2) for v in values]


def test_the_score_of_an_example_that_has_none_is_nan():
    example = {"id": "a", "mask": np.zeros((2, 2), bool)}
    evaluator, scores = evaluate((Share("a"),), [(example, {"values": np.ones((2, 2))})])
    assert math.isnan(scores[0])
    assert math.isnan(evaluator.result()["a"])
    assert math.isnan(SummingEvaluator(()).update(example, {}))


@pytest.mark.parametrize("cuts", [(0, 7), (3, 5), (7, 7)])
def test_parts_merged_equal_the_whole_parts_without_examples_too(cuts):
    metrics = (Share("a"), Constant(np.array([0.5, 2.0])))
    examples = pairs(7)
    first, second = cuts
    total = SummingEvaluator(metrics)
    for part in (examples[:first], examples[first:second], examples[second:]):
        total.merge(evaluate(metrics, part)[0].state())
    assert total.result() == evaluate(metrics, examples)[0].result()


def test_without_examples_there_are_no_results():
    evaluator = SummingEvaluator((Share("a"),))
    assert evaluator.result() == {}
    evaluator.merge(SummingEvaluator((Share("a"),)).state())
    assert evaluator.result() == {}


def test_counts_beyond_what_floats_resolve_stay_exact():
    metrics = (Constant(np.array(2**60 + 1)),)
    evaluator, _ = evaluate(metrics, pairs(2))
    total = SummingEvaluator(metrics)
    total.merge(evaluator.state())
    total.merge(evaluate(metrics, pairs(1))[0].state())
    assert total.result() == {"sum": 3 * (2**60 + 1)}


def test_the_arrays_of_a_metric_are_not_written_into():
    value = np.ones(3, np.int64)
    evaluate((Constant(value),), pairs(3))
    assert value.tolist() == [1, 1, 1]


def test_more_than_ten_metrics_do_not_mix():
    metrics = tuple(Share(f"m{k}", k / 12) for k in range(12))
    together, _ = evaluate(metrics, pairs(2))
    for metric in metrics:
        alone, _ = evaluate((metric,), pairs(2))
        assert together.result()[metric.name] == alone.result()[metric.name]


def test_two_results_of_one_name_are_refused_with_the_first_example_and_not_after_the_last():
    metrics = (Share("a", 0.2), Share("b"), Share("a", 0.8))
    message = r"two metrics have a result 'a': Share\(.*0\.2\) and Share\(.*0\.8\)"
    evaluator = SummingEvaluator(metrics)
    with pytest.raises(ValueError, match=message):
        evaluator.update(*pairs(1)[0])
    merged = SummingEvaluator(metrics)
    merged.merge(evaluator.state())
    with pytest.raises(ValueError, match=message):
        merged.result()


def test_intervals_are_quantiles_of_the_results_of_resampled_examples():
    metrics = (Share("low", 0.2), Constant(np.array(2)))
    examples = pairs(9)
    evaluator, _ = evaluate(metrics, examples)
    by_name = sorted(examples, key=lambda pair: pair[0]["id"])
    results = []
    for weights in resampled_counts(9, RESAMPLES):
        drawn = [pair for pair, times in zip(by_name, weights, strict=True) for _ in range(times)]
        results.append(evaluate(metrics[:1], drawn)[0].result()["low"])
    low, high = evaluator.intervals()["low"]
    assert (low, high) == tuple(np.quantile(results, [0.025, 0.975]))
    assert low < evaluator.result()["low"] < high
    assert list(evaluator.intervals()) == ["low"]  # an integer has none


def test_intervals_do_not_depend_on_how_processes_share_the_examples():
    metrics, examples = (Share("a"),), pairs(6)
    total = SummingEvaluator(metrics)
    for part in (examples[4:], examples[:1], examples[1:4]):
        total.merge(evaluate(metrics, part)[0].state())
    assert total.intervals() == evaluate(metrics, examples)[0].intervals()


def test_fewer_than_two_examples_have_no_interval():
    assert SummingEvaluator((Share("a"),)).intervals() == {}
    assert evaluate((Share("a"),), pairs(1))[0].intervals() == {}
    assert evaluate((Share("a"),), pairs(2))[0].intervals() != {}
