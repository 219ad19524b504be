"""Evaluation of a task over the examples of a split, on all devices and processes."""

import heapq
import json
import math
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from segjax.data.checks.examples import check_for
from segjax.data.loading.loader import evaluation_examples
from segjax.data.loading.part import own_part
from segjax.files.atomic import write_json
from segjax.pictures.overlays import write_png
from segjax.training.logging import from_json, json_ready
from segjax.training.parallel import gather_bytes, is_main_process, wait_for_all
from segjax.training.rehearsal import rehearse
from segjax.training.run_directory import commit
from segjax.training.strategies import Strategy

# Each process draws this many of its best examples, and as many of its worst.
BEST_AND_WORST = 3
# Examples may wait for an earlier one whose batch is not full, up to this many batches of them.
HELD_BACK = 8


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation, the same in every process.

    Attributes:
      split: the split's name.
      step: the number of updates made before the evaluation.
      metrics: the result of the task's evaluator.
      examples: a dict with "id", "score" and, if one was drawn, "picture" for each example, in the
        order of the split.
      intervals: [low, high] of metrics, the 95 % interval over images; none during training.
      pictures: the pictures that this process drew, uint8 [height, width, 3], by example id.
      evaluator: the task's evaluator, which has counted all examples; None for a result from disk.
    """

    split: str
    step: int
    metrics: dict
    examples: list[dict]
    intervals: dict[str, list[float]] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    evaluator: Any = field(default=None, compare=False, repr=False)

    @property
    def scalars(self) -> dict[str, float]:
        """The metrics that are single numbers."""
        return {k: v for k, v in self.metrics.items() if isinstance(v, int | float)}


class Evaluator:
    """Predicts and scores splits with one compiled function.

    Args:
      task: see `segjax.tasks`.
      batch_size: inputs in a batch, per device or group of devices that share their rows.
      workdir: the folder to write pictures to, as `predictions/*.png`; None draws none.
    """

    def __init__(self, task, parallel: Strategy, *, batch_size: int, workdir: Path | None):
        self._task = task
        self._parallel = parallel
        self._batch_size = batch_size * parallel.local_shares
        self._predict = parallel.predict_step(task.predict)
        self._workdir = workdir
        self._check = check_for(task)

    def predictions(self, variables, examples: Iterable[dict]) -> Iterator[tuple[dict, dict]]:
        """Yields (example, prediction); `variables` come from the strategy's `local`.

        Raises:
          BadData: the network cannot read an example's image; see `ExampleCheck`.
        """

        def checked():
            for example in examples:
                yield self._check.check_image(example)

        return predictions(
            self._task,
            lambda batch: self._predict(variables, batch),
            checked(),
            batch_size=self._batch_size,
        )

    def rehearse(self, variables, source, *, split: str, best_metric: str | None = None):
        """Tries the evaluation of a split on an example; see `segjax.training.rehearsal`.

        It is the first one of this process's part; a process without examples tries nothing.

        The network runs on one batch of each shape of input, and all inputs of that shape get its
        outputs, so an image of many tiles costs as little as an image of few.
        """
        # A process without examples takes part here too: this gathers divided parameters.
        variables, outputs = self._parallel.local(variables), {}
        own = own_part(len(source), jax.process_index(), jax.process_count())
        if not own:
            return

        def predict(batch):
            shapes = tuple(x.shape for x in jax.tree.leaves(batch))
            if shapes not in outputs:
                outputs[shapes] = self._predict(variables, batch)()
            return lambda: outputs[shapes]

        # As many parts as examples: each part is one example.
        ((_, example),) = evaluation_examples(
            source, (self._check,), process_index=own.start, process_count=len(source)
        )
        rehearse(
            self._task,
            partial(predictions, self._task, predict, batch_size=self._batch_size),
            example,
            split,
            best_metric=best_metric,
        )

    def evaluate(
        self,
        variables,
        source,
        *,
        split: str,
        step: int,
        final: bool | Callable[[dict], bool] = True,
    ) -> Evaluation:
        """Scores a split. Each process takes its share, and each example counts once.

        Args:
          variables: the network's variables, replicated on the devices of all processes.
          final: draw the best and the worst examples; otherwise the first two, into files named
            after the step, which show how the predictions change. A function of the metrics, the
            same in every process, decides after scoring.
        """
        evaluator = self._task.evaluator()
        numbers, rows, first, best, worst = [], [], [], [], []
        pictures = {}

        def draw(prefix, example, prediction, row):
            picture = self._task.picture(example, prediction, row["score"])
            name = re.sub(r"[^\w.-]+", "_", f"{prefix}_{example['id']}")
            row["picture"] = f"predictions/{name}.png"
            write_png(self._workdir / row["picture"], picture)
            pictures[example["id"]] = picture

        def examples():
            for number, example in evaluation_examples(
                source,
                (self._check,),
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ):
                numbers.append(number)
                yield example

        results = tqdm(
            self.predictions(self._parallel.local(variables), examples()),
            total=math.ceil(len(source) / jax.process_count()),
            desc=f"evaluating {split}",
            unit="image",
            leave=False,
            disable=None if is_main_process() else True,
        )
        for place, (example, prediction) in enumerate(results):
            score = evaluator.update(example, prediction)
            row = {"number": numbers[place], "id": example["id"], "score": score}
            rows.append(row)
            if self._workdir is None:
                continue
            if final is not True and row["number"] < 2:
                first.append(((score, -place), example, prediction))
            if final is not False and not math.isnan(score):
                _push(best, (score, -place), example, prediction)
                _push(worst, (-score, -place), example, prediction)
        total = self._task.evaluator()
        for state in _gathered(evaluator.state()):
            total.merge(state)
        metrics = total.result()
        ends = final(metrics) if callable(final) else final
        for (_, minus_place), example, prediction in best + worst if ends else first:
            row = rows[-minus_place]
            if "picture" not in row:
                prefix = split if ends else f"step_{step:07d}_{split}"
                draw(prefix, example, prediction, row)
        parts = [json.loads(part) for part in _gathered(json.dumps(rows).encode())]
        rows = sorted((row for part in parts for row in part), key=lambda row: row.pop("number"))
        intervals = total.intervals() if ends else {}
        return Evaluation(split, step, metrics, rows, intervals, pictures, total)


def _gathered(payload: bytes) -> list[bytes]:
    """Returns the payloads of all processes."""
    wait_for_all("evaluated")  # has a time limit of its own, unlike gathering
    return gather_bytes(payload)


def evaluation_name(split: str, settings: Sequence[str]) -> str:
    """Names an evaluation by its split and the settings that differ from the run's, for a file.

    prediction.scales=[1, 2] becomes scales=1,2. A path has no part in it: data that has moved is
    the same.
    """
    groups = ("prediction.", "network.")
    changed = [s.partition(".")[2] for s in settings if s.startswith(groups)]
    return "@".join([split, *(re.sub(r"[^\w.=,-]", "", s) for s in changed)])


def write_evaluation(
    evaluation: Evaluation, *, classes: Iterable[str], headline: str, workdir: Path
) -> Path:
    """Writes `evaluation/<split>.json` for the report; `headline` is the metric shown first."""
    metrics = dict(evaluation.metrics)
    matrix = metrics.pop("confusion_matrix", None)
    path = Path(workdir) / "evaluation" / f"{evaluation.split}.json"
    values = {
        "split": evaluation.split,
        "step": evaluation.step,
        "commit": commit(),
        "headline": headline,
        "metrics": metrics,
        "intervals": evaluation.intervals,
        "confusion_matrix": matrix,
        "classes": list(classes),
        "examples": evaluation.examples,
    }
    return write_json(path, json_ready(values))


def read_evaluations(workdir: Path) -> dict[str, Evaluation]:
    """Returns the evaluations that `write_evaluation` wrote last, by split."""
    results = {}
    for path in sorted((Path(workdir) / "evaluation").glob("*.json")):
        values = from_json(json.loads(path.read_text()))
        metrics, matrix = values["metrics"], values["confusion_matrix"]
        if matrix is not None:
            metrics["confusion_matrix"] = matrix
        results[path.stem] = Evaluation(
            path.stem, values["step"], metrics, values["examples"], values.get("intervals", {})
        )
    return results


def _push(heap, key, example, prediction):
    """Keeps the examples with the largest keys; of equal keys, the earlier example stays."""
    entry = (key, example, prediction)
    if len(heap) < BEST_AND_WORST:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def predictions(
    task, predict: Callable, examples: Iterable[dict], *, batch_size: int
) -> Iterator[tuple[dict, dict]]:
    """Yields (example, prediction) in the order of the examples.

    The task cuts each example into inputs. Inputs of the same shape share a batch, whichever
    examples they come from. Partial batches are padded with copies whose outputs are discarded.
    They run at the end of the stream, or earlier if an input of a rare shape would hold back too
    many examples.

    While the device computes a batch, which a thread waits for, the caller uses the outputs of the
    batch before, the inputs of the next are made, and a program for their shape is compiled.

    Args:
      predict: maps a batch of inputs, arrays [batch_size, ...], to a function that computes the
        outputs, a dict of such arrays; see `Strategy.predict_step`.
    """
    waiting = defaultdict(list)  # image shape → pairs of an input and the slot for its output
    queue = deque()  # (example, shapes, slots), oldest first; an empty list is a free slot
    computing = deque()  # (future outputs, slots) of the batch that the device computes, if any

    def run(shape):
        pairs = waiting.pop(shape)
        inputs = [item for item, _ in pairs]
        inputs += inputs[:1] * (batch_size - len(inputs))
        batch = {name: np.stack([item[name] for item in inputs]) for name in inputs[0]}
        compute = predict(batch)
        collect()
        computing.append((device.submit(compute), [slot for _, slot in pairs]))

    def collect():
        while computing:
            future, slots = computing.popleft()
            outputs = future.result()
            for place, slot in enumerate(slots):
                slot.append({name: value[place] for name, value in outputs.items()})

    def finished():
        while queue and all(queue[0][2]):
            example, _, slots = queue.popleft()
            yield example, task.merge(example, (slot[0] for slot in slots))

    def take(example):
        shapes, slots = [], []
        queue.append((example, shapes, slots))
        for item in task.inputs(example):
            shape = item["image"].shape
            shapes.append(shape)
            slots.append([])
            waiting[shape].append((item, slots[-1]))
            if len(waiting[shape]) == batch_size:
                run(shape)
        if len(queue) > HELD_BACK * batch_size:
            collect()
            _, shapes, slots = queue[0]
            for shape in {s for s, slot in zip(shapes, slots, strict=True) if not slot}:
                run(shape)
            collect()

    with ThreadPoolExecutor(1, thread_name_prefix="prediction") as device:
        try:
            for example in examples:
                take(example)
                yield from finished()
        except Exception:  # of the examples; what is computed before is given out first
            collect()
            yield from finished()
            raise
        for shape in list(waiting):
            run(shape)
        collect()
        yield from finished()
