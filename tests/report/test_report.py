import base64
import html
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from segjax.pictures.overlays import write_png
from segjax.report import write_report
from segjax.report.results import best_index
from segjax.training.logging import MetricsLog, json_ready

VOID = {"img", "meta"}


class Structure(HTMLParser):
    """Checks that elements are closed in order; collects attributes and text."""

    def __init__(self, document):
        super().__init__()
        self.open, self.attributes, self.text = [], [], ""
        self.feed(document)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data + " "


def embedded(page):
    """Decodes the pictures that are embedded in a page."""
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    found = []
    for source in sources:
        kind, content = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", source).groups()
        image = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), 1)
        found.append((kind, image[..., ::-1]))
    return found


def rows(document, cell):
    """Returns the other cells of each table row whose first cell has the given text."""
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", document)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in found]
    return [[html.unescape(text) for text in row[1:]] for row in cells if row and row[0] == cell]


def make_run(
    folder,
    *,
    learning_rate=0.1,
    iou=0.75,
    steps=20,
    examples=3,
    num_steps=20,
    intervals=None,
    **config,
):
    """Writes a run directory like that of a training with two classes."""
    folder.mkdir(parents=True)
    write = lambda name, content: (folder / name).write_text(json.dumps(json_ready(content)))  # noqa: E731
    values = {"workdir": str(folder), "train": {"num_steps": num_steps}, "rate": learning_rate}
    write("config.json", {"command": f"python a.py --workdir {folder}", "config": values | config})
    write(
        "environment.json", {"device_kind": "cpu", "device_count": 2, "commit": "0123456789abcdef"}
    )
    seconds = [0.0]
    with MetricsLog(folder, clock=lambda: seconds[0]) as log:
        for step in range(1, steps + 1):
            seconds[0] = 3.5 * step
            log.metrics(step, "train", {"loss": 1 / step, "images_per_second": 8.0})
        log.metrics(steps, "validation", {"mean_iou": iou / 2, "iou": [1.0, iou]})
    listed = []
    for index in range(examples):
        name = f"predictions/validation_{index}.png"
        write_png(folder / name, np.full((8, 16, 3), 20 * index, np.uint8))
        listed.append({"id": f"example{index}", "score": index / 10, "picture": name})
    (folder / "evaluation").mkdir()
    evaluation = {
        "split": "validation",
        "step": steps,
        "intervals": intervals or {},
        "metrics": {"pixel_accuracy": 0.5, "mean_iou": iou, "auc": np.nan, "iou": [1.0, iou]},
        "confusion_matrix": [[90, 10], [1, 3]],
        "classes": ["background", "cell"],
        "examples": listed,
    }
    write("evaluation/validation.json", evaluation)
    return folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "my_run")


def report(runs, tmp_path):
    return write_report(runs, tmp_path / "out" / "report.html").read_text()


def test_scores_have_their_intervals_over_images(tmp_path):
    intervals = {"mean_iou": [0.7, 0.8125]}
    first, second = (
        make_run(tmp_path / "one", intervals=intervals),
        make_run(tmp_path / "two", iou=0.5),
    )
    document = report([first], tmp_path)
    assert rows(document, "mean IoU")[0] == ["0.7500 [0.7000, 0.8125]"]
    assert "95 % interval over the images" in document
    both = report([first, second], tmp_path)
    assert rows(both, "mean IoU")[0] == ["0.7500 [0.7000, 0.8125]", "0.5000"]
    assert "95 % interval" not in report([second], tmp_path)


def test_report_is_one_well_formed_file_without_anything_from_outside(run, tmp_path):
    document = report(run, tmp_path)
    page = Structure(document)
    assert "http" not in document
    assert "<script" not in document
    assert "<link" not in document
    assert "url(" not in document
    outside = {"src", "href", "srcset", "xlink:href", "data", "action"}
    sources = [value for _, name, value in page.attributes if name in outside]
    assert len(sources) == 3
    assert all(source.startswith("data:image/") for source in sources)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["report.html"]


def test_report_says_the_result_the_time_and_how_to_repeat_it(run, tmp_path):
    text = Structure(report(run, tmp_path)).text
    assert "mean IoU on validation: 0.7500 , after 20 steps in 1 min 10 s on 2 × cpu." in text
    assert f"git checkout 0123456789abcdef\npython a.py --workdir {run}" in text


