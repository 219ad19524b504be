"""StableHLO files by `jax.export`: one file for CPUs, GPUs and TPUs, which runs without segjax."""

import json
from pathlib import Path

import jax
from jax import export

from segjax.export.model import ImageFunction
from segjax.export.sizes import Size
from segjax.files.atomic import write_bytes
from segjax.ops.platforms import for_every_platform

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(function: ImageFunction, *, batch: int | None = None) -> export.Exported:
    """Exports a function of images for all platforms.

    Args:
      function: the function.
      batch: the number of images in a batch; None leaves it open.
    """
    limits = []
    if function.size is None and function.most is not None:
        sides = zip(("height", "width"), function.most, strict=True)
        limits = [f"{name} <= {most}" for name, most in sides]
    number, height, width = export.symbolic_shape("batch, height, width", constraints=limits)
    shape: tuple[Size, ...] = (
        number if batch is None else batch,
        *((height, width) if function.size is None else function.size),
        function.channels,
    )
    images = jax.ShapeDtypeStruct(shape, function.dtype)
    with for_every_platform():
        return export.export(jax.jit(function.call), platforms=PLATFORMS)(images)


def write_stablehlo(exported: export.Exported, path: Path) -> Path:
    """Writes the bytes that `jax.export.deserialize` reads."""
    return write_bytes(path, bytes(exported.serialize()))


def load_stablehlo(path: str | Path) -> export.Exported:
    """Reads an exported file; `load_stablehlo(path).call(images)` runs it.

    Raises:
      ValueError: this version of jax refuses the file; the message has the version that made it
        and the command that exports it again.
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        return export.deserialize(bytearray(content))
    # Damaged bytes raise ValueError, struct.error, TypeError and more.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: jax {jax.__version__} refuses this file ({reason:.200}){_remedy(path)}"
        ) from error


def _remedy(path: Path) -> str:
    """Returns the end of a message: what made the file, from the facts beside it."""
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return f"; {facts['again']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "; it is damaged, or export the model again with segjax export"
