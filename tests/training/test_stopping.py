"""Early stopping, and the metric that ranks the checkpoints."""

import json
import math
import shutil

import chex
import jax
import pytest

from segjax.commands import launch
from segjax.trained import load_run
from segjax.training.checkpoint import Checkpoints
from segjax.training.ranking import read_best_metric
from segjax.training.rehearsal import FaultyEvaluation
from segjax.training.stopping import EarlyStopping
from tests.training import tiny
from tests.training.test_loop import final_state, lines, run

NAN = math.nan
# Training makes this one smaller, so no evaluation is better than the first.
WORSE = "negative_log_likelihood:max"
SETTINGS = {
    "num_steps": 12,
    "eval_every": 2,
    "checkpoint_every": 1,
    "best_metric": WORSE,
    "stop_after": 2,
}


def counts(scores, *, minimize=False, stop_after=2):
    """Returns the count after each evaluation."""
    now = EarlyStopping("m", "val", minimize, num_steps=9, stop_after=stop_after)
    found = []
    for score in scores:
        now = now.after(score)
        found.append(now.waited)
    return found


@pytest.mark.parametrize(
    ("scores", "minimize", "expected"),
    [
        ([0.1, 0.2, 0.2, 0.3, 0.1, 0.2], False, [0, 0, 1, 0, 1, 2]),
        ([0.1, 0.2, 0.1, 0.0, 0.05], True, [0, 1, 2, 0, 1]),
        ([NAN, 0.0, NAN, None, 0.1], False, [1, 0, 1, 2, 0]),
        ([-math.inf, -1.0, math.inf, math.inf], False, [0, 0, 0, 1]),
    ],
)
def test_only_a_strictly_better_score_starts_the_count_anew(scores, minimize, expected):
    assert counts(scores, minimize=minimize) == expected


def test_it_stops_once_the_count_is_reached_and_without_a_setting_never():
    now = EarlyStopping("seg", "val", False, num_steps=9, stop_after=2)
    stops = [(now := now.after(score)).stops for score in (0.5, 0.4, 0.5)]
    assert stops == [False, False, True]
    assert now.reason == (
        "seg on val was not better than 0.5000 in 2 evaluations in a row (train.stop_after 2)"
    )
    assert now.ends(4)
    never = EarlyStopping("seg", "val", False, num_steps=9, stop_after=None, waited=100)
    assert not never.stops
    assert [never.ends(step) for step in (8, 9)] == [False, True]
    undefined = EarlyStopping("seg", "val", False, num_steps=9, stop_after=1).after(NAN)
    assert undefined.reason == "seg on val was undefined in one evaluation (train.stop_after 1)"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, ("seg", True)),
        ("seg", ("seg", True)),
        ("seg:max", ("seg", False)),
        ("mean_iou", ("mean_iou", False)),
        ("mean_iou:min", ("mean_iou", True)),
        ("rand_error", ("rand_error", True)),
        ("negative_log_likelihood", ("negative_log_likelihood", True)),
        ("std_dice_per_image", ("std_dice_per_image", True)),
    ],
)
def test_the_direction_is_the_experiments_own_or_follows_from_the_name(setting, expected, tmp_path):
    """The tiny experiment, if its own metric were one to minimise."""
    experiment = tiny.build(tiny.Config(workdir=tmp_path)).ranked_by("seg:min")
    ranked = experiment.ranked_by(setting)
    assert (ranked.best_metric, ranked.minimize) == expected


@pytest.mark.parametrize("setting", ["", ":min", "mean_iou:", "mean_iou:smaller", "a:b:min"])
def test_another_form_of_the_setting_is_refused_by_name(setting):
    with pytest.raises(ValueError, match=f"best_metric='{setting}'; expected a metric's name"):
        read_best_metric(setting)


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stopped")
    return workdir, run(workdir, **SETTINGS)


def evaluated(workdir):
    return [(line["step"], line["split"]) for line in lines(workdir) if line["split"] != "train"]


def test_a_run_that_stops_is_finished_all_splits_are_scored_and_pictured(stopped_run):
    workdir, results = stopped_run
    assert evaluated(workdir) == [
        *[(step, "validation") for step in (2, 4, 6)],
        (6, "test"),
    ]
    for split, result in results.items():
        assert result.step == 6
        pictures = [row["picture"] for row in result.examples if "picture" in row]
        assert pictures
        for picture in pictures:
            assert picture.startswith(f"predictions/{split}_")
            assert (workdir / picture).is_file()
    shown = sorted(path.name for path in (workdir / "predictions").glob("step_*"))
    assert [name[:12] for name in shown] == [f"step_000000{step}" for step in (2, 2, 4, 4)]
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step == 6
    assert "best negative_log_likelihood on validation" in load_run(workdir).description
    assert load_run(workdir).step == 2


