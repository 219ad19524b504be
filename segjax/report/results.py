"""The report's numbers: scores, curves and class tables of one or several runs."""

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from segjax.report.charts import Series, confusion_table, format_number, line_chart
from segjax.report.page import section, table
from segjax.report.run import Run, headline, is_scalar, number, scalars
from segjax.training.ranking import smaller_is_better

_FOLLOW_FROM_SIZES = ("train.num_steps", "train.eval_every", "train.checkpoint_every")
_FIRST_CURVES = 6  # further curves are folded away
_NO_CURVES = ("step", "split", "elapsed_seconds")
_WORDS = {
    "std": "SD of",
    "iou": "IoU",
    "auc": "AUC",
    "roc": "ROC",
    "seg": "SEG",
    "dice": "Dice",
    "rand": "Rand",
    "v": "V",
    "info": "Info",
}


def readable(name: str) -> str:
    """Returns a metric's name as words: "mean_iou" becomes "mean IoU"."""
    return " ".join(_WORDS.get(word, word) for word in name.split("_"))


def all_splits(runs: Sequence[Run]) -> list[str]:
    """Returns the splits that any run was evaluated on, the most important first."""
    return list(dict.fromkeys(split for run in runs for split in run.splits()))


def best_index(name: str, values: Sequence[float | None]) -> int | None:
    """Returns the index of the best value; None if fewer than two different ones are defined."""
    defined = [value for value in values if value is not None]
    if len(set(defined)) < 2:
        return None
    return values.index(min(defined) if smaller_is_better(name) else max(defined))


def scores(runs: Sequence[Run]) -> str:
    """Tabulates final scores, with a column per split for one run, or per run for several.

    The folds of a cross-validation get one more column, the mean and the standard deviation.
    """
    splits = all_splits(runs)
    if len(runs) == 1:
        columns = [(split, runs[0], split) for split in splits]
        groups = [("", headline(runs, splits[0]), columns)] if splits else []
    else:
        groups = [
            (split, headline(runs, split), [(run.name, run, split) for run in runs])
            for split in splits
        ]
    parts = []
    for title, main, columns in groups:
        scored = [run.scores(split) for _, run, split in columns]
        intervals = [run.intervals(split) for _, run, split in columns]
        names = dict.fromkeys(name for _, found in scored for name in found)
        rows = {name: [found.get(name) for _, found in scored] for name in names}
        order = sorted(rows, key=lambda name: name != main)
        best = [best_index(name, rows[name]) for name in order] if len(runs) > 1 else []
        folds = folds_of(runs)
        heads = [
            f"{name}, step {_step(step)}"
            for (name, *_), (step, _) in zip(columns, scored, strict=True)
        ]
        summaries = {name: [_mean_and_deviation(rows[name])] if folds else [] for name in order}
        parts += [
            f"<h3>{escape(title)}</h3>" if title else "",
            table(
                ["", *heads, *([f"mean ± deviation over {folds}"] if folds else [])],
                [
                    [
                        readable(name),
                        *(
                            _with_interval(value, found.get(name))
                            for value, found in zip(rows[name], intervals, strict=True)
                        ),
                        *summaries[name],
                    ]
                    for name in order
                ],
                best=[None if column is None else column + 1 for column in best],
                headline=0 if main else None,
            ),
        ]
    if any(run.intervals(split) for run in runs for split in splits):
        parts.append(
            '<p class="note">[low, high] : 95 % interval over the images of the split, by the '
            "bootstrap.</p>"
        )
    if any("–" in part for part in parts):
        parts.append(
            '<p class="note">– : undefined (as for a class without pixels) or not measured.</p>'
        )
    return section("Scores", *parts)


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    text = format_number(value)
    return f"{text} [{', '.join(map(format_number, interval))}]" if interval else text


def folds_of(runs: Sequence[Run]) -> str:
    """Describes the folds that runs are, such as "5 folds"; empty if they are not of one division.

    They are if their configurations differ in nothing but the fold, where they stand, and what
    follows from the number of a fold's training images.
    """
    own = ("workdir", "data.division.fold", "data.found", *_FOLLOW_FROM_SIZES)
    configs = [{k: v for k, v in run.config.items() if k not in own} for run in runs]
    folds = [run.config.get("data.division.fold") for run in runs]
    count = runs[0].config.get("data.division.folds")
    if len(runs) < 2 or count is None or any(each != configs[0] for each in configs):
        return ""
    if len({*folds}) < len(folds):
        return ""
    return f"{len(folds)} folds" if len(folds) == count else f"{len(folds)} of {count} folds"


