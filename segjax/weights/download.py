"""Downloads a file of weights: in parts, checked, and moved into place only if it is whole."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from segjax.files.atomic import write_json
from segjax.weights.known import KnownWeights
from segjax.weights.places import (
    BLOCK,
    damage,
    difference,
    new_hash,
    own_folder,
    readable_size,
    record_of,
    recorded,
)

CONNECT_SECONDS, READ_SECONDS = 20, 60
# How `flock` says that a file system has no such locks.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class DownloadFailed(OSError):
    """A file could not be downloaded; the message says why and what to do."""


class _NotFound(DownloadFailed):
    """The server has no such file."""


def download(weights: KnownWeights, *, mirror: str | None = None) -> Path:
    """Downloads a file into segjax's folder, unless a whole one is there.

    An interrupted download leaves a file that ends in .part; the next call goes on from there if
    the server allows it. Two calls at once download once: the second waits. Proxies are those of
    the environment (`https_proxy`, `no_proxy`).

    Args:
      weights: what to download.
      mirror: address of a server that has the file under the publisher's path, or of a folder that
        has it under its name.

    Returns:
      The path of the file.

    Raises:
      DownloadFailed: there is no connection, it broke, the server has no such file, the disk is
        full, or the file has another hash than the published or the recorded one.
      ValueError: the mirror is no address.
    """
    addresses = _addresses(weights, mirror)
    folder = own_folder()
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / weights.file
    with _alone(folder / f".{weights.file}.lock") as alone:
        if final.is_file() and damage(weights, final) is None:
            return final
        owner = "" if alone else f".{socket.gethostname()}.{os.getpid()}"
        part = folder / f"{weights.file}{owner}.part"
        for address in addresses:
            try:
                _fetch(address, part, weights, expected=weights.checksum or recorded(final))
                break
            except _NotFound:
                if address == addresses[-1]:
                    raise
        part.replace(final)
    return final


def _addresses(weights: KnownWeights, mirror: str | None) -> list[str]:
    if mirror is None:
        return [weights.address]
    if not mirror.startswith(("http://", "https://")):
        raise ValueError(
            f"--mirror {mirror}: expected an address, such as https://mirror.org/files"
        )
    root = mirror.rstrip("/")
    return [f"{root}{urlsplit(weights.address).path}", f"{root}/{weights.file}"]


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Waits until no other process holds the lock, which ends with the process.

    Yields:
      Whether the file system has locks.
    """
    with path.open("w") as lock:
        alone = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process downloads {path.name[1:-5]}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            alone = False
        yield alone


def _fetch(address: str, part: Path, weights: KnownWeights, *, expected: str | None) -> None:
    """Downloads to `part` and checks the file; records its hash if the publisher gives none."""
    import requests

    hashing = new_hash(expected.partition(":")[0] if expected else "sha256")
    start, tag = _take_up(part, address, hashing, checked=expected is not None)
    handled = sys.exception()  # of a caller, which is no cause of ours
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    if tag:
        headers["If-Range"] = tag
    try:
        with requests.get(
            address, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)
        ) as response:
            goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            if start and (
                response.status_code == 416 or (response.status_code == 206 and not goes_on)
            ):
                _drop(part)
                return _fetch(address, part, weights, expected=expected)
            _refuse_status(response, address)
            if start and response.status_code != 206:  # no ranges, or another file by now
                start, hashing = 0, new_hash(hashing.name)
            _write_state(part, address, response)
            size = _receive(response, part, hashing, start=start, name=weights.name)
            expected = expected or _announced(response)
    except requests.RequestException as error:
        raise DownloadFailed(_connection_problem(error, address, part, handled=handled)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DownloadFailed(
            f"{part.parent}: the disk is full; make space, and the same command goes on"
        ) from error
    found = hashing.hexdigest()
    if expected is not None:
        kind, _, digits = expected.partition(":")
        if problem := difference(kind, found, digits):
            _drop(part)
            record = record_of(part.parent / weights.file)
            advice = f"; remove {record} if the publisher has replaced it" * record.is_file()
            raise DownloadFailed(f"{address}: the file received {problem}{advice}. It was removed")
    _state_of(part).unlink(missing_ok=True)
    if weights.checksum is None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        record = {"address": address, "sha256": found, "bytes": size, "downloaded": now}
        write_json(record_of(part.parent / weights.file), record)


def _take_up(part: Path, address: str, hashing: Any, *, checked: bool) -> tuple[int, str | None]:
    """Hashes what an earlier call has received, or removes it if it may be of another file.

    Returns:
      The number of bytes, and for the server the tag of the file that they are of.
    """
    if not part.is_file():
        return 0, None
    state = {}
    with contextlib.suppress(OSError, ValueError):
        state = json.loads(_state_of(part).read_text(encoding="utf-8"))
    tag = state.get("etag") if state.get("address") == address else None
    if not checked and tag is None:
        _drop(part)
        return 0, None
    with part.open("rb") as file:
        while block := file.read(BLOCK):
            hashing.update(block)
        return file.tell(), None if checked else tag


def _write_state(part: Path, address: str, response: Any) -> None:
    tag = response.headers.get("ETag", "")
    strong = tag if tag.startswith('"') else None  # only such tags promise the same bytes
    write_json(_state_of(part), {"address": address, "etag": strong})


def _state_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_of(part).unlink(missing_ok=True)


def _refuse_status(response: Any, address: str) -> None:
    if response.status_code in (404, 410):
        raise _NotFound(
            f"{address}: the server has no such file ({response.status_code}). --mirror URL names "
            "another server; `segjax weights add FILE` takes a file that you have"
        )
    if response.status_code not in (200, 206):
        raise DownloadFailed(
            f"{address}: the server answered {response.status_code} {response.reason}"
        )
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise DownloadFailed(f"{address}: a web page instead of a file, perhaps a proxy's login")


def _receive(response: Any, part: Path, hashing: Any, *, start: int, name: str) -> int:
    """Appends the body to `part`, or replaces it if `start` is 0; returns the file's size."""
    import requests

    length = response.headers.get("Content-Length")
    total = None if length is None else start + int(length)
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise DownloadFailed(
            f"{part.parent}: {readable_size(total - start)} to download, {readable_size(free)} free"
        )
    with (
        part.open("ab" if start else "wb") as file,
        tqdm(
            desc=name,
            total=total,
            initial=start,
            unit="B",
            unit_scale=True,
            disable=None,
        ) as bar,
    ):
        for block in response.iter_content(BLOCK):
            file.write(block)
            hashing.update(block)
            bar.update(len(block))
        size = file.tell()
    if total is not None and size < total:
        raise requests.ConnectionError("the server closed the connection")
    return size


def _announced(response: Any) -> str | None:
    """Returns the SHA-256 that Hugging Face sends along, as huggingface_hub reads it, or None."""
    for each in (*response.history, response):
        digits = each.headers.get("X-Linked-Etag", "").strip('"')
        if len(digits) == 64:
            return f"sha256:{digits}"
    return None


def _connection_problem(
    error: BaseException, address: str, part: Path, *, handled: BaseException | None
) -> str:
    while error.__context__ not in (None, handled):
        error = error.__context__
    reason = str(error) or type(error).__name__
    received = part.stat().st_size if part.is_file() else 0
    if received:
        return (
            f"{address}: the connection broke ({reason}); {readable_size(received)} are kept, and "
            "the same command goes on from there"
        )
    return (
        f"{address}: no connection ({reason}). Without one, bring the file from elsewhere: "
        "`segjax weights add FILE`. Proxies are read from https_proxy; --mirror URL names another "
        "server"
    )
