"""The model card of a published folder: Markdown with the front matter that Hugging Face reads.

Every number comes from the run's own files. What nobody stated is said to be "not stated".
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from segjax.export.training_record import TrainingRecord
from segjax.files.nested import flatten
from segjax.tasks.instance import InstanceTask
from segjax.tasks.semantic import SemanticTask

# Licences that the Hub knows by a short name; others are "other" with the name beside it.
HUB_LICENSES = re.compile(
    r"mit|isc|apache-2\.0|a?gpl-[23]\.0|lgpl-(2\.1|3\.0)|mpl-2\.0|epl-2\.0|bsd(-[23]-clause)?|cc0-1\.0"
    r"|cc-by(-nc)?(-sa|-nd)?-[234]\.0|odbl|openrail|unlicense|zlib"
)
# Networks as their papers call them.
NAMES = {
    "UNet": "U-Net",
    "EncoderUNet": "U-Net",
    "DeepLabV1": "DeepLab v1",
    "DeepLabV2": "DeepLab v2",
    "DeepLabV3": "DeepLab v3",
    "DeepLabV3Plus": "DeepLab v3+",
    "MaskRCNN": "Mask R-CNN",
}
CLASS_SCORES = ("iou", "precision", "recall")  # of each class, in columns
# What the scores that readers look at first mean.
MEANINGS = {
    "seg": "SEG is the mean IoU of the objects, where an object counts as found if more than half "
    "of it is covered (Cell Tracking Challenge).",
    "mean_iou": "IoU is the intersection of truth and prediction over their union; 1 is perfect, "
    "and mean_iou is its mean over the classes.",
    "mask_AP": "AP is COCO's average precision over IoU 0.50 to 0.95, of masks or of boxes; 1 is "
    "perfect.",
}
COMMON_SCORES = ("mean_iou", "foreground_iou", "mean_dice", "pixel_accuracy", "mask_AP", "box_AP")


def model_card(
    task: SemanticTask | InstanceTask,
    facts: Mapping[str, Any],
    *,
    name: str,
    about: Mapping[str, str],
    record: TrainingRecord | None,
    pictures: Sequence[tuple[str, str]],
) -> str:
    """Returns the text of `README.md`.

    Args:
      task: the task of the model.
      facts: the content of `segjax.json`.
      name: the name of the folder.
      about: lines of the experiment's header by their names; may be empty.
      record: what is known about the training; None for converted weights.
      pictures: (caption, path in the folder).
    """
    parts = [_front_matter(task, facts), f"# {name}", _summary(task, facts)]
    parts += [f"![{caption}]({path})\n\n*{_text(caption)}.*" for caption, path in pictures[:1]]
    parts += ["## The model", _model(task, facts), "## How to use it", _use(task, facts, name)]
    parts += ["## Scores", *_scores(task, facts, record)]
    parts += [f"![{caption}]({path})\n\n*{_text(caption)}.*" for caption, path in pictures[1:]]
    parts += ["## Training", *_training(facts, about, record)]
    parts += ["## Licence", _license(facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(task, facts) -> str:
    kind = "instance" if isinstance(task, InstanceTask) else "semantic"
    tags = ["segjax", "jax", f"{kind}-segmentation", type(task.model).__name__.lower()]
    lines = ["---", "library_name: segjax", "pipeline_tag: image-segmentation"]
    if (stated := facts["license"]) is not None:
        known = stated.lower().replace(" ", "-")
        if HUB_LICENSES.fullmatch(known):
            lines.append(f"license: {known}")
        else:
            slug = re.sub(r"[^a-z0-9.]+", "-", stated.lower()).strip("-.") or "other"
            lines += ["license: other", f"license_name: {json.dumps(slug)}"]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _summary(task, facts) -> str:
    network = NAMES.get(type(task.model).__name__, type(task.model).__name__)
    if isinstance(task, InstanceTask):
        does = f"finds objects in images: a box, a mask, a score and {_of(len(task.classes) - 1)}"
    else:
        does = f"gives each pixel of an image {_of(len(task.classes))}"
        does += ", and numbers the objects" if task.decode is not None else ""
    return (
        f"This {network} {does}. It runs with segjax, which reads this folder without executing "
        "code from it."
    )


def _of(count: int) -> str:
    return f"one of {count} classes" if count > 1 else "its class"


def _model(task, facts) -> str:
    channels = {1: "grey", 3: "RGB"}.get(task.channels, f"{task.channels} bands")
    kinds = ", ".join(facts["images"]["dtypes"])
    network, backbone = type(task.model).__name__, getattr(task.model, "backbone", None)
    if backbone is not None:
        network += f" on {backbone if isinstance(backbone, str) else type(backbone).__name__}"
    rows = {
        "network": f"{network}, {_count(facts['weights']['parameters'])} parameters",
        "images": f"{channels}, {kinds}",
        "normalisation": f"`{task.preprocess}`",
        "classes": ", ".join(f"{number} {each}" for number, each in enumerate(task.classes)),
    }
    if facts["pixels"]:
        seen = f"{', '.join(facts['pixels']['types'])}, values " + " to ".join(
            f"{value:g}" for value in facts["pixels"]["range"]
        )
        rows["training images"] = seen
    rows["files"] = (
        f"`{facts['weights']['file']}` (weights), `segjax.json` (network, preprocessing, decoding)"
    )
    return _table(["", ""], rows.items())


def _use(task, facts, name) -> str:
    if isinstance(task, InstanceTask):
        result = 'found["boxes"], found["scores"], found["classes"], found["masks"]'
    else:
        result = 'found["labels"], found["probabilities"]'
        result += ', found["instances"]' if task.decode is not None else ""
    shape = {1: "[height, width], grey", 3: "[height, width, 3], RGB"}
    image = shape.get(task.channels, f"[height, width, {task.channels}]")
    return f"""With segjax {facts["segjax"]} or newer:

```
segjax predict {name} photo.png --output out
segjax evaluate {name} --images images --masks masks --output scores
```

```python
import segjax

model = segjax.load_run("{name}")
found = model.predict(image)  # {image}
{result}
```

Here `{name}` is this folder. Experiments with the setting `initial.run` start from it:
`--initial.run {name}`."""


def _scores(task, facts, record: TrainingRecord | None) -> list[str]:
    scores: Mapping[str, Any] = facts["scores"]
    if record is None or not scores:
        return ["None were measured with segjax."]
    titles = [
        split if of["examples"] is None else f"{split} ({of['examples']} images)"
        for split, of in scores.items()
    ]
    first = [*(of["headline"] for of in scores.values()), *COMMON_SCORES]
    names = dict.fromkeys(name for of in scores.values() for name in of["metrics"])
    single = [
        n for n in names if not any(isinstance(_score(of, n), list) for of in scores.values())
    ]
    single.sort(key=lambda name: first.index(name) if name in first else len(first))
    single = [n for n in single if any(_score(of, n) is not None for of in scores.values())]
    rows = [(name, *(_number(_score(of, name)) for of in scores.values())) for name in single]
    parts = [
        f"Scores of this checkpoint, {record.checkpoint}, as `segjax evaluate` computes them on "
        f"the splits of the experiment `{record.experiment}`:",
        _table(["", *titles], rows),
        " ".join(MEANINGS[name] for name in MEANINGS if name in single),
    ]
    split, of = next(iter(scores.items()))
    columns = [name for name in CLASS_SCORES if isinstance(_score(of, name), list)]
    if columns:
        by_class = zip(*(of["metrics"][name] for name in columns), strict=True)
        rows = [
            (each, *map(_number, row)) for each, row in zip(task.classes, by_class, strict=True)
        ]
        parts += [f"Each class, on {split}:", _table(["", *columns], rows)]
    return parts


def _training(facts, about, record: TrainingRecord | None) -> list[str]:
    if record is None:
        rows = {name.lower(): value for name, value in about.items()}
        return [
            f"The weights are {facts['source']}, converted by segjax {facts['segjax']}.",
            _table(["", ""], rows.items()) if rows else "",
        ]
    found = record.environment
    versions = [f"{name} {found.get(f'versions.{name}')}" for name in ("segjax", "jax", "flax")]
    count, device = found.get("device_count"), found.get("device_kind")
    if found.get("backend") == "cpu":
        device = f"CPU ({found.get('cpu_count')} cores)"
    time = "" if record.seconds is None else f", {_duration(record.seconds)}"
    rows = {
        "data": about.get("Data", "not stated"),
        **({"paper": about["Paper"]} if "Paper" in about else {}),
        "experiment": f"`{record.experiment}`",
        "command": f"`{record.command}`",
        "steps": f"{record.steps}{time}",
        "hardware": f"{count} × {device}",
        "versions": ", ".join([f"Python {found.get('python')}", *versions]),
        "commit of segjax": found.get("commit") or "an installed package",
    }
    settings = json.dumps(flatten(record.config), indent=1, ensure_ascii=False)
    return [
        _table(["", ""], rows.items()),
        "<details><summary>All settings</summary>\n\n```json\n" + settings + "\n```\n\n</details>",
    ]


def _license(facts) -> str:
    stated = facts["license"]
    if stated is None:
        return "Not stated. Ask whoever published the weights before you use them."
    return f"{_text(stated)}."


def _score(of: Mapping[str, Any], name: str) -> Any:
    return of["metrics"].get(name)


def _table(head: Sequence[str], rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: Any) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _text(text: str) -> str:
    """Returns text whose marks Markdown does not read."""
    return re.sub(r"([\\`*_\[\]<>])", r"\\\1", " ".join(text.split()))


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} million" if number >= 1_000_000 else f"{number:,}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