def _mean_and_deviation(values: Sequence[float | None]) -> str:
    """Formats the mean and the sample standard deviation of defined values."""
    defined = [value for value in values if value is not None]
    if len(defined) < max(len(values), 2):
        return "–"
    mean, deviation = statistics.mean(defined), statistics.stdev(defined)
    return f"{format_number(float(mean))} ± {format_number(float(deviation))}"


def _step(step: int | None) -> str:
    return "–" if step is None else f"{step:,}"


def curves(runs: Sequence[Run]) -> str:
    """Charts every logged value over the steps; several runs share each chart."""
    entries = [entry for run in runs for entry in run.metrics]
    evaluated = {
        k: v for entry in entries if entry["split"] != "train" for k, v in scalars(entry).items()
    }
    main = {headline(runs, split): 1 for split in all_splits(runs)}
    first = main | {"loss": 0, "learning_rate": 2, "images_per_second": 5}
    names = dict.fromkeys(
        name
        for entry in entries
        for name, value in entry.items()
        if name not in _NO_CURVES and is_scalar(value)
    )
    names = sorted(names, key=lambda name: first.get(name, 3 if name in evaluated else 4))
    charts = [
        line_chart(
            readable(name), _series(runs, name), logarithmic="loss" in name or "norm" in name
        )
        for name in names
    ]
    folded = charts[_FIRST_CURVES:]
    return section(
        "Curves",
        f'<div class="charts">{"".join(charts[:_FIRST_CURVES])}</div>' if charts else "",
        f'<details><summary>{len(folded)} more curves</summary><div class="charts">'
        f"{''.join(folded)}</div></details>"
        if folded
        else "",
        '<p class="note">Over steps; the number is the last value. Dense curves are drawn pale, '
        "with their running mean over them.</p>"
        if charts
        else "",
    )


def _series(runs: Sequence[Run], name: str) -> list[Series]:
    known = ["train", *(split for split in all_splits(runs) if split != "train")]
    splits = [split for split in known if any(run.curve(name, split)[0] for run in runs)]
    series = []
    for index, run in enumerate(runs):
        for split in splits:
            steps, values = run.curve(name, split)
            if len(runs) == 1:
                series.append(Series(split, steps, values, color=known.index(split)))
            else:
                label = run.name if len(splits) == 1 else f"{run.name}, {split}"
                dashed = split != splits[0]
                series.append(Series(label, steps, values, color=index, dashed=dashed))
    return series


def classes(runs: Sequence[Run]) -> str:
    """Tabulates scores by class, with a confusion matrix, for each split."""
    parts = []
    for split in all_splits(runs):
        evaluated = [(run, run.evaluations[split]) for run in runs if split in run.evaluations]
        for run, evaluation in evaluated:
            title = split if len(runs) == 1 else f"{run.name}, {split}"
            matrix = evaluation.get("confusion_matrix") or []
            names = _class_names(evaluation)
            content = _class_table(evaluation.get("metrics", {}), names)
            if matrix:
                content = f"<div>{content}</div><div>{confusion_table(matrix, names)}</div>"
            if content:
                parts.append(f'<h3>{escape(title)}</h3><div class="columns">{content}</div>')
    if any('class="confusion"' in part for part in parts):
        parts.append(
            '<p class="note">Confusion matrix: each row is a true class, in per cent of its pixels;'
            " counts appear on hovering.</p>"
        )
    return section("Classes", *parts)


def _class_names(evaluation: Mapping[str, Any]) -> list[str]:
    size = len(evaluation.get("confusion_matrix") or [])
    return [str(name) for name in evaluation.get("classes") or range(size)]


def _class_table(metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    columns = {
        name: [number(value) for value in values]
        for name, values in metrics.items()
        if isinstance(values, list) and len(values) == len(names) and name != "absent_classes"
        if all(map(is_scalar, values))
    }
    if not names or not columns:
        return ""
    rows = [
        [name, *(format_number(values[index]) for values in columns.values())]
        for index, name in enumerate(names)
    ]
    heads = [readable(name.removeprefix("per_class_")) for name in columns]
    return table(["class", *heads], rows)
