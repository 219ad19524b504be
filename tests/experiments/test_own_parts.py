"""Two processes that each have the shards of their own part of a data set."""

import json
import shutil
from contextlib import ExitStack

import pytest

from segjax.cli import main
from segjax.data.datasets.synthetic_cells import synthetic_cells_dataset_builder
from segjax.data.prepare import prepare
from tests.experiments.runs import QUICKSTART, finish, logged, started_together

SMALL = ["--network.features", "2", "--network.depth", "1", "--network.tile", "36"]
SMALL += ["--train.num-steps", "3", "--train.log-every", "1", "--train.num-workers", "0"]


@pytest.fixture
def halves(tmp_path, monkeypatch, capsys):
    """Two folders of prepared data, with the shards that `segjax data shards` lists for each."""
    sizes = {"train": 7, "validation": 3, "test": 5}
    for split, size in sizes.items():
        monkeypatch.setitem(synthetic_cells_dataset_builder.SPLITS, split, size)
    whole = prepare("synthetic_cells", data_dir=tmp_path / "whole", shards=2)
    capsys.readouterr()
    main(
        [
            "data",
            "shards",
            "synthetic_cells",
            "--processes",
            "2",
            "--data-dir",
            str(whole.parents[1]),
        ]
    )
    listed = capsys.readouterr().out
    folders = []
    for index in range(2):
        folder = tmp_path / f"machine_{index}"
        shutil.copytree(tmp_path / "whole", folder)
        shards = {path.name: path for path in folder.rglob("*.array_record-*")}
        for name in shards.keys() - needed(listed, index):
            shards[name].unlink()
        assert len([*folder.rglob("*.array_record-*")]) == 3
        folders.append(["--data-dir", str(folder)])
    return folders


def needed(listed, process):
    """The shards that the output of `segjax data shards` has for a process."""
    found, of = set(), None
    for line in listed.splitlines():
        if line.startswith("  process"):
            of = int(line.split()[1].rstrip(":"))
        elif line.startswith("    ") and of == process:
            found.add(line.strip())
    return found


def test_each_process_needs_the_shards_of_its_part_only(halves, tmp_path):
    workdir = tmp_path / "run"
    with ExitStack() as stack:
        for process in started_together(
            stack, workdir, *SMALL, "--train.part-only", "True", each=halves, file=QUICKSTART
        ):
            finish(process, workdir)
    assert [line["step"] for line in logged(workdir) if line["split"] == "train"] == [1, 2, 3]
    for split, size in {"validation": 3, "test": 5}.items():
        scored = json.loads((workdir / "evaluation" / f"{split}.json").read_text())["examples"]
        assert len({each["id"] for each in scored}) == len(scored) == size


def test_a_missing_shard_ends_all_processes_in_one_line(halves, tmp_path):
    workdir = tmp_path / "run"
    with ExitStack() as stack:
        for process in started_together(stack, workdir, *SMALL, each=halves, file=QUICKSTART):
            assert process.wait(timeout=300) == 1
    output = workdir.with_suffix(".log").read_text()
    assert "is in a shard that is not here, " in output
    assert "training reads them with --train.part-only True" in output
    assert "Traceback" not in output