def test_final_scores_come_from_the_evaluation_and_undefined_ones_are_dashes(run, tmp_path):
    document = report(run, tmp_path)
    assert rows(document, "mean IoU") == [["0.7500"]]
    assert rows(document, "AUC") == [["–"]]
    assert rows(document, "cell") == [["0.7500"], ["25.0", "75.0"]]
    assert "cell predicted as background: 1 of 4" in document
    assert rows(document, "train.num_steps") == [["20"]]


def test_every_picture_is_embedded_as_it_is(run, tmp_path):
    pictures = embedded(Structure(report(run, tmp_path)))
    assert [kind for kind, _ in pictures] == ["png"] * 3
    shown = [int(image[0, 0, 0]) for _, image in pictures]
    assert shown == [40, 20, 0], "best first"


def test_the_three_best_and_the_three_worst_of_many_examples_are_shown(tmp_path):
    run = make_run(tmp_path / "run", examples=10)
    pictures = embedded(Structure(report(run, tmp_path)))
    assert [int(image[0, 0, 0]) // 20 for _, image in pictures] == [9, 8, 7, 0, 1, 2]


def test_examples_are_ranked_among_all_also_if_only_some_have_pictures(tmp_path):
    run = make_run(tmp_path / "run", examples=10)
    path = run / "evaluation" / "validation.json"
    content = json.loads(path.read_text())
    for example in content["examples"][2:9]:
        del example["picture"]
    path.write_text(json.dumps(content))
    text = Structure(report(run, tmp_path)).text
    captions = re.findall(r"(example\d) · score ([\d.]+), rank (\d+) of 10", text)
    assert captions == [
        ("example9", "0.9000", "1"),
        ("example1", "0.1000", "9"),
        ("example0", "0", "10"),
    ]


def test_an_evaluation_may_name_the_score_that_stands_for_the_run(run, tmp_path):
    path = run / "evaluation" / "validation.json"
    content = json.loads(path.read_text()) | {"headline": "pixel_accuracy"}
    path.write_text(json.dumps(content))
    assert "pixel accuracy on validation: 0.5000" in Structure(report(run, tmp_path)).text
    path.write_text(json.dumps(content | {"headline": "no_such_score"}))
    assert "mean IoU on validation: 0.7500" in Structure(report(run, tmp_path)).text


def test_large_pictures_are_reduced_so_that_the_file_stays_small(tmp_path):
    run = make_run(tmp_path / "run", examples=6)
    noise = np.random.default_rng(0).integers(0, 256, (500, 2000, 3)).astype(np.uint8)
    for path in (run / "predictions").iterdir():
        write_png(path, noise)
    path = write_report(run, tmp_path / "report.html")
    pictures = embedded(Structure(path.read_text()))
    assert [kind for kind, _ in pictures] == ["jpeg"] * 6
    assert min(image.shape[1] for _, image in pictures) >= 800
    assert path.stat().st_size < 2_000_000


def test_an_unfinished_run_is_reported_with_what_it_has(tmp_path):
    run = make_run(tmp_path / "run", steps=5)
    for path in (run / "evaluation").iterdir():
        path.unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "spl')
    page = Structure(report(run, tmp_path))
    assert "There is no evaluation/*.json" in page.text
    assert "5 of 20 steps" in page.text
    assert "mean IoU on validation: 0.3750" in page.text
    assert len(embedded(page)) == 3, "pictures that no evaluation names are shown all the same"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("config.json", "There is no config.json"),
        ("environment.json", "There is no environment.json"),
        ("metrics.jsonl", "There is no metrics.jsonl"),
        ("evaluation/validation.json", "There is no evaluation/*.json"),
        ("predictions/validation_1.png", "The picture validation_1.png is missing"),
    ],
)
def test_a_missing_file_is_said_and_a_broken_one_too(run, tmp_path, name, sentence):
    assert sentence not in Structure(report(run, tmp_path)).text
    (run / name).unlink()
    assert sentence in Structure(report(run, tmp_path)).text
    (run / name).write_bytes(b"{broken\n")
    if name.endswith("png"):
        assert sentence in Structure(report(run, tmp_path)).text
    else:
        assert f"{name} cannot be read" in Structure(report(run, tmp_path)).text


def test_a_lone_configuration_is_enough_for_a_report(run, tmp_path):
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "config.json").write_bytes((run / "config.json").read_bytes())
    assert "No scores yet, no step logged." in Structure(report(lone, tmp_path)).text


def test_other_directories_than_runs_are_refused_by_name(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is not a run directory"):
        report(tmp_path / "empty", tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        report([run, tmp_path / "nowhere"], tmp_path)
    for directories in ([], [run, run]):
        with pytest.raises(ValueError, match="different run directories"):
            report(directories, tmp_path)


def test_a_confusion_matrix_that_does_not_fit_its_classes_is_refused_by_name(run, tmp_path):
    path = run / "evaluation" / "validation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": ["a", "b", "c"]}))
    with pytest.raises(ValueError, match=r"validation\.json.*3 × 3"):
        report(run, tmp_path)


