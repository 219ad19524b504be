"""The ledger: what a record keeps and refuses, the tables made from it, and segjax's own rows."""

import json
import sys

import pytest

from segjax.cli import main
from segjax.ledger.cost import BANDWIDTH, PEAK_FLOPS, compiled_programs, least_hours
from segjax.ledger.record import read_record, record_runs, score
from segjax.ledger.rows import Row, read_ledger
from segjax.ledger.tables import outdated, write_documents
from segjax.training import configuration
from segjax.training.experiment import load_module
from segjax.training.experiment_files import experiments_folder
from segjax.training.logging import MetricsLog, json_ready

OWN = experiments_folder() / "results"
NAMES = """
[[model]]
id = "unet"
name = "U-Net"
paper = "[Ronneberger 2015](https://arxiv.org/abs/1505.04597)"
experiments = "`experiments/unet/`"

[[table]]
id = "cells"
title = "generated cells"
"""
ROWS = """
[[row]]
id = "small"
model = "unet"
table = "cells"
name = "16 features"
command = "python experiments/quickstart.py --workdir runs/quickstart"
split = "test"
metrics = ["pixel_accuracy"]
published = { foreground_iou = 0.92 }
compared = { seg = 0.7756 }
source = "a paper, table 1"
protocol = "Ours has other images"
expected = { foreground_iou = [0.9, 0.95] }
summary = true

[[row]]
id = "large"
model = "unet"
table = "cells"
name = "64 features"
command = "python experiments/quickstart.py --workdir runs/large --network.features 64"
split = "test"
published = { foreground_iou = 0.9777 }
steps = 1000
batch_size = 8
program = "unet"
"""


@pytest.fixture
def ledger(tmp_path):
    folder = tmp_path / "experiments" / "results"
    folder.mkdir(parents=True)
    (folder / "ledger.toml").write_text(NAMES)
    (folder / "rows.toml").write_text(ROWS)
    return read_ledger(folder)


def make_run(folder, *, seed=0, iou=0.9, flags=(), steps=150, commit="c" * 40, **changes):
    """Writes a run directory like that of the quickstart."""
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(json_ready(content)))

    file = experiments_folder() / "quickstart.py"
    arguments = ["--workdir", str(folder), "--seed", str(seed), *flags]
    config = configuration.parse(load_module(file).Config, arguments)
    values = {
        "experiment": changes.get("experiment", str(file)),
        "command": f"python experiments/quickstart.py {' '.join(arguments)}",
        "config": configuration.to_dict(config),
    }
    write("config.json", values)
    environment = {
        **{"python": "3.13.0", "platform": "Linux", "processor": "A CPU", "cpu_count": 2},
        **{"backend": "cpu", "device_kind": "cpu", "device_count": 1, "process_count": 1},
        **{"commit": commit, "versions": {"jax": "0.12.0"}, "peak_memory_bytes": 3 * 2**30},
    }
    write("environment.json", environment | {"earlier": changes.get("earlier", [])})
    seconds = [0.0]
    with MetricsLog(folder, clock=lambda: seconds[0]) as log:
        for step in range(1, steps + 1):
            seconds[0] = 4.0 * step
            log.metrics(step, "train", {"loss": 1 / step, "images_per_second": 8.0})
    evaluation = {
        "split": "test",
        "step": steps,
        "commit": changes.get("scored_at", commit),
        "headline": "foreground_iou",
        "metrics": changes.get(
            "metrics",
            {"foreground_iou": iou, "seg": 0.5, "pixel_accuracy": 1.0, "iou": [1, iou]},
        ),
        "intervals": {"foreground_iou": [iou - 0.02, iou + 0.01]},
        "classes": ["background", "cell"],
        "examples": [{"id": f"{k}", "score": 0.5} for k in range(16)],
    }
    write(f"evaluation/{changes.get('split', 'test')}.json", evaluation)
    return folder


def test_a_record_keeps_the_runs_by_seed_with_their_scores_curves_and_cost(ledger, tmp_path):
    runs = [make_run(tmp_path / str(s), seed=s, iou=0.9 + s / 100) for s in (2, 0, 1)]
    row = ledger.rows["small"]
    assert record_runs(ledger, row, runs) == ledger.folder / "small.json"
    found = read_record(ledger, row)
    assert [run["seed"] for run in found] == [0, 1, 2]
    scored = score(found, "foreground_iou")
    assert scored.values == (0.9, 0.91, 0.92)
    assert scored.mean == pytest.approx(0.91)
    assert scored.deviation == pytest.approx(0.01)
    assert scored.interval == pytest.approx((0.89, 0.92))
    first = found[0]
    assert first["wall_seconds"] == 600
    assert first["steps_per_second"] == 0.25
    assert first["images_per_second"] == 8
    assert first["images"] == 16
    assert first["peak_memory_bytes"] == 3 * 2**30
    assert first["commits"] == ["c" * 40]
    assert first["versions"] == {"jax": "0.12.0"}
    curve = first["curves"]["train loss"]
    assert len(curve["steps"]) == 60
    assert (curve["steps"][0], curve["steps"][-1]) == (1, 150)
    assert curve["values"] == [1 / step for step in curve["steps"]]


