"""The rows of the ledger: what is published, and the command that reproduces it.

A ledger is a folder of TOML files. `ledger.toml` names models, tables and the jobs of
`experiments/reproduce.py`; every other one has rows::

    [[row]]
    id = "deeplab-v3-voc2012"
    model = "deeplab-v3"
    table = "voc2012"
    name = "ResNet-101, multi-grid, ASPP, image pooling"
    command = "python experiments/deeplab/v3_voc2012.py --workdir runs/v3"
    split = "val"
    published = { mean_iou = 0.7721 }
    expected = { mean_iou = [0.767, 0.777] }

A row's runs are recorded beside them, in `<id>.json`.
"""

import shlex
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from segjax.files.nested import flatten
from segjax.messages.hints import did_you_mean
from segjax.training import configuration
from segjax.training.evaluate import evaluation_name
from segjax.training.experiment import load_module
from segjax.training.experiment_files import experiments_folder


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the README's table.

    Attributes:
      id, name: for rows and for readers.
      paper: Markdown, a link to the paper.
      experiments: Markdown, where its experiments are.
    """

    id: str
    name: str
    paper: str
    experiments: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of RESULTS.md; `id` is the name between its markers, `title` the data set."""

    id: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: a published number, or one that this project set out to reach.

    Attributes:
      id: name of the row and of its record.
      model, table: see `Model` and `Table`.
      name: tells the rows of a table apart.
      command: trains the run. The seed is not part of it.
      evaluate: scores the run in another way than training does; None takes training's scores.
      split: the split that is scored.
      metrics: the metrics to show besides those of the next two.
      published: metric → value published for this row's network and training; metrics are named as
        segjax reports them.
      compared: metric → value published for another network on the same data.
      source: where these are published.
      protocol: how ours differs from what is published.
      expected: metric → [low, high], where a right reproduction lies.
      steps, batch_size: the size of the training, for an estimate of its cost.
      program: the compiled program of `experiments/benchmarks/accelerator_fit.py` with the same
        network and size of image.
      summary: whether README's table shows the row.
      regression: what the first steps of the command must reach on the split, for a test:
        {"steps": 60, "foreground_dice": [0.5, 0.7]}.
    """

    id: str
    model: str
    table: str
    name: str
    command: str
    split: str
    evaluate: str | None = None
    metrics: tuple[str, ...] = ()
    published: dict = field(default_factory=dict)
    compared: dict = field(default_factory=dict)
    source: str = ""
    protocol: str = ""
    expected: dict = field(default_factory=dict)
    steps: int | None = None
    batch_size: int | None = None
    program: str | None = None
    summary: bool = False
    regression: dict = field(default_factory=dict)

    def __post_init__(self):
        for metric, value in [*self.published.items(), *self.compared.items()]:
            if not isinstance(value, int | float):
                raise ValueError(f"{metric}={value!r}; expected a number")
        bands = {name: band for name, band in self.regression.items() if name != "steps"}
        for metric, band in [*self.expected.items(), *bands.items()]:
            if not (isinstance(band, list) and len(band) == 2 and band[0] <= band[1]):
                raise ValueError(f"{metric}={band!r}; expected a band [low, high]")
        if self.regression and not isinstance(self.regression.get("steps"), int):
            raise ValueError("regression has no steps; expected their number, such as steps = 60")
        if not self.measures:
            raise ValueError("neither published nor compared nor metrics; expected some metric")

    @property
    def measures(self) -> list[str]:
        """The metrics to show: those with a published value, then the others."""
        return [*dict.fromkeys([*self.published, *self.compared, *self.metrics])]

    @property
    def experiment(self) -> str:
        """The experiment file, relative to the folder of experiments: "unet/drive.py"."""
        file = next(word for word in shlex.split(self.command) if word.endswith(".py"))
        return file.partition("experiments/")[2]

    @property
    def flags(self) -> list[str]:
        """The command's flags."""
        words = shlex.split(self.command)
        return words[next(i for i, word in enumerate(words) if word.endswith(".py")) + 1 :]

    @property
    def evaluation(self) -> str:
        """The name of the evaluation in the run directory: the split and changed settings."""
        words = shlex.split(self.evaluate or "")
        return evaluation_name(
            self.split, [w for w in words if "=" in w and not w.startswith("--")]
        )

    def differences(self, run_config: dict) -> list[str]:
        """Lists the settings in which a run differs from the row's command.

        Seed, paths, and what does not affect a run's numbers may differ.

        Args:
          run_config: "config" of the run's `config.json`.
        """
        module = load_module(experiments_folder() / self.experiment)
        variants = getattr(module, "VARIANTS", {})
        config = configuration.parse(module.Config, self.flags, variants=variants)
        free = {"seed", *configuration.paths(config)}
        asked, ran = (
            {name: value for name, value in flatten(values).items() if name not in free}
            for values in (configuration.to_dict(config), run_config)
        )
        return configuration.differences(asked, ran)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Trainings that `experiments/reproduce.py` runs, in the order of the file.

    Attributes:
      row: id of the row.
      seeds: number of trainings, with the seeds 0, 1, ...
      dataset: name of the data set to prepare.
      source: folder of its files, in the folder of all data; None for generated data.
      device: where the job is worth its time.
    """

    row: str
    dataset: str
    source: str | None = None
    seeds: int = 1
    device: Literal["cpu", "accelerator"] = "cpu"


@dataclass(frozen=True)
class Ledger:
    """A folder of rows and records.

    Attributes:
      folder: the folder.
      models, tables, rows: by id, in the order of the files.
      jobs: what `experiments/reproduce.py` runs, the most valuable first.
    """

    folder: Path
    models: dict[str, Model]
    tables: dict[str, Table]
    rows: dict[str, Row]
    jobs: tuple[Job, ...]

    def record_path(self, row: Row) -> Path:
        return self.folder / f"{row.id}.json"


def read_ledger(folder: Path) -> Ledger:
    """Reads the rows of a ledger.

    Raises:
      FileNotFoundError: the folder has no `ledger.toml`.
      ValueError: a file is no TOML, a key is unknown or a value wrong, an id occurs twice, or a row
        names no known model or table. The message names file and row.
    """
    folder = Path(folder)
    names = folder / "ledger.toml"
    if not names.is_file():
        raise FileNotFoundError(
            f"{names}: not there; expected a folder of results, such as experiments/results"
        )
    found = _read(names)
    models = _by_id(names, Model, found.get("model", []))
    tables = _by_id(names, Table, found.get("table", []))
    rows: dict[str, Row] = {}
    for path in sorted(folder.glob("*.toml")):
        if path == names:
            continue
        for name, row in _by_id(path, Row, _read(path).get("row", [])).items():
            where = f"{path}: row {name!r}"
            if name in rows:
                raise ValueError(f"{where}: the id is taken in another file")
            for kind, value, known in (("model", row.model, models), ("table", row.table, tables)):
                if value not in known:
                    hint = did_you_mean(value, known) or f"; known: {', '.join(known)}"
                    raise ValueError(f"{where}: no {kind} {value!r} in {names.name}{hint}")
            rows[name] = row
    jobs = []
    for place, entry in enumerate(found.get("job", []), start=1):
        jobs.append(configuration.from_dict(Job, entry, where=f"{names}: job {place}"))
        if jobs[-1].row not in rows:
            hint = did_you_mean(jobs[-1].row, rows) or "."
            raise ValueError(f"{names}: job {place}: no row {jobs[-1].row!r}{hint}")
    return Ledger(folder, models, tables, rows, tuple(jobs))


def _read(path: Path) -> dict:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML or of UTF-8
        raise ValueError(f"{path}: not TOML: {error}") from error


def _by_id(path: Path, kind, entries: list[dict]) -> dict:
    found = {}
    for place, entry in enumerate(entries, start=1):
        where = f"{path}: {kind.__name__.lower()} {entry.get('id', place)!r}"
        value = configuration.from_dict(kind, entry, where=where)
        if value.id in found:
            raise ValueError(f"{where}: the id occurs twice")
        found[value.id] = value
    return found
