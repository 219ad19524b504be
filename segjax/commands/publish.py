"""`segjax publish`: writes a trained model as a folder for others, and uploads it."""

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from segjax.commands.errors import UserError, user_errors
from segjax.commands.experiments import read_docstring
from segjax.commands.models import Checkpoint, find_weights, load_weights, load_with_splits

if TYPE_CHECKING:
    from segjax.pretrained import Pretrained
    from segjax.trained import TrainedRun


def publish_command(
    model: Annotated[str, tyro.conf.arg(metavar="RUN|NAME|FOLDER", help_behavior_hint="")],
    /,
    *,
    output: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(must be new or empty)")
    ] = None,
    weights: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(with a NAME)")
    ] = None,
    checkpoint: Checkpoint = "best",
    license: Annotated[
        str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(default: not stated)")
    ] = None,
    push: Annotated[
        str | None, tyro.conf.arg(metavar="USER/NAME", help_behavior_hint="(default: no upload)")
    ] = None,
    private: bool = False,
) -> None:
    """Write a trained model as a folder that predicts anywhere.

    The folder holds the weights (model.safetensors), a description that rebuilds the network, its
    preprocessing and its decoding (segjax.json), the run's settings and versions (training.json),
    and a model card with scores and pictures (README.md). It needs no experiment file and holds no
    code; `segjax predict FOLDER IMAGES` and `segjax evaluate FOLDER --images DIR --masks DIR` use
    it. Read the card before you share it, and add what only you know.

    Args:
      model: Run directory: the --workdir of a training. Or the name of a model trained elsewhere,
        such as torchvision/deeplabv3_resnet50, whose file is on this machine or given by --weights.
        With --push alone: a folder that was published before.
      output: Folder to write.
      weights: Weights of the model NAME: .pth, .ckpt, .safetensors, .npz, .pkl or
        TensorFlow's .index.
      license: Licence of the weights, such as MIT or CC-BY-4.0.
      push: Repository on the Hugging Face Hub to upload the folder to; it is created if it is new.
        Needs the extra "hub", and `hf auth login` once.
      private: Make a new repository private.
    """
    from segjax.export.hub import check_push
    from segjax.files.atomic import refuse_full_folder

    if push is None and private:
        raise UserError("--private is for --push USER/NAME")
    if push is not None:
        with user_errors():
            check_push(push)
    if output is None:
        _push_folder(Path(model), push, private=private, weights=weights, license=license)
        return
    with user_errors():
        refuse_full_folder(output)
    file = find_weights(model, weights, download=False)
    if file is not None:
        if checkpoint != "best":
            raise UserError("--checkpoint is for a run, not for a model trained elsewhere")
        trained, source = load_weights(model, file), {"name": model}
        source |= _facts_of_known(model) if weights is None else {}
    else:
        trained = run = load_with_splits(Path(model), checkpoint)
        source = _source_of_run(Path(model), run)
    if license is not None:
        source["license"] = license
    _write(trained, output, source, run=model)
    if push is not None:
        _push(output, push, private=private)


def _write(trained: "Pretrained", output: Path, source: dict[str, Any], *, run: str) -> None:
    from segjax.export.published import Source, write_published
    from segjax.pretrained.description import NotOfSegjax

    try:
        with user_errors():
            notes = write_published(trained, output, Source(**source))
    except UserError as error:
        if not isinstance(error.__cause__, NotOfSegjax):
            raise
        raise UserError(
            f"{run} cannot be published: {error}, and a published folder holds no code. Share the "
            "run directory instead: it keeps its experiment file, and segjax predict RUN works "
            "wherever it is copied to"
        ) from error
    for note in notes:
        print(note)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"published  {output} ({size / 1e6:.1f} MB)\ncard       {output / 'README.md'}")
    if source.get("license") is None:
        print("licence    not stated; --license TEXT states one")
    record = source.get("record")
    if record is not None and not record.scores:
        print(f"scores     none of this checkpoint: run segjax evaluate {run}, and publish again")


def _facts_of_known(name: str) -> dict[str, Any]:
    """What the table of published weights says about weights of this name."""
    from segjax.weights.known import find

    known = find(name)
    assert known is not None
    about = {"Data": known.data, "Address": known.address, "Published score": known.score}
    return {
        "about": {key: value for key, value in about.items() if value},
        "license": None if known.licence == "not stated" else known.licence,
    }


def _source_of_run(path: Path, run: "TrainedRun") -> dict[str, Any]:
    """Collects what a run's own files say."""
    from segjax.export.training_record import read_record
    from segjax.recipes.folders import FolderData
    from segjax.training.run_directory import find_experiment

    with user_errors():
        module = ast.parse(find_experiment(path).read_text(encoding="utf-8"))
        record = read_record(path, run)
    about = read_docstring(ast.get_docstring(module) or "")[1]
    data, masks = getattr(run.config, "data", None), None
    if isinstance(data, FolderData):
        masks = {name: getattr(data, name) for name in ("holds", "values", "ignored")}
        masks["class_masks"] = None if data.class_masks is None else data.class_masks.name
        about = about | {"Data": f"a folder of images and masks: {data.found}"}
    return {
        "name": path.resolve().name,
        "step": run.step,
        "orientation": run.orientation,
        "pixels": dict(run.pixels),
        "masks": masks,
        "eval_batch_size": run.eval_batch_size,
        "about": about,
        "record": record,
    }


def _push_folder(folder: Path, push: str | None, *, private: bool, **others: Any) -> None:
    """Uploads a folder that was published before."""
    from segjax.pretrained.published import is_published, read_facts

    given = [f"--{name}" for name, value in others.items() if value is not None]
    if push is None or given:
        raise UserError(
            f"{', '.join(given) or 'publish'} needs --output FOLDER, the folder to write; without "
            "it, --push USER/NAME uploads a folder that was published before"
        )
    if not is_published(folder):
        raise UserError(
            f"{folder} is not a folder that segjax publish wrote; --output FOLDER writes one"
        )
    with user_errors():
        read_facts(folder)
    _push(folder, push, private=private)


def _push(folder: Path, repository: str, *, private: bool) -> None:
    from segjax.export.hub import NotPushed, push

    try:
        address = push(folder, repository, private=private)
    except NotPushed as error:
        raise UserError(
            f"{folder} is complete, but the upload to {repository} failed: {error} (try again: "
            f"segjax publish {folder} --push {repository}; a token comes from hf auth login)"
        ) from error
    print(f"uploaded   {address}")
