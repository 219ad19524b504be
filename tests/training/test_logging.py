import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from segjax.training.logging import (
    WALL_CLOCK_FIELDS,
    MetricsLog,
    from_json,
    json_ready,
    read_metrics,
)


def lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def without_wall_clock(folder):
    return [
        {name: value for name, value in json.loads(line).items() if name not in WALL_CLOCK_FIELDS}
        for line in lines(folder)
    ]


def train(folder, first, last, *, resume_step=None):
    """Logs like a run that saves a checkpoint every three steps."""
    with MetricsLog(folder, resume_step=resume_step) as log:
        for step in range(first, last + 1):
            log.metrics(step, "train", {"loss": 1 / step, "images_per_second": os.urandom(1)[0]})
            if step % 3 == 0:
                log.metrics(step, "validation", {"mean_iou": math.nan, "iou": [0.5, None]})


def events(folder):
    """Reads TensorBoard events (the TFRecord format), oldest file first."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            found.append(event_pb2.Event.FromString(content[12 : 12 + size]))
            content = content[12 + size + 4 :]
    return found


def scalars(folder):
    return [
        (value.tag, event.step, pytest.approx(value.simple_value))
        for event in events(folder)
        for value in event.summary.value
        if not value.HasField("image")
    ]


def test_a_line_holds_step_split_values_and_elapsed_seconds(tmp_path):
    seconds = iter([100.0, 101.5])
    with MetricsLog(tmp_path, clock=lambda: next(seconds)) as log:
        log.metrics(np.int64(7), "train", {"loss": np.float32(0.1), "count": jnp.int32(3)})
    assert lines(tmp_path) == [
        '{"step": 7, "split": "train", "loss": 0.10000000149011612, "count": 3, '
        '"elapsed_seconds": 1.5}'
    ]


def test_each_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with MetricsLog(tmp_path) as log:
        for count in (1, 2, 3):
            log.metrics(count, "train", {"loss": 1.0})
            assert len(lines(tmp_path)) == count


def test_every_kind_of_value_comes_back_from_valid_json():
    values = {
        "float32": np.float32(0.1),
        "bfloat16": jnp.bfloat16(1.5),
        "array": np.array([[1.0, np.nan], [np.inf, -np.inf]]),
        "counts": np.array([2**62], np.int64),
        "flag": np.bool_(True),
        "nested": {"none": None, "text": "a", "path": Path("a/b"), 3: (1, 2.5)},
    }
    text = json.dumps(json_ready(values), allow_nan=False)
    read = from_json(json.loads(text))
    assert math.isnan(read["array"][0].pop())
    assert read == {
        "float32": float(np.float32(0.1)),
        "bfloat16": 1.5,
        "array": [[1.0], [math.inf, -math.inf]],
        "counts": [2**62],
        "flag": True,
        "nested": {"none": None, "text": "a", "path": str(Path("a/b")), "3": [1, 2.5]},
    }
    with pytest.raises(TypeError, match="object"):
        json_ready(object())


def test_non_finite_values_are_strings_that_float_reads(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.metrics(1, "train", {"a": math.nan, "b": np.float32(np.inf), "c": -math.inf})

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    entry = json.loads(lines(tmp_path)[0], parse_constant=refuse)
    assert [repr(float(entry[name])) for name in "abc"] == ["nan", "inf", "-inf"]
    (read,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(read["a"])
    assert (read["b"], read["c"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("killed_after", [3, 4, 5, 8])
def test_killed_and_resumed_log_equals_an_uninterrupted_one(tmp_path, killed_after):
    train(tmp_path / "whole", 1, 9)
    train(tmp_path / "killed", 1, killed_after)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "split": "tr')
    checkpoint = killed_after // 3 * 3
    train(tmp_path / "killed", checkpoint + 1, 9, resume_step=checkpoint)
    assert without_wall_clock(tmp_path / "killed") == without_wall_clock(tmp_path / "whole")
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == [
        "metrics.jsonl",
        "tensorboard",
    ]


def test_a_run_from_the_start_drops_what_was_logged(tmp_path):
    train(tmp_path, 1, 2)
    train(tmp_path, 1, 1)
    assert [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_elapsed_seconds_go_on_after_a_resume(tmp_path):
    for start, resume_step in ((1000.0, None), (5.0, 1)):
        seconds = iter([start, start + 60.0, start + 90.0])
        with MetricsLog(tmp_path, resume_step=resume_step, clock=lambda s=seconds: next(s)) as log:
            log.metrics(1 + (resume_step or 0), "train", {"loss": 1.0})
            log.metrics(2 + (resume_step or 0), "train", {"loss": 1.0})
    read = read_metrics(tmp_path / "metrics.jsonl")
    assert [entry["elapsed_seconds"] for entry in read] == [60.0, 120.0, 150.0]


def test_a_damaged_line_is_named_and_nothing_is_changed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for bad in ("{not json}", '{"step": 2}', "[1, 2]", ""):
        content = f'{{"step": 1, "split": "train"}}\n{bad}\n'
        path.write_text(content)
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
            MetricsLog(tmp_path, resume_step=5)
        assert path.read_text() == content
        assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_reading_leaves_out_a_half_written_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train"}\n{"step": 2, "split": "train"}')
    assert [entry["step"] for entry in read_metrics(path)] == [1]


def test_only_the_writing_process_touches_the_run_directory(tmp_path):
    with MetricsLog(tmp_path / "run", write=False) as log:
        log.metrics(1, "train", {"loss": 1.0})
        log.pictures(1, {"a": np.zeros((4, 4, 3), np.uint8)})
    assert not (tmp_path / "run").exists()


def test_values_may_not_take_the_names_of_the_logs_own_fields(tmp_path):
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match=r"split.*step"):
        log.metrics(1, "train", {"step": 1, "split": 2})
    assert lines(tmp_path) == []


def test_tensorboard_gets_finite_scalars_and_pictures(tmp_path, caplog):
    picture = np.full((6, 8, 3), 200, np.uint8)
    with MetricsLog(tmp_path) as log:
        log.metrics(3, "train", {"loss": jnp.float32(0.5), "bad": math.nan, "iou": [1.0, 2.0]})
        log.metrics(3, "validation", {"mean_iou": 0.25})
        log.pictures(3, {"validation/0007": picture})
    assert scalars(tmp_path) == [("train/loss", 3, 0.5), ("validation/mean_iou", 3, 0.25)]
    (image,) = [v.image for e in events(tmp_path) for v in e.summary.value if v.HasField("image")]
    assert (image.height, image.width) == (6, 8)
    assert not caplog.records


def test_tensorboard_is_told_to_forget_what_a_resume_repeats(tmp_path):
    train(tmp_path, 1, 5)
    train(tmp_path, 4, 6, resume_step=3)
    starts = [
        (index, event.step)
        for index, event in enumerate(events(tmp_path))
        if event.session_log.status == event_pb2.SessionLog.START
    ]
    assert [step for _, step in starts] == [0, 4]
    after = events(tmp_path)[starts[1][0] :]
    assert [
        e.step for e in after if e.summary.value and e.summary.value[0].tag == "train/loss"
    ] == [4, 5, 6]


def test_closing_twice_is_harmless_and_no_thread_stays_behind(tmp_path):
    code = (
        "import sys, threading\n"
        "from segjax.training.logging import MetricsLog\n"
        "log = MetricsLog(sys.argv[1])\n"
        "log.metrics(1, 'train', {'loss': 1.0})\n"
        "log.close(); log.close()\n"
        "assert all(t.daemon or t is threading.main_thread() for t in threading.enumerate())\n"
        "assert 'jax' not in sys.modules and 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
