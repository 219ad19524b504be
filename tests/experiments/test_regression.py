"""A row that is trained for its first steps reaches the band of its row.

The bands are in `experiments/results/*.toml`, as `regression`. They hold on any machine; a change
that moves a score out of its band changed the training.
"""

import json
import shlex

import pytest

from segjax.data.prepare import prepare
from segjax.ledger.rows import read_ledger
from segjax.training.experiment_files import experiments_folder
from tests.experiments.runs import start

LEDGER = read_ledger(experiments_folder() / "results")
SOURCES = {job.row: job for job in LEDGER.jobs}
CHECKED = {name: row for name, row in LEDGER.rows.items() if row.regression}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_the_first_steps_of_a_row_reach_its_band(name, tmp_path, request):
    row = CHECKED[name]
    data, flags = tmp_path / "data", list(row.flags)
    if name in SOURCES:
        files, job = request.getfixturevalue("real_data"), SOURCES[name]
        prepare(job.dataset, data_dir=data, source=files / job.source)
        for place, flag in enumerate(flags[:-1]):
            if flag.endswith(".weights"):
                flags[place + 1] = str(files / "weights" / flags[place + 1])
    place = flags.index("--workdir")
    del flags[place : place + 2]
    steps = ["--train.num-steps", str(row.regression["steps"]), "--train.eval-every", "None"]
    folder = tmp_path / "run"
    file = LEDGER.folder.parent / row.experiment
    with start(file, folder, *flags, *steps, "--data-dir", str(data)) as process:
        assert process.wait(timeout=1800) == 0, folder.with_suffix(".log").read_text()[-4000:]
    found = json.loads((folder / "evaluation" / f"{row.split}.json").read_text())["metrics"]
    bands = {metric: band for metric, band in row.regression.items() if metric != "steps"}
    print(shlex.join(flags), {metric: found[metric] for metric in bands})
    for metric, (low, high) in bands.items():
        assert low <= found[metric] <= high, f"{metric} {found[metric]} of {low} to {high}"
