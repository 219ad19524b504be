"""The report's charts as HTML: curves in SVG, and confusion matrices as tables.

Colours come from the page's style sheet (classes `s0` to `s7`), so that charts follow its light and
dark themes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 380, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 18, 8, 26  # margins for the axes' numbers
_NUM_COLORS = 8
_FEW_POINTS = 60  # curves up to this length mark every point; longer ones are smoothed
_MOST_POINTS = 400  # about one point per pixel
_MOST_CLASSES = 30  # larger matrices are hard to read


@dataclass(frozen=True)
class Series:
    """A curve of a chart: ascending steps, and values, which are None where undefined."""

    label: str
    steps: Sequence[float]
    values: Sequence[float | None]
    color: int = 0
    dashed: bool = False

    @property
    def style(self) -> str:
        """The curve's CSS classes."""
        return f"s{self.color % _NUM_COLORS}" + (" dashed" if self.dashed else "")


def format_number(value: float | None) -> str:
    """Formats a number with about four digits, or thousands separators; None becomes "–"."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == round(value) and (isinstance(value, int) or 1000 <= abs(value) < 1e9):
        return f"{round(value):,}"
    return f"{value:.4f}" if 1e-2 <= abs(value) <= 1 else f"{value:.4g}"


@dataclass(frozen=True)
class _Axes:
    """Maps steps and values to the pixels of the chart."""

    steps: tuple[float, float]
    values: tuple[float, float]  # logarithms if the scale is logarithmic
    logarithmic: bool

    @classmethod
    def around(cls, steps: np.ndarray, values: np.ndarray, *, logarithmic: bool) -> "_Axes":
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        logarithmic = logarithmic and low > 0 and high / low > 50
        if logarithmic:
            low, high = math.log10(low), math.log10(high)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
        return cls(
            (float(steps.min()), float(steps.max())), (low - margin, high + margin), logarithmic
        )

    def x(self, step):
        first, last = self.steps
        return _LEFT + (step - first) / ((last - first) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value):
        low, high = self.values
        share = ((np.log10(value) if self.logarithmic else value) - low) / (high - low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def value_ticks(self) -> list[float]:
        low, high = self.values
        if not self.logarithmic:
            return _ticks(low, high)
        decades = range(math.floor(low), math.ceil(high) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            ticks = [
                d * 10.0**e for e in decades for d in digits if low <= e + math.log10(d) <= high
            ]
            if len(ticks) <= 7:
                break
        return ticks


def _ticks(low: float, high: float) -> list[float]:
    """Returns about five round numbers within [low, high]."""
    if high <= low:
        return [low]
    magnitude = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(m * magnitude for m in (1, 2, 5, 10) if (high - low) / (m * magnitude) <= 5.5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def line_chart(title: str, series: Sequence[Series], *, logarithmic: bool = False) -> str:
    """Draws curves over steps as an HTML figure.

    Curves with many points are drawn pale under their running mean. A curve has a gap where its
    value is undefined.

    Args:
        title: heading of the chart.
        series: the curves; those without a defined value are left out.
        logarithmic: use a logarithmic scale if all values are positive and span a factor above 50.
    """
    caption = f"<figcaption>{escape(title)}%s</figcaption>"
    drawn = [(line, *_thinned(line)) for line in series]
    drawn = [(line, steps, values) for line, steps, values in drawn if np.isfinite(values).any()]
    if not drawn:
        return (
            f'<figure class="chart">{caption % ""}<p class="note">No defined values.</p></figure>'
        )
    axes = _Axes.around(
        np.concatenate([steps for _, steps, _ in drawn]),
        np.concatenate([values for _, _, values in drawn]),
        logarithmic=logarithmic,
    )
    curves = "".join(_curve(axes, *item) for item in drawn)
    legend = "".join(
        f'<span><i class="{line.style}"></i>{escape(line.label)} '
        f"<b>{format_number(float(values[np.isfinite(values)][-1]))}</b></span>"
        for line, _, values in drawn
    )
    return (
        f'<figure class="chart">{caption % ("<small>log scale</small>" * axes.logarithmic)}'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)} over steps">'
        f'{_grid(axes)}{curves}</svg><div class="legend">{legend}</div></figure>'
    )


def _thinned(line: Series) -> tuple[np.ndarray, np.ndarray]:
    """Averages a curve down to at most `_MOST_POINTS`; undefined values become NaN."""
    steps = np.array(line.steps, np.float64)
    values = np.array([np.nan if value is None else value for value in line.values], np.float64)
    size = math.ceil(len(steps) / _MOST_POINTS)
    if size <= 1:
        return steps, values
    starts = np.arange(0, len(steps), size)
    defined = np.isfinite(values)
    counts = np.add.reduceat(defined, starts, dtype=np.float64)
    sums = np.add.reduceat(np.where(defined, values, 0), starts)
    means = np.full(len(starts), np.nan)
    return steps[starts], np.divide(sums, counts, out=means, where=counts > 0)


def _grid(axes: _Axes) -> str:
    parts = []
    for tick in axes.value_ticks():
        y = axes.y(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="y" x="{_LEFT - 6}" y="{y + 4:.1f}">{tick:.4g}</text>')
    for tick in _ticks(*axes.steps):
        label = f"{tick / 1000:g}k" if tick >= 10_000 else f"{tick:g}"
        parts.append(f'<text class="x" x="{axes.x(tick):.1f}" y="{_HEIGHT - 8}">{label}</text>')
    return "".join(parts)


def _curve(axes: _Axes, line: Series, steps: np.ndarray, values: np.ndarray) -> str:
    x, y = axes.x(steps), axes.y(values)
    if len(steps) > _FEW_POINTS:
        mean = _running_mean(y, len(y) // 40)
        return _path(x, y, f"{line.style} pale") + _path(x, mean, line.style)
    marks = "".join(
        f'<circle class="{line.style}" cx="{x[i]:.1f}" cy="{y[i]:.1f}" r="2.5"><title>'
        f"{escape(line.label)}, step {steps[i]:,.0f}: {format_number(float(values[i]))}"
        "</title></circle>"
        for i in np.flatnonzero(np.isfinite(y))
    )
    return _path(x, y, line.style) + marks


def _path(x: np.ndarray, y: np.ndarray, style: str) -> str:
    commands, pen = [], "M"
    for px, py in zip(x, y, strict=True):
        if np.isfinite(py):
            commands.append(f"{pen}{px:.1f} {py:.1f}")
        pen = "L" if np.isfinite(py) else "M"
    return f'<path class="{style}" d="{"".join(commands)}"/>'


def _running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Averages the defined values within `reach` points on both sides; NaN stays NaN.

    Near the ends, the window shrinks equally on both sides, so that slopes are kept.
    """
    index = np.arange(len(values))
    reaches = np.minimum(reach, np.minimum(index, index[::-1]))
    defined = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(defined, values, 0))])
    counts = np.concatenate([[0], np.cumsum(defined)])
    first, last = index - reaches, index + reaches + 1
    means = (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)
    return np.where(defined, means, np.nan)


