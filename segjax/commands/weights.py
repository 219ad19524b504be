"""`segjax weights`: lists published weights, downloads them, takes in files."""

from pathlib import Path
from typing import Annotated

import tyro

from segjax.commands.errors import UserError, user_errors


def list_command() -> None:
    """List the published weights that segjax can use, and which of them are on this machine."""
    from segjax.weights.known import KNOWN
    from segjax.weights.places import own_folder, present, readable_size

    rows = []
    for weights in KNOWN.values():
        found = present(weights)
        rows.append(
            (
                weights.name,
                "-" if found is None else f"yes ({found[0]})",
                "?" if weights.size is None else readable_size(weights.size),
                weights.score or "-",
                weights.data,
                weights.licence,
            )
        )
    titles = ("NAME", "HERE", "SIZE", "PUBLISHED SCORE", "TRAINED ON", "LICENCE")
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    before = None
    for row in (titles, *rows):
        source = row[0].partition("/")[0]
        if before not in (None, "NAME", source):
            print()
        before = source
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    print(
        f"""
HERE says whose folder has the file: a package's own cache, or segjax's,
{own_folder()}
Scores are the publishers', in per cent: mIoU of labelled pixels; AP of objects; top-1 of images of
ImageNet, for backbones, which start a training. Licences are the publishers' too, for torchvision,
mmdet, mmseg and tf that of the package; the data may set terms of its own.

To download one, once:  segjax weights get NAME
To segment images:      segjax predict NAME IMAGES... --output DIR
To start a training:    --initial.name NAME"""
    )


def get_command(
    names: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")],
    /,
    *,
    mirror: Annotated[
        str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="(default: the publisher's)")
    ] = None,
) -> None:
    """Download published weights, unless they are on this machine.

    An interrupted download goes on where it stopped. The file is used only if its hash is the
    published one; where the publisher gives none, that of the first download is recorded and
    compared later. Proxies are read from the environment (https_proxy, no_proxy).

    Args:
      names: Names, as in `segjax weights list`.
      mirror: Server that has the files under the publisher's paths, or folder of a server that has
        them under their names.
    """
    from segjax.weights.download import download
    from segjax.weights.places import known, readable_size

    if not names:
        raise UserError("expected names of weights; `segjax weights list` shows them")
    with user_errors():
        rows = [known(name) for name in names]
        for weights in rows:
            path = _whole_file(weights.name)
            if path is None:
                size = readable_size(weights.size)
                licence = f"licence {weights.licence}"
                print(f"{weights.name}: {size}, {licence}, from {mirror or weights.address}")
                path = download(weights, mirror=mirror)
            print(f"{weights.name} is in {path}")


def _whole_file(name: str) -> Path | None:
    from segjax.weights.places import MissingWeights, locate

    try:
        return locate(name)
    except MissingWeights:
        return None


def add_command(
    files: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE ...", help_behavior_hint="")],
    /,
    *,
    name: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: by its hash)")
    ] = None,
) -> None:
    """Copy files of published weights into segjax's folder, for machines without a connection.

    Args:
      files: Files, which may have any names; their hashes say what they are.
      name: What the file is, if its publisher gives no hash.
    """
    from segjax.weights.add import add

    if not files:
        raise UserError("expected files of weights")
    if name is not None and len(files) > 1:
        raise UserError(f"--name {name} is for one file; there are {len(files)}")
    with user_errors():
        for file in files:
            weights, path = add(file, name)
            print(f"{file} is {weights.name}; it was copied to {path}")
