"""Predictions over streams of examples, and the evaluation of whole splits."""

import dataclasses
import math
import threading
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from segjax.data.augmentation.semantic import Normalize
from segjax.training.evaluate import (
    Evaluation,
    Evaluator,
    predictions,
    read_evaluations,
    write_evaluation,
)
from segjax.training.parallel import DataParallel
from tests.training import tiny
from tests.variables import random_variables


class Slices:
    """A task whose inputs are the rows of an image, and whose network adds one to them."""

    def __init__(self):
        self.batches = []

    def inputs(self, example):
        yield from ({"image": row} for row in example["image"])

    def predict(self, batch):
        self.batches.append(batch["image"].copy())
        return {"more": batch["image"] + 1, "sum": batch["image"].sum(axis=1)}

    def merge(self, example, outputs):
        outputs = list(outputs)
        return {name: [output[name] for output in outputs] for name in ("more", "sum")}


def example(number, rows, width):
    image = np.arange(rows * width, dtype=np.float64).reshape(rows, width) + 1000 * (number + 1)
    return {"id": number, "image": image}


def predict(task, examples, batch_size=4):
    def prepare(batch):
        return lambda: task.predict(batch)

    return predictions(task, prepare, examples, batch_size=batch_size)


class Split:
    """The tiny squares; examples listed in `ignored` have no valid pixel."""

    def __init__(self, size, ignored=()):
        self.squares, self.ignored = tiny.Squares(size, 100), ignored

    def __len__(self):
        return len(self.squares)

    def __getitem__(self, index):
        found = self.squares[index]
        if index in self.ignored:
            found["labels"][:] = 255
        return found


@pytest.fixture(scope="module")
def task():
    return tiny.make_task(tiny.Config(workdir=Path()))


@pytest.fixture(scope="module")
def variables(task):
    images = jax.ShapeDtypeStruct((1, tiny.SIDE, tiny.SIDE, 1), np.float32)
    return random_variables(task, {"image": images}, seed=4)


def test_a_range_of_pixels_scores_16_bits_as_8(task, variables):
    task = dataclasses.replace(task, preprocess=Normalize(90.0, 40.0), pixel_range=(0, 65535))
    evaluator = Evaluator(task, DataParallel(), batch_size=2, workdir=None)
    scores = []
    for factor in (np.uint8(1), np.uint16(257)):
        source = [
            {**x, "image": x["image"].astype(np.uint8) * factor}
            for x in (Split(3)[index] for index in range(3))
        ]
        everywhere = DataParallel().replicate(variables)
        scores.append(evaluator.evaluate(everywhere, source, split="val", step=1).scalars)
    assert scores[0] == scores[1]


@pytest.fixture
def evaluate(task, variables):
    """Evaluates a source on some devices."""

    def run(source, *, workdir=None, devices=2, split="test", step=3, final=True):
        parallel = DataParallel(tuple(jax.devices()[:devices]))
        evaluator = Evaluator(task, parallel, batch_size=4, workdir=workdir)
        placed = parallel.replicate(variables)
        return evaluator.evaluate(placed, source, split=split, step=step, final=final)

    return run


def test_predictions_come_in_the_order_of_the_examples_whatever_their_shapes():
    task = Slices()
    shapes = [(3, 2), (1, 5), (6, 2), (2, 5), (1, 2), (2, 3), (9, 2)]
    examples = [example(number, *shape) for number, shape in enumerate(shapes)]
    found = list(predict(task, iter(examples)))
    assert [given["id"] for given, _ in found] == list(range(len(shapes)))
    for given, prediction in found:
        np.testing.assert_array_equal(prediction["more"], given["image"] + 1)
        np.testing.assert_array_equal(prediction["sum"], given["image"].sum(axis=1))


def test_batches_are_of_one_size_and_their_filling_is_returned_to_nobody():
    task = Slices()
    examples = [example(0, 3, 2), example(1, 6, 2), example(2, 2, 5)]
    found = list(predict(task, iter(examples)))
    assert Counter(batch.shape for batch in task.batches) == {(4, 2): 3, (4, 5): 1}
    rows = sum(len(prediction["sum"]) for _, prediction in found)
    assert rows == sum(len(given["image"]) for given in examples)
    for batch in (task.batches[-2], task.batches[-1]):  # padded with copies of their inputs
        assert {tuple(row) for row in batch} <= {
            tuple(row) for given in examples for row in given["image"]
        }


def test_a_prediction_is_given_out_before_more_than_one_further_batch_is_read():
    read = []

    def examples():
        for number in range(5):
            read.append(number)
            yield example(number, 4, 2)

    for given, _ in predict(Slices(), examples()):  # each example fills a batch
        assert read[-1] <= given["id"] + 1


def test_the_next_batch_is_computed_while_a_prediction_is_used():
    second = threading.Event()

    class Notes(Slices):
        def predict(self, batch):
            if self.batches:
                second.set()
            return super().predict(batch)

    for given, _ in predict(Notes(), (example(number, 4, 2) for number in range(2))):
        if given["id"] == 0:
            assert second.wait(60)


def test_a_program_is_compiled_while_the_batch_before_is_computed():
    compiled, task = [], Slices()

    def prepare(batch):
        shape = batch["image"].shape
        compiled.append(shape)
        if len(compiled) == 2:
            second.set()

        def compute():
            if shape == (4, 2):
                assert second.wait(60)
            return task.predict(batch)

        return compute

    second = threading.Event()
    examples = [example(0, 4, 2), example(1, 4, 3)]
    assert len(list(predictions(task, prepare, examples, batch_size=4))) == 2
    assert compiled == [(4, 2), (4, 3)]


