"""`segjax data`: prepare, check and list data sets."""

import sys
from pathlib import Path
from typing import Annotated, Literal, cast

import tyro

from segjax.commands.errors import UserError, user_errors

Name = Annotated[str, tyro.conf.arg(metavar="NAME")]
Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]
OptionalFolder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]


def prepare_command(
    name: Name,
    /,
    *,
    source: OptionalFolder = None,
    data_dir: Folder = Path("data"),
    overwrite: bool = False,
) -> None:
    """Check the official files of a data set, and build it for training.

    Args:
      name: Name of the data set, as in `segjax data list`.
      source: Folder with the unpacked official files; generated data sets need none.
      data_dir: Folder of the prepared data sets.
      overwrite: Build the data set again if it is prepared already.
    """
    with user_errors():
        from segjax.data.prepare import prepare

        prepare(name, data_dir=data_dir, source=source, overwrite=overwrite)


def check_command(
    name: Annotated[str | None, tyro.conf.arg(metavar="[NAME]", help_behavior_hint="")] = None,
    /,
    *,
    source: OptionalFolder = None,
    coco: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    images: OptionalFolder = None,
    orientation: Annotated[
        Literal["upright", "stored"] | None,
        tyro.conf.arg(metavar="{upright,stored}", help_behavior_hint="(default: upright)"),
    ] = None,
    data_dir: Folder = Path("data"),
    contact_sheet: Annotated[
        Path | None,
        tyro.conf.arg(metavar="PNG", help_behavior_hint="(default: in DIR/contact_sheets)"),
    ] = None,
) -> None:
    """Check a data set: sizes, label values, missing and unreadable files.

    Give NAME for a data set of `segjax data list`, or --coco and --images for your own objects in
    COCO's format. The exit status is 1 if there are problems.

    Args:
      name: Name of the data set, as in `segjax data list`.
      source: Folder with the official files to check; without it, the prepared data set is checked.
      coco: JSON file in COCO's format to check; it needs --images.
      images: Folder of the images of --coco.
      orientation: How images with an EXIF orientation are read: turned as viewers show them, or as
        they are stored, for annotations that were drawn on the stored bitmap.
      data_dir: Folder of the prepared data sets, and of contact sheets.
      contact_sheet: Picture to write: examples of each split and their labels.
    """
    _check_combination(
        {
            "NAME": name,
            "--source": source,
            "--coco": coco,
            "--images": images,
            "--orientation": orientation,
        }
    )
    title = name.replace("/", "_") if name else coco.stem if coco else ""
    if contact_sheet is None:
        contact_sheet = data_dir / "contact_sheets" / f"{title}.png"
    with user_errors():
        from segjax.data.checks.check import check
        from segjax.data.checks.coco import check_coco

        if coco is not None and images is not None:
            report = check_coco(
                coco, images, orientation=orientation or "upright", contact_sheet=contact_sheet
            )
        else:
            report = check(
                cast(str, name), data_dir=data_dir, source=source, contact_sheet=contact_sheet
            )
    print(report.text())
    if any(split.images for split in report.splits.values()):
        print(f"  contact sheet: {contact_sheet}")
    if report.problems:
        sys.exit(1)


# The ways to say what is checked: the arguments that go together, and those that may join them.
WAYS = ((("NAME",), ("--source",)), (("--coco", "--images"), ("--orientation",)))


def _check_combination(arguments: dict[str, object]) -> None:
    """Raises UserError unless the arguments that are given are one of `WAYS`."""
    given = [name for name, value in arguments.items() if value is not None]
    for needed, optional in WAYS:
        if set(needed) <= set(given) <= {*needed, *optional}:
            return
    ways = " or ".join(
        f"{' and '.join(needed)} (with or without {', '.join(optional)})"
        for needed, optional in WAYS
    )
    raise UserError(f"data check takes {ways}, but got {', '.join(given) or 'none of them'}")


def list_command(*, data_dir: Folder = Path("data")) -> None:
    """List the data sets, and which of them are prepared.

    Args:
      data_dir: Folder of the prepared data sets.
    """
    from segjax.data.sources.catalog import dataset_names, make_builder
    from segjax.data.sources.semantic import is_prepared

    names = dataset_names()
    width = max(map(len, names))
    for name in names:
        builder = make_builder(name, data_dir=data_dir)
        if is_prepared(builder):
            splits = builder.info.splits.items()
            state = ", ".join(f"{split} ({info.num_examples})" for split, info in splits)
        elif builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            state = "not prepared; needs --source DIR"
        elif builder.needs_tensorflow:
            state = "not prepared; TFDS downloads and builds it, with TensorFlow"
        else:
            state = "not prepared; generated, needs no files"
        print(f"{name:{width}}  {state}")
    print(f"\nTo prepare one in {data_dir}: segjax data prepare NAME [--source DIR]")
