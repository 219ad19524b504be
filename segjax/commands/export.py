"""`segjax export`: writes a trained model as one file that runs without segjax."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from segjax.commands.errors import UserError, user_errors
from segjax.commands.models import Checkpoint, load_trained_run, load_weights
from segjax.commands.settings import Settings, read_settings, with_settings

if TYPE_CHECKING:
    from segjax.pretrained import Pretrained

SUFFIXES = (".stablehlo", ".onnx")


def export_command(
    model: Annotated[str, tyro.conf.arg(metavar="RUN|NAME", help_behavior_hint="")],
    /,
    *,
    output: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    weights: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(with a NAME)")
    ] = None,
    checkpoint: Checkpoint = "best",
    size: Annotated[
        tuple[int, int] | None,
        tyro.conf.arg(metavar="HEIGHT WIDTH", help_behavior_hint="(default: any size)"),
    ] = None,
    dtype: Annotated[
        Literal["uint8", "uint16", "float32"] | None,
        tyro.conf.arg(
            metavar="uint8|uint16|float32", help_behavior_hint="(default: the training images')"
        ),
    ] = None,
    settings: Settings = (),
    overwrite: bool = False,
) -> None:
    """Export a trained model to StableHLO.

    The exported function takes images as they are read, [batch, height, width, channels], and
    returns a dict: "labels" and "probabilities", or a detector's "boxes", "scores", "classes",
    "valid" and "masks". Normalisation, tiles and the choice of classes are inside. A JSON file of
    the same name beside it has the facts: inputs, outputs, classes, versions and the command.

    Args:
      model: Run directory: the --workdir of a training. With the option --weights: the name of the
        model, such as torchvision/deeplabv3_resnet50.
      output: File to write. NAME.stablehlo is for `jax.export.deserialize` and runs on CPUs, GPUs
        and TPUs.
      weights: Weights of the model NAME: .pth, .ckpt, .safetensors, .npz, .pkl or
        TensorFlow's .index. Nothing is downloaded.
      size: Height and width of all images. Models that resize images need it; others run faster
        with it on CPUs.
      dtype: Type of the images' pixels.
      settings: Settings of prediction that differ from the run's; see `segjax predict`.
      overwrite: Replace existing files.
    """
    if output.suffix not in SUFFIXES:
        raise UserError(f"--output {output}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if size is not None and min(size) < 1:
        raise UserError(f"--size {size[0]} {size[1]}: expected at least 1 pixel")
    if weights is not None and checkpoint != "best":
        raise UserError("--checkpoint is for a run, --weights for a model trained elsewhere")

    from segjax.export.facts import facts_path

    for path in (output, facts_path(output)):
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists already; choose another --output, or pass --overwrite")
    trained, source = _load(model, weights, checkpoint, settings)

    from segjax.export.facts import make_facts
    from segjax.export.model import image_function
    from segjax.export.stablehlo import PLATFORMS, to_stablehlo, write_stablehlo
    from segjax.files.atomic import write_json
    from segjax.training.run_directory import environment

    config = getattr(trained, "config", None)
    with user_errors():
        function = image_function(
            trained,
            size=size,
            dtype=dtype,
            precision=config.matmul_precision if config is not None else "default",
        )
    exported = to_stablehlo(function)
    facts = make_facts(
        function,
        form="stablehlo",
        platforms=PLATFORMS,
        model=source,
        command=shlex.join(["segjax", *sys.argv[1:]]),
        environment=environment(),
    )
    facts["calling_convention_version"] = exported.calling_convention_version
    with user_errors():
        write_stablehlo(exported, output)
        write_json(facts_path(output), facts)
    sizes = "of any size" if size is None else f"of {size[0]} × {size[1]} pixels"
    print(
        "\n".join(
            [
                f"model   {output}  ({output.stat().st_size / 1e6:.1f} MB; images {sizes}, "
                f"{function.dtype}; {', '.join(PLATFORMS)})",
                f"facts   {facts_path(output)}",
                *(f"note: {note}" for note in function.notes),
            ]
        )
    )


def _load(
    model: str, weights: Path | None, checkpoint: str, settings: tuple[str, ...]
) -> tuple["Pretrained", dict[str, Any]]:
    """Loads a run or weights; returns the model and JSON values that say which it is."""
    changes = read_settings(settings)
    if weights is not None:
        trained = with_settings(load_weights(model, weights), changes)
        source = {"name": model, "weights": str(weights.resolve())}
    else:
        trained = run = load_trained_run(Path(model), checkpoint, settings=settings)
        source = {
            "run": str(Path(model).resolve()),
            "step": run.step,
            "commit": _commit_of(Path(model)),
        }
    return trained, source | {"settings": changes}


def _commit_of(run: Path) -> str | None:
    """Returns the commit of segjax that trained a run, if the run names it."""
    try:
        return json.loads((run / "environment.json").read_text(encoding="utf-8")).get("commit")
    except (OSError, ValueError):
        return None
