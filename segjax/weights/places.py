"""Where files of weights lie on this machine, and whether they are whole.

A file is looked for in segjax's own folder, then in the cache of the package that publishes it:

- torchvision's, mmdetection's and mmsegmentation's in torch.hub's (`TORCH_HOME`);
- segmentation-models-pytorch's in Hugging Face's (`HF_HUB_CACHE`, `HF_HOME`), at one revision;
- detectron2's in iopath's (`FVCORE_CACHE`).
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from segjax.messages.hints import did_you_mean
from segjax.weights.known import KNOWN, KnownWeights, find

BLOCK = 1 << 20
HEXADECIMAL = set("0123456789abcdef")


class MissingWeights(FileNotFoundError):
    """A known file of weights is not on this machine, or only damaged."""


def own_folder() -> Path:
    """segjax's folder of weights: `$SEGJAX_WEIGHTS`, or segjax/weights in the user's cache."""
    chosen = os.environ.get("SEGJAX_WEIGHTS")
    return Path(chosen).expanduser() if chosen else _user_cache() / "segjax" / "weights"


def candidates(weights: KnownWeights) -> Iterator[tuple[str, Path]]:
    """Yields the places where a file may lie, in the order of the search: owner and path."""
    yield "segjax", own_folder() / weights.file
    path = urlsplit(weights.address).path.lstrip("/")
    if weights.source in ("torchvision", "mmdet", "mmseg"):
        home = _folder("TORCH_HOME", _user_cache() / "torch")
        yield "torch.hub", home / "hub" / "checkpoints" / weights.file
    elif weights.source == "smp":
        owner, repository, _, revision, file = path.split("/")
        home = _folder("HF_HOME", _user_cache() / "huggingface")
        hub = _folder("HF_HUB_CACHE", home / "hub")
        snapshots = hub / f"models--{owner}--{repository}" / "snapshots"
        yield "Hugging Face", snapshots / revision / file
    elif weights.source == "detectron2":
        yield "detectron2", _folder("FVCORE_CACHE", Path("~/.torch/iopath_cache")) / path


def present(weights: KnownWeights) -> tuple[str, Path] | None:
    """Returns the owner and path of the first file found, unchecked, or None."""
    return next(((owner, path) for owner, path in candidates(weights) if path.is_file()), None)


def locate(name: str) -> Path:
    """Returns the file of known weights, after checking its hash.

    Raises:
      ValueError: no file is known by this name.
      MissingWeights: the file is not on this machine, or is damaged. The message has its size,
        licence and address.
    """
    weights = known(name)
    damaged = []
    for _, path in candidates(weights):
        if path.is_file():
            problem = damage(weights, path)
            if problem is None:
                return path
            damaged.append(f"{path} {problem}. ")
    there = "".join(damaged) or "its file is not on this machine. "
    raise MissingWeights(
        f"{name}: {there}{weights.file}: {readable_size(weights.size)}, licence "
        f"{weights.licence}, from {weights.address}. To download it: segjax weights get "
        f"{weights.name}, or the flag --download of predict and evaluate. Without a connection: "
        "segjax weights add FILE"
    )


def known(name: str) -> KnownWeights:
    """Returns the row of a name.

    Raises:
      ValueError: no file is known by this name.
    """
    weights = find(name)
    if weights is None:
        hint = did_you_mean(name, KNOWN, cutoff=0.4) or "."
        raise ValueError(f"no file of {name!r} is known{hint} `segjax weights list` shows all")
    return weights


def damage(weights: KnownWeights, path: Path) -> str | None:
    """Says what is wrong with a file, such as "has the sha256 0123..., not cd0a2569", or None.

    A file without a published hash is compared with the record of its first download, or in
    Hugging Face's cache with the hash that it is stored under. Without either it counts as whole.
    """
    return mismatch(path, weights.checksum or recorded(path) or _blob(path))


def mismatch(path: Path, expected: str | None) -> str | None:
    """Says how a file differs from an expected checksum such as "md5:f10217", or returns None."""
    if expected is None:
        return None
    kind, _, digits = expected.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: new_hash(kind)).hexdigest()
    return difference(kind, found, digits)


def difference(kind: str, found: str, digits: str) -> str | None:
    """Compares a hash with its expected first digits; see `mismatch`."""
    if found.startswith(digits):
        return None
    return f"has the {kind} {found[:12]}..., not {digits[:12]}: damaged, or another file"


def new_hash(kind: str):
    """Returns a hash of a kind; MD5 finds damage here and need not be secure."""
    return hashlib.new(kind, usedforsecurity=False)


def record_of(path: Path) -> Path:
    """The file that keeps the hash of a file whose publisher gives none."""
    return path.with_name(f"{path.name}.json")


def recorded(path: Path) -> str | None:
    """Returns the recorded checksum of a file, such as "sha256:...", or None.

    Raises:
      ValueError: the record cannot be read.
    """
    record = record_of(path)
    if not record.is_file():
        return None
    try:
        return f"sha256:{json.loads(record.read_text(encoding='utf-8'))['sha256']}"
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{record}: no record of a hash; remove it") from error


def readable_size(size: float | None) -> str:
    """Returns a number of bytes as text: "178 MB", "7.6 MB"; "size unknown" for None."""
    if size is None:
        return "size unknown"
    return f"{size / 1e6:.0f} MB" if size >= 10e6 else f"{size / 1e6:.2g} MB"


def _user_cache() -> Path:
    return _folder("XDG_CACHE_HOME", Path("~/.cache"))


def _folder(variable: str, default: Path) -> Path:
    return Path(os.environ.get(variable) or default).expanduser()


def _blob(path: Path) -> str | None:
    """Hugging Face's cache links to files whose names are their SHA-256."""
    name = path.resolve().name
    return f"sha256:{name}" if len(name) == 64 and set(name) <= HEXADECIMAL else None