def test_predictions_before_an_example_that_cannot_be_read_are_given_out():
    def examples():
        yield from (example(number, 4, 2) for number in range(2))
        raise OSError("the third cannot be read")

    stream = predict(Slices(), examples())
    assert [next(stream)[0]["id"] for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="the third"):
        next(stream)


def test_an_error_of_the_network_reaches_the_caller():
    class Fails(Slices):
        def predict(self, batch):
            raise ValueError("no memory")

    with pytest.raises(ValueError, match="no memory"):
        list(predict(Fails(), iter([example(0, 4, 2), example(1, 4, 2)])))


def test_without_examples_there_is_nothing_to_predict():
    task = Slices()
    assert list(predict(task, iter([]))) == []
    assert task.batches == []


def test_one_two_and_four_devices_count_each_pixel_once_and_alike(evaluate):
    source = Split(7)
    one, two, four = (evaluate(source, devices=n) for n in (1, 2, 4))
    counted = sum(int((source[i]["labels"] != 255).sum()) for i in range(7))
    assert np.sum(one.metrics["confusion_matrix"]) == counted
    assert np.min(one.metrics["confusion_matrix"]) > 0
    for other in (two, four):
        assert other.metrics["confusion_matrix"] == one.metrics["confusion_matrix"]
        assert other.examples == one.examples
        assert other.scalars == pytest.approx(one.scalars, rel=1e-5)
    assert [row["id"] for row in one.examples] == [f"square_{100 + i}" for i in range(7)]


def test_scalars_are_the_metrics_that_are_single_numbers(evaluate):
    result = evaluate(Split(2))
    assert {"mean_iou", "pixel_accuracy", "negative_log_likelihood"} <= set(result.scalars)
    assert {"confusion_matrix", "iou", "absent_classes"} <= set(result.metrics) - set(
        result.scalars
    )


def test_the_three_best_and_the_three_worst_examples_are_pictured(evaluate, tmp_path):
    result = evaluate(Split(9), workdir=tmp_path)
    ranked = sorted(result.examples, key=lambda row: row["score"])
    assert len({row["score"] for row in ranked}) == 9
    assert [row["id"] for row in ranked if "picture" in row] == [
        row["id"] for row in ranked[:3] + ranked[-3:]
    ]
    for row in ranked[:3] + ranked[-3:]:
        assert row["picture"] == f"predictions/test_{row['id']}.png"
    assert {f"predictions/{path.name}" for path in (tmp_path / "predictions").iterdir()} == {
        row["picture"] for row in ranked[:3] + ranked[-3:]
    }


def test_examples_without_a_score_are_counted_but_not_pictured(evaluate, tmp_path):
    result = evaluate(Split(3, ignored=(0, 2)), workdir=tmp_path)
    assert [math.isnan(row["score"]) for row in result.examples] == [True, False, True]
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["test_square_101.png"]
    assert math.isfinite(result.metrics["mean_iou"])


def test_along_the_way_the_first_two_examples_are_pictured_under_the_step(evaluate, tmp_path):
    result = evaluate(Split(5), workdir=tmp_path, split="validation", step=40, final=False)
    assert [row.get("picture") for row in result.examples] == [
        "predictions/step_0000040_validation_square_100.png",
        "predictions/step_0000040_validation_square_101.png",
        *[None] * 3,
    ]
    assert len(list((tmp_path / "predictions").iterdir())) == 2


def test_without_a_run_directory_there_are_no_pictures(evaluate):
    assert not any("picture" in row for row in evaluate(Split(2)).examples)


def test_a_split_without_examples_has_no_results(evaluate, tmp_path):
    result = evaluate(Split(0), workdir=tmp_path)
    assert (result.metrics, result.examples) == ({}, [])
    assert list(tmp_path.iterdir()) == []


METRICS = {
    "mean_iou": 0.5,
    "seg": math.nan,
    "recall": [1.0, math.nan],
    "absent_classes": [],
    "objects": 3,
    "confusion_matrix": [[5, 1], [0, 2**40]],
}


@pytest.mark.parametrize("without", [(), ("confusion_matrix",)])
def test_a_written_evaluation_is_read_as_it_was_nan_included(tmp_path, without):
    metrics = {name: value for name, value in METRICS.items() if name not in without}
    rows = [{"id": "a", "score": math.nan}, {"id": "b", "score": 0.25, "picture": "p.png"}]
    results = {
        split: Evaluation(split=split, step=7, metrics=metrics, examples=rows)
        for split in ("test", "validation")
    }
    for result in results.values():
        write_evaluation(result, classes=("x", "y"), headline="seg", workdir=tmp_path)
    found = read_evaluations(tmp_path)
    assert repr(found) == repr(
        {
            split: dataclasses.replace(result, metrics=found[split].metrics)
            for split, result in results.items()
        }
    )
    for result in found.values():
        assert {k: repr(v) for k, v in result.metrics.items()} == {
            k: repr(v) for k, v in metrics.items()
        }


def test_what_was_written_last_counts_and_an_interrupted_write_changes_nothing(
    tmp_path, monkeypatch
):
    first, second, third = (Evaluation("test", step, {"mean_iou": 0.1}, []) for step in (1, 2, 3))
    for result in (first, second):
        write_evaluation(result, classes=(), headline="mean_iou", workdir=tmp_path)

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_evaluation(third, classes=(), headline="mean_iou", workdir=tmp_path)
    assert read_evaluations(tmp_path) == {"test": second}
    assert read_evaluations(tmp_path / "nowhere") == {}