def confusion_table(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Draws a confusion matrix (rows are true classes) as a table of percentages of each row.

    Hovering shows counts. A list of the largest confusions follows. With more than 30 classes, only
    the list is drawn.
    """
    counts = np.array(matrix, np.int64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    table = ""
    if len(classes) <= _MOST_CLASSES:
        head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in classes)
        rows = "".join(
            f'<tr><th scope="row">{escape(name)}</th>'
            + "".join(_cell(counts, shares, classes, row, column) for column in range(len(classes)))
            + "</tr>"
            for row, name in enumerate(classes)
        )
        table = (
            '<div class="scroll"><table class="confusion">'
            f'<thead><tr><td class="corner">truth \\ prediction</td>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )
    return table + (_largest_confusions(counts, shares, classes) if len(classes) > 2 else "")


def _cell(counts, shares, classes, row, column) -> str:
    share, count = shares[row, column], counts[row, column]
    # The square root makes rare mistakes visible: 1 % of a class gets a tenth of the full colour.
    strength = math.sqrt(share)
    kind = "hit" if row == column else "miss"
    text = f"{100 * share:.1f}" if count else "·"
    hover = escape(
        f"{classes[row]} predicted as {classes[column]}: {count:,} of {counts[row].sum():,}"
    )
    dark = " strong" if strength > 0.75 else ""
    return f'<td class="{kind}{dark}" style="--a:{strength:.2f}" title="{hover}">{text}</td>'


def _largest_confusions(counts: np.ndarray, shares: np.ndarray, classes: Sequence[str]) -> str:
    wrong = counts * (1 - np.eye(len(classes), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:5]
    pairs = [divmod(int(index), len(classes)) for index in order if wrong.flat[index]]
    items = "".join(
        f"<li>{escape(classes[row])} predicted as {escape(classes[column])}: "
        f"{100 * shares[row, column]:.1f} % of {escape(classes[row])} "
        f"({counts[row, column]:,})</li>"
        for row, column in pairs
    )
    return f"<p>Largest confusions:</p><ol>{items}</ol>" if items else ""
