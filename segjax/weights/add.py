"""Takes a file of weights that the user has into segjax's folder."""

import shutil
import tempfile
from pathlib import Path

from segjax.files.atomic import write_json
from segjax.messages.lists import few
from segjax.weights.known import KNOWN, KnownWeights
from segjax.weights.places import (
    BLOCK,
    difference,
    known,
    new_hash,
    own_folder,
    record_of,
    recorded,
)


def add(path: Path, name: str | None = None) -> tuple[KnownWeights, Path]:
    """Copies a file into segjax's folder, under the name that the search looks for.

    The file is recognised by its hash, whatever its own name is. A file whose publisher gives no
    hash needs `name`, because others have files of the same name; its hash is recorded.

    Args:
      path: the file.
      name: what the file is.

    Returns:
      The weights, and the path of the copy.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is none of the known ones, or not the one that `name` says.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    hashes = _hashes(path)
    weights = _recognize(path, hashes) if name is None else known(name)
    if problem := _difference(weights, hashes):
        raise ValueError(f"{path}: not {weights.name}; it {problem}")
    folder = own_folder()
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / weights.file
    if not (final.exists() and final.samefile(path)):
        # A folder of its own, so that two calls at once do not write to one file.
        with tempfile.TemporaryDirectory(prefix=".adding.", dir=folder) as scratch:
            shutil.copyfile(path, Path(scratch) / final.name).replace(final)
    if weights.checksum is None:
        record = {"address": None, "sha256": hashes["sha256"], "bytes": path.stat().st_size}
        write_json(record_of(final), record)
    return weights, final


def _recognize(path: Path, hashes: dict[str, str]) -> KnownWeights:
    for weights in KNOWN.values():
        if _expected(weights) is not None and _difference(weights, hashes) is None:
            return weights
    alike = [each for each in KNOWN.values() if path.name in (each.file, _published_name(each))]
    for weights in alike:
        if problem := _difference(weights, hashes):
            raise ValueError(f"{path}: by its name {weights.name}, but it {problem}")
    if alike:
        raise ValueError(
            f"{path}: its publisher gives no hash to recognise it by; by its name it may be "
            f"{few([each.name for each in alike], most=5)}. Say which with --name NAME"
        )
    raise ValueError(
        f"{path}: none of the known weights (sha256 {hashes['sha256'][:12]}...); `segjax weights "
        "list` shows them. Any file can be used with --weights FILE"
    )


def _difference(weights: KnownWeights, hashes: dict[str, str]) -> str | None:
    expected = _expected(weights)
    if expected is None:
        return None
    kind, _, digits = expected.partition(":")
    return difference(kind, hashes[kind], digits)


def _expected(weights: KnownWeights) -> str | None:
    return weights.checksum or recorded(own_folder() / weights.file)


def _published_name(weights: KnownWeights) -> str:
    return weights.address.rpartition("/")[2]


def _hashes(path: Path) -> dict[str, str]:
    """Returns the file's hashes of the kinds that publishers use."""
    hashes = {kind: new_hash(kind) for kind in ("sha256", "md5")}
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            for each in hashes.values():
                each.update(block)
    return {kind: each.hexdigest() for kind, each in hashes.items()}