REFUSED = {
    "changes": ({"commit": "c with uncommitted changes"}, "commit first, then run again"),
    "changes before": ({"earlier": [{"commit": "c with uncommitted changes"}]}, "commit first"),
    "changes later": ({"scored_at": "c with uncommitted changes"}, "commit first"),
    "no commit": ({"commit": None}, "without a known commit"),
    "unfinished": ({"steps": 149}, "unfinished: step 149 of 150"),
    "settings": (
        {"flags": ("--network.features", "8")},
        "differs from the command of row 'small'.*: network.features: 16 -> 8$",
    ),
    "experiment": ({"experiment": "/a/drive.py"}, "is a run of /a/drive.py.*quickstart.py"),
    "split": ({"split": "val"}, "no evaluation 'test'"),
    "metric": ({"metrics": {"foreground_iou": 0.9}}, "has no metric 'seg'.*foreground_iou"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_runs_that_nobody_could_repeat_are_refused(ledger, tmp_path, case):
    changes, message = REFUSED[case]
    if case == "split":
        changes = changes | {"steps": 150}
    run = make_run(tmp_path / "run", **changes)
    if case == "split":
        stored = json.loads((run / "evaluation/val.json").read_text())
        (run / "evaluation/val.json").write_text(json.dumps(stored | {"split": "val"}))
    with pytest.raises(ValueError, match=message):
        record_runs(ledger, ledger.rows["small"], [run])
    assert not ledger.record_path(ledger.rows["small"]).exists()


def test_two_runs_of_one_seed_are_refused(ledger, tmp_path):
    runs = [make_run(tmp_path / name) for name in "ab"]
    with pytest.raises(ValueError, match=r"seeds \[0, 0\]"):
        record_runs(ledger, ledger.rows["small"], runs)


def test_seed_paths_and_free_settings_may_differ_from_the_command(ledger, tmp_path):
    flags = ("--data-dir", "elsewhere", "--train.log-every", "1", "--train.num-workers", "1")
    record_runs(ledger, ledger.rows["small"], [make_run(tmp_path / "a", seed=7, flags=flags)])


def test_a_damaged_record_is_named(ledger):
    path = ledger.record_path(ledger.rows["small"])
    path.write_text('{"row": "large", "runs": []}')
    with pytest.raises(ValueError, match=r"small.json is damaged \(it is of row 'large'\)"):
        read_record(ledger, ledger.rows["small"])


DOCUMENT = """Before
<!-- results: cells -->
old
<!-- end of results -->
between
<!-- results: summary -->
<!-- end of results -->
after
"""


def test_tables_show_published_and_measured_numbers_and_text_around_them_stays(ledger, tmp_path):
    runs = [make_run(tmp_path / str(s), seed=s, iou=0.96 + s / 50) for s in (0, 1)]
    record_runs(ledger, ledger.rows["small"], runs)
    document = tmp_path / "RESULTS.md"
    document.write_text(DOCUMENT)
    assert outdated(ledger, [document]) == [document]
    assert write_documents(ledger, [document]) == [document]
    assert outdated(ledger, [document]) == write_documents(ledger, [document]) == []
    text = document.read_text()
    assert text.startswith("Before\n<!-- results: cells -->\n")
    assert text.endswith("<!-- end of results -->\nafter\n")
    assert "old" not in text
    lines = text.splitlines()
    assert (
        "| U-Net: 16 features | foreground IoU | 0.9200 | 0.9700 ± 0.0141 [0.9500, 0.9800] "
        "(outside) | 0.9000 to 0.9500 | 2 × 150 steps, 10 min each |"
    ) in lines
    assert "|  | SEG | (0.7756) | 0.5000 ± 0.0000 | – |  |" in lines
    assert "|  | pixel accuracy | – | 1.0000 ± 0.0000 | – |  |" in lines
    assert "| U-Net: 64 features | foreground IoU | 0.9777 | not yet measured | – |  |" in lines
    assert (
        "- **U-Net: 16 features.** Ours has other images. Published: a paper, table 1. Seeds 0, 1; "
        "16 images. 2 cores of A CPU; Python 3.13.0, jax 0.12.0; peak memory 3.0 GiB; "
        "commit ccccccc."
    ) in lines
    assert "  python experiments/quickstart.py --workdir runs/quickstart" in lines
    assert (
        "| U-Net | [Ronneberger 2015](https://arxiv.org/abs/1505.04597) | generated cells: "
        "foreground IoU 0.9200 | generated cells: foreground IoU 0.9700 ± 0.0141 [0.9500, 0.9800] "
        "(16 features) | `experiments/unet/` |"
    ) in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results: cels -->\n<!-- end of results -->", "no table 'cels'.*'cells'"),
        ("<!-- results: cells -->\n", "opens 1 tables and closes 0"),
    ],
)
def test_documents_that_cannot_be_written_are_named(ledger, tmp_path, text, message):
    document = tmp_path / "A.md"
    document.write_text(text)
    with pytest.raises(ValueError, match=f"A.md.*{message}"):
        write_documents(ledger, [document])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("split =", "splits ="), r"rows.toml: row 'small': unknown key 'splits'.*'split'"),
        (('id = "large"', 'id = "small"'), "rows.toml: row 'small': the id occurs twice"),
        (('table = "cells"', 'table = "cell"'), "row 'small': no table 'cell'.*'cells'"),
        (("[0.9, 0.95]", "[0.95, 0.9]"), r"row 'small': foreground_iou=.*expected a band"),
        (("0.92 }", '"0.92" }'), "foreground_iou='0.92'; expected a number"),
        (("[[row]]", "[row"), "rows.toml: not TOML"),
    ],
)
def test_mistakes_in_rows_are_named(ledger, change, message):
    path = ledger.folder / "rows.toml"
    path.write_text(ROWS.replace(*change, 1))
    with pytest.raises(ValueError, match=message):
        read_ledger(ledger.folder)