def test_text_from_files_is_escaped_everywhere(tmp_path):
    bad = "<i>&\"'</i>"
    run = make_run(tmp_path / "<b>run", **{bad: {bad: bad}})
    path = run / "evaluation" / "validation.json"
    content = json.loads(path.read_text())
    content |= {"split": bad, "classes": [bad, "b"], "metrics": {bad: 0.5, "iou": [0, 1]}}
    for example in content["examples"]:
        example["id"] = bad
    path.write_text(json.dumps(content))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 9, "split": bad, bad: 1.0, "loss": 2.0}) + "\n")
    (run / "environment.json").write_text(json.dumps({"commit": bad, "device_kind": bad, bad: bad}))
    other = make_run(tmp_path / "other<i>")
    for runs in (run, [run, other]):
        document = report(runs, tmp_path)
        Structure(document)
        assert "<i>&" not in document
        assert "<b>run" not in document
        assert "other<i>" not in document
        assert html.escape(bad) in document


def test_comparison_lists_only_the_entries_that_differ(tmp_path):
    first = make_run(tmp_path / "first", learning_rate=0.1, iou=0.5, only="a")
    second = make_run(tmp_path / "second", learning_rate=0.2, iou=0.75)
    document = report([first, second], tmp_path)
    table = document.split("What differs in the configuration")[1].split("</table>")[0]
    assert rows(table, "rate") == [["0.1", "0.2"]]
    assert rows(table, "only") == [["a", "–"]]
    assert len(re.findall("<tr", table)) == 3, "the heads and two entries"
    assert "The environment is the same in all runs." in document


def test_comparison_has_a_column_for_each_run_and_marks_the_best(tmp_path):
    first = make_run(tmp_path / "first", iou=0.5)
    second = make_run(tmp_path / "second", iou=0.75)
    document = report([first, second], tmp_path)
    assert rows(document, "mean IoU") == [["0.5000", "0.7500"]]
    assert "second has the best mean IoU on validation, 0.7500" in document
    assert "<td class=best>0.7500</td>" in document
    assert "<td class=best>0.5000</td>" not in document


def test_folds_of_one_cross_validation_have_their_mean_and_deviation(tmp_path):
    def fold(number, iou, seed=0):
        data = {"division": {"folds": 3, "fold": number}, "found": f"of fold {number}"}
        return make_run(tmp_path / f"{number}_{seed}_{iou}", iou=iou, data=data, seed=seed)

    runs = [fold(0, 0.5), fold(1, 0.6), fold(2, 0.7)]
    document = report(runs, tmp_path)
    assert "mean ± deviation over 3 folds" in document
    assert rows(document, "mean IoU") == [["0.5000", "0.6000", "0.7000", "0.6000 ± 0.1000"]]
    assert "over 2 of 3 folds" in report(runs[:2], tmp_path)
    # Other seeds, or one fold twice, are no cross-validation.
    assert "deviation over" not in report([*runs[:2], fold(2, 0.7, seed=1)], tmp_path)
    assert "deviation over" not in report([*runs[:2], fold(1, 0.9)], tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("mean_iou", [0.5, 0.75, None], 1),
        ("rand_error", [0.5, 0.25, None], 1),
        ("loss", [0.5, 0.75], 0),
        ("negative_log_likelihood", [0.5, 0.75], 0),
        ("mean_iou", [0.5, 0.5], None),
        ("mean_iou", [None, 0.5], None),
    ],
)
def test_the_best_run_has_the_smallest_error_or_the_largest_score(name, values, best):
    assert best_index(name, values) == best


def test_comparison_shows_the_examples_on_which_runs_differ_most(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    path = runs[1] / "evaluation" / "validation.json"
    content = json.loads(path.read_text())
    content["examples"][0]["score"] = 0.3
    content["examples"][1]["score"] = 0.9
    path.write_text(json.dumps(content))
    document = report(runs, tmp_path)
    titles = re.findall(r"example (example\d): scores differ by ([\d.]+)", document)
    assert titles == [("example1", "0.8000"), ("example0", "0.3000"), ("example2", "0")]
    assert len(embedded(Structure(document))) == 6


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [make_run(tmp_path / name / "run") for name in ("x", "y")]
    text = Structure(report(runs, tmp_path)).text
    assert "x/run" in text
    assert "y/run" in text