def test_a_stopped_run_is_left_as_it_is_and_says_why(stopped_run, capsys):
    workdir, _ = stopped_run
    before = (workdir / "metrics.jsonl").read_bytes()
    results = run(workdir, **SETTINGS)
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert set(results) == {"validation", "test"}
    best = next(line for line in lines(workdir) if line["split"] == "validation")
    assert (
        "stopped at step 6, since negative_log_likelihood on validation was not better than "
        f"{best['negative_log_likelihood']:.4f} in 2 evaluations in a row (train.stop_after 2); "
        "the best checkpoint is that of step 2\n"
    ) in capsys.readouterr().out


@pytest.mark.parametrize("killed", [[6], [5, 6], "evaluating"])
def test_a_stopped_run_cut_short_and_resumed_equals_the_whole_run(stopped_run, tmp_path, killed):
    workdir, _ = stopped_run
    cut = tmp_path / "cut"
    shutil.copytree(workdir, cut)
    if killed == "evaluating":
        (cut / "checkpoints" / "6" / "metrics" / "metrics").write_text("{}")
    else:
        for step in killed:
            shutil.rmtree(cut / "checkpoints" / str(step))
        # Without 5, it goes on from the best, which has the only evaluation on disk.
    run(cut, **SETTINGS)
    assert lines(cut) == lines(workdir)
    chex.assert_trees_all_equal(final_state(cut), final_state(workdir))


@pytest.mark.parametrize(
    ("change", "last"), [({"stop_after": 3}, 8), ({"num_steps": 7}, 7), ({"stop_after": None}, 12)]
)
def test_a_stopped_run_goes_on_if_its_end_has_changed(stopped_run, tmp_path, change, last):
    shutil.copytree(stopped_run[0], tmp_path / "longer")
    run(tmp_path / "longer", **(SETTINGS | change), accept_changes=True)
    assert evaluated(tmp_path / "longer")[-1] == (last, "test")


def test_another_metric_starts_the_count_anew(stopped_run, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(stopped_run[0], cut)
    shutil.rmtree(cut / "checkpoints" / "6")
    run(cut, **(SETTINGS | {"best_metric": "mean_iou:min"}), accept_changes=True)
    assert (6, "test") not in evaluated(cut)
    assert evaluated(cut)[-1][1] == "test"


@pytest.mark.parametrize("devices", [1, 4])
def test_any_number_of_devices_stops_at_the_same_step(stopped_run, tmp_path, devices):
    run(tmp_path, devices=devices, **SETTINGS)
    assert evaluated(tmp_path) == evaluated(stopped_run[0])


def test_a_command_that_stops_prints_why_and_writes_its_report(tmp_path, capsys):
    flags = {
        "workdir": tmp_path / "run",
        "train.num-steps": 4,
        "train.batch-size": jax.device_count(),
        "train.eval-every": 1,
        "train.best-metric": WORSE,
        "train.stop-after": 1,
    }
    arguments = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    launch.run(tiny.Config, tiny.build, tiny.__file__, arguments)
    reason = "negative_log_likelihood on validation was not better than"
    printed = capsys.readouterr()
    assert "best checkpoint: the one with the largest negative_log_likelihood\n" in printed.out
    assert f"stopped at step 2, since {reason}" in printed.err
    assert printed.err.count("the best checkpoint is that of step 1") == 1
    report = (tmp_path / "run" / "report.html").read_text()
    assert f"stopped after 2 of 4 steps, since {reason}" in report
    evaluation = json.loads((tmp_path / "run" / "evaluation" / "validation.json").read_text())
    assert evaluation["headline"] == "negative_log_likelihood"


def test_stopping_without_evaluations_during_training_is_refused_before_a_run_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"train\.stop_after=2 .* set train\.eval_every"):
        run(tmp_path / "run", stop_after=2, eval_every=None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "hint"), [("mean_dise", "mean_dice"), ("iou", "mean_iou")])
def test_a_best_metric_that_is_no_single_score_is_refused_with_the_nearest(tmp_path, name, hint):
    with pytest.raises(FaultyEvaluation, match=rf"'{name}'; expected .* did you mean '{hint}'\?"):
        run(tmp_path, best_metric=name)
    assert not lines(tmp_path)
