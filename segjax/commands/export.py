"""`segjax export`: writes a trained model as one file that runs without segjax."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from segjax.commands.errors import UserError, user_errors
from segjax.commands.models import Checkpoint, find_weights, load_trained_run, load_weights
from segjax.commands.settings import Settings, read_settings, with_settings

if TYPE_CHECKING:
    import numpy as np

    from segjax.export.model import ImageFunction
    from segjax.pretrained import Pretrained

STABLEHLO, ONNX = SUFFIXES = (".stablehlo", ".onnx")


def export_command(
    model: Annotated[str, tyro.conf.arg(metavar="RUN|NAME", help_behavior_hint="")],
    /,
    *,
    output: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    weights: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(for a NAME)")
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
    batch: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 1; for ONNX)")
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "int8"] | None,
        tyro.conf.arg(
            metavar="float32|bfloat16|int8", help_behavior_hint="(default: float32; for ONNX)"
        ),
    ] = None,
    calibration: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(for int8)")
    ] = None,
    settings: Settings = (),
    overwrite: bool = False,
) -> None:
    """Export a trained model to StableHLO or ONNX.

    The exported function takes images as they are read, [batch, height, width, channels], and
    returns a dict: "labels" and "probabilities", or a detector's "boxes", "scores", "classes",
    "valid" and "masks". Normalisation, tiles and the choice of classes are inside. A JSON file of
    the same name beside it has the facts: inputs, outputs, classes, versions and the command.

    Args:
      model: Run directory: the --workdir of a training; or a folder of `segjax publish`. Or the
        name of weights, such as torchvision/deeplabv3_resnet50; see `segjax weights list`.
      output: File to write. NAME.stablehlo is for `jax.export.deserialize` and runs on CPUs, GPUs
        and TPUs. NAME.onnx is for ONNX Runtime, needs the extra segjax[onnx], and takes images of
        one --size in batches of one size.
      weights: Weights of the model NAME: .pth, .ckpt, .safetensors, .npz, .pkl or
        TensorFlow's .index. Without it, the published file of this name must be on this machine.
      size: Height and width of all images. Models that resize images need it; others run faster
        with it on CPUs.
      dtype: Type of the images' pixels.
      batch: Number of images in a batch.
      precision: How an ONNX file stores and multiplies weights. bfloat16 halves the weights, and
        ONNX Runtime still computes in float32. int8 quantises convolutions and products with
        weights, and needs --calibration.
      calibration: Folder of images, such as those of the training, that show which values the
        network's arrays take. They are cropped or mirrored to --size.
      settings: Settings of prediction that differ from the run's; see `segjax predict`.
      overwrite: Replace existing files.
    """
    if output.suffix not in SUFFIXES:
        raise UserError(f"--output {output}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if size is not None and min(size) < 1:
        raise UserError(f"--size {size[0]} {size[1]}: expected at least 1 pixel")
    _check_onnx(output, size, batch, precision, calibration)
    weights = find_weights(model, weights, download=False)
    if weights is not None and checkpoint != "best":
        raise UserError(f"--checkpoint is for a run; {model} is a model trained elsewhere")

    from segjax.export.facts import facts_path

    for path in (output, facts_path(output)):
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists already; choose another --output, or pass --overwrite")
    trained, source = _load(model, weights, checkpoint, settings)

    from segjax.export.facts import make_facts
    from segjax.export.model import image_function
    from segjax.files.atomic import write_json
    from segjax.training.run_directory import environment

    with user_errors():
        function = image_function(
            trained,
            size=size,
            dtype=dtype,
            precision=trained.matmul_precision,
        )
    is_onnx = output.suffix == ONNX
    batch = (batch or 1) if is_onnx else None
    facts = make_facts(
        function,
        form=output.suffix[1:],
        platforms=_platforms(output),
        model=source,
        command=shlex.join(["segjax", *sys.argv[1:]]),
        environment=environment(),
        batch=batch,
    )
    if batch is not None:
        _export_onnx(function, output, facts, batch, precision or "float32", calibration)
    else:
        _export_stablehlo(function, output, facts)
    with user_errors():
        write_json(facts_path(output), facts)
    sizes = "of any size" if size is None else f"of {size[0]} × {size[1]} pixels"
    kind = f"{function.dtype}" if batch is None else f"{function.dtype}, {batch} at a time"
    print(
        "\n".join(
            [
                f"model   {output}  ({output.stat().st_size / 1e6:.1f} MB; images {sizes}, "
                f"{kind}; {', '.join(facts['platforms'])})",
                f"facts   {facts_path(output)}",
                *(f"note: {note}" for note in function.notes),
            ]
        )
    )


def _check_onnx(
    output: Path,
    size: tuple[int, int] | None,
    batch: int | None,
    precision: str | None,
    calibration: Path | None,
) -> None:
    """Raises UserError unless the flags fit the format."""
    if output.suffix == STABLEHLO:
        for name, value in (
            ("batch", batch),
            ("precision", precision),
            ("calibration", calibration),
        ):
            if value is not None:
                raise UserError(
                    f"--{name} is for ONNX; {output} is StableHLO, which has float32 "
                    "and batches of any size"
                )
        return
    if size is None:
        raise UserError(
            f"--output {output}: an ONNX file takes images of one size; give --size HEIGHT WIDTH, "
            "or a name that ends in .stablehlo for any size"
        )
    if batch is not None and batch < 1:
        raise UserError(f"--batch {batch}: expected at least 1")
    if precision == "int8" and calibration is None:
        raise UserError("--precision int8 needs --calibration DIR, a folder of images")
    if precision != "int8" and calibration is not None:
        raise UserError("--calibration is for --precision int8")
    from segjax.export.onnx_file import check_packages

    with user_errors():
        check_packages()


def _platforms(output: Path) -> tuple[str, ...]:
    """Returns where the file runs."""
    if output.suffix == ONNX:
        return ("ONNX Runtime",)
    from segjax.export.stablehlo import PLATFORMS

    return PLATFORMS


def _export_stablehlo(function: "ImageFunction", output: Path, facts: dict[str, Any]) -> None:
    from segjax.export.stablehlo import to_stablehlo, write_stablehlo

    exported = to_stablehlo(function)
    facts["calling_convention_version"] = exported.calling_convention_version
    with user_errors():
        write_stablehlo(exported, output)


def _export_onnx(
    function: "ImageFunction",
    output: Path,
    facts: dict[str, Any],
    batch: int,
    precision: str,
    calibration: Path | None,
) -> None:
    from segjax.export.onnx_file import OPSET, check_packages, to_onnx, write_onnx
    from segjax.export.onnx_precision import with_bfloat16, with_int8

    images = None if calibration is None else _read_images(calibration, function, batch)
    with user_errors():
        model = to_onnx(function, batch=batch)
        if precision == "bfloat16":
            model = with_bfloat16(model)
        elif images is not None:
            model = with_int8(model, images)
    facts["versions"] |= check_packages()
    facts |= {"precision": precision, "opset": OPSET}
    if images is not None:
        facts["calibration"] = {"folder": str(calibration), "batches": len(images)}
    with user_errors():
        write_onnx(model, output, facts)


def _read_images(folder: Path, function: "ImageFunction", batch: int) -> list["np.ndarray"]:
    """Reads the images of a folder as batches of the function's size.

    Raises:
      UserError: the folder has no images, or one of another type or number of channels.
    """
    import numpy as np

    from segjax.data.image_arrays import ARRAY_SUFFIXES, for_network, read_array
    from segjax.data.images import find_images
    from segjax.export.onnx_precision import fitted

    assert function.size is not None  # checked before
    images = []
    with user_errors():
        for path in find_images(folder, suffixes=ARRAY_SUFFIXES):
            image = for_network(read_array(path), function.channels, path=path)
            if image.dtype != function.dtype:
                raise ValueError(
                    f"{path}: {image.dtype} pixels; the exported model reads {function.dtype} "
                    "(see --dtype)"
                )
            images.append(fitted(image, function.size))
    # The last batch is filled up with the first images.
    images += [images[index % len(images)] for index in range(-len(images) % batch)]
    return [np.stack(images[start : start + batch]) for start in range(0, len(images), batch)]


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
            "folder": str(Path(model).resolve()),
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