def test_a_folder_without_a_ledger_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ledger.toml: not there"):
        read_ledger(tmp_path)


def test_the_least_time_is_the_larger_of_arithmetic_and_traffic(ledger, tmp_path):
    def programs(flops, traffic):
        program = {"flops": flops, "bytes_accessed": traffic, "per_device": 4}
        text = json.dumps({"programs": {"unet": program, "none": {"flops": None}}})
        (tmp_path / "accelerator_fit_a.json").write_text(text)
        return compiled_programs(tmp_path)

    large = ledger.rows["large"]  # 1,000 steps of 8 images, in programs of 4
    busy = programs(3.6 * PEAK_FLOPS, BANDWIDTH)
    assert least_hours(large, busy) == pytest.approx(2.0)
    assert least_hours(large, programs(PEAK_FLOPS, 7.2 * BANDWIDTH)) == pytest.approx(4.0)
    assert least_hours(ledger.rows["small"], busy) is None


def run_segjax(*arguments):
    main([str(argument) for argument in arguments])


def test_the_commands_record_list_write_and_check(ledger, tmp_path, capsys):
    document = tmp_path / "RESULTS.md"
    document.write_text(DOCUMENT)
    place = ("--ledger", ledger.folder)
    run = make_run(tmp_path / "run")
    run_segjax("record", run, "--row", "small", *place)
    assert "foreground_iou            0.9000 [0.8800, 0.9100]" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_segjax("results", "--check", *place, "--documents", document)
    assert f"{document} differ from {ledger.folder}" in capsys.readouterr().err
    run_segjax("results", "--write", *place, "--documents", document)
    run_segjax("results", "--check", *place, "--documents", document)
    capsys.readouterr()
    run_segjax("results", *place)
    printed = capsys.readouterr().out
    assert "1 of 2 rows are measured" in printed
    assert "large  foreground_iou  0.9777     not yet measured" in printed
    with pytest.raises(SystemExit):
        run_segjax("record", run, "--row", "smal", *place)
    assert "no such row" in (error := capsys.readouterr().err)
    assert "'small'" in error


def test_documents_agree_with_the_ledger():
    if not (OWN.parents[1] / "README.md").exists():
        pytest.skip("an installed segjax has no README.md")
    run_segjax("results", "--check")


ROWS_OF_SEGJAX = read_ledger(OWN).rows


@pytest.mark.parametrize("name", ROWS_OF_SEGJAX)
def test_the_command_of_each_row_is_one_that_its_experiment_takes(name, monkeypatch):
    row: Row = ROWS_OF_SEGJAX[name]
    monkeypatch.setattr(sys, "argv", ["test"])
    module = load_module(OWN.parent / row.experiment)
    variants = getattr(module, "VARIANTS", {})
    config = configuration.parse(module.Config, row.flags, variants=variants)
    assert row.differences(configuration.to_dict(config)) == []
    if row.steps is not None:
        assert (config.train.num_steps, config.train.batch_size) == (row.steps, row.batch_size)


def test_records_belong_to_rows():
    records = {path.stem for path in OWN.glob("*.json")}
    assert records <= {*ROWS_OF_SEGJAX}
    for row in ROWS_OF_SEGJAX.values():
        read_record(read_ledger(OWN), row)
