"""`segjax data`: prepare, check and list data sets."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from segjax.commands.combinations import check_combination
from segjax.commands.errors import user_errors
from segjax.commands.mask_flags import (
    ClassMasks,
    MaskIgnored,
    MasksHold,
    MaskSuffix,
    MaskValues,
    Unmatched,
)

Name = Annotated[str, tyro.conf.arg(metavar="NAME")]
Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]
OptionalFolder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]


def prepare_command(
    name: Name,
    /,
    *,
    source: OptionalFolder = None,
    data_dir: Folder = Path("data"),
    shards: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None,
    overwrite: bool = False,
) -> None:
    """Check the official files of a data set, and build it for training.

    Args:
      name: Name of the data set, as in `segjax data list`.
      source: Folder with the unpacked official files; generated data sets need none.
      data_dir: Folder of the prepared data sets.
      shards: Number of files of each split, such as the number of machines that each train on a
        part; by default files of about 128 MB.
      overwrite: Build the data set again if it is prepared already.
    """
    with user_errors():
        from segjax.data.prepare import prepare

        prepare(name, data_dir=data_dir, source=source, shards=shards, overwrite=overwrite)


def shards_command(name: Name, /, *, processes: int, data_dir: Folder = Path("data")) -> None:
    """List the shards that each process needs, if each trains on its part of a data set.

    Besides them, every process needs the JSON files and labels in the folder of the data set. With
    --train.part-only True, process k of N then reads only its own shards, also for evaluation.

    Args:
      name: Name of the data set, as in `segjax data list`.
      processes: Number of processes that train together.
      data_dir: Folder of the prepared data sets.
    """
    with user_errors():
        from segjax.data.sources.semantic import shards_of_parts

        found = shards_of_parts(name, data_dir=data_dir, processes=processes)
    for split, parts in found.items():
        print(f"{split}: {parts[-1][0].stop} examples")
        for index, (part, shards) in enumerate(parts):
            examples = f"{part.start} to {part.stop - 1}" if part else "none"
            print(f"  process {index}: examples {examples}")
            print("".join(f"    {shard}\n" for shard in shards), end="")


def check_command(
    name: Annotated[str | None, tyro.conf.arg(metavar="[NAME]", help_behavior_hint="")] = None,
    /,
    *,
    source: OptionalFolder = None,
    coco: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    images: OptionalFolder = None,
    masks: OptionalFolder = None,
    mask_suffix: MaskSuffix = None,
    unmatched: Unmatched = "refuse",
    class_masks: ClassMasks = None,
    holds: MasksHold = None,
    values: MaskValues = (),
    ignored: MaskIgnored = (),
    classes: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")
    ] = (),
    color_table: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")
    ] = None,
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

    Give NAME for a data set of `segjax data list`, --images and --masks for your own folders, or
    --coco and --images for your own objects in COCO's format. The exit status is 1 if there are
    problems.

    Args:
      name: Name of the data set, as in `segjax data list`.
      source: Folder with the official files to check; without it, the prepared data set is checked.
      coco: JSON file in COCO's format to check; it needs --images.
      images: Folder of the images of --masks or --coco.
      masks: Folder of the masks; a mask has the name of its image, with or without more.
      classes: Names of the classes, in the order of their values.
      color_table: Text file with a class and its colour on each line, such as road,#804080.
      orientation: How images with an EXIF orientation are read: turned as viewers show them, or as
        they are stored, for annotations that were drawn on the stored bitmap.
      data_dir: Folder of the prepared data sets, and of contact sheets.
      contact_sheet: Picture to write: examples of each split and their labels.
    """
    check_combination(
        "data check",
        {
            "NAME": name,
            "--source": source,
            "--coco": coco,
            "--images": images,
            "--masks": masks,
            "--mask-suffix": mask_suffix,
            "--unmatched": None if unmatched == "refuse" else unmatched,
            "--class-masks": class_masks,
            "--holds": holds,
            "--values": values or None,
            "--ignored": ignored or None,
            "--classes": classes or None,
            "--color-table": color_table,
            "--orientation": orientation,
        },
        WAYS,
    )
    path = coco or images
    title = name.replace("/", "_") if name else path.stem if path else ""
    if contact_sheet is None:
        contact_sheet = data_dir / "contact_sheets" / f"{title or 'images'}.png"
    way = orientation or "upright"
    with user_errors():
        if images is not None and masks is not None:
            from segjax.recipes.folders import FolderData, check_data

            data = FolderData(
                images=images,
                masks=masks,
                mask_suffix=mask_suffix,
                unmatched=unmatched,
                class_masks=class_masks,
                holds=holds,
                values=values,
                ignored=ignored,
                classes=classes,
                color_table=color_table,
                orientation=way,
            )
            report = check_data(data, contact_sheet=contact_sheet)
        elif coco is not None and images is not None:
            from segjax.data.checks.coco import check_coco

            report = check_coco(coco, images, orientation=way, contact_sheet=contact_sheet)
        elif name is not None:
            from segjax.data.checks.check import check

            report = check(name, data_dir=data_dir, source=source, contact_sheet=contact_sheet)
        else:
            raise AssertionError("one of the ways is given")
    print(report.text())
    if any(split.images for split in report.splits.values()):
        print(f"  contact sheet: {contact_sheet}")
    if report.problems:
        sys.exit(1)


# The ways to say what is checked: the arguments that go together, and those that may join them.
WAYS = (
    (("NAME",), ("--source",)),
    (
        ("--images", "--masks"),
        (
            *("--mask-suffix", "--unmatched", "--class-masks", "--holds", "--values"),
            *("--ignored", "--classes", "--color-table", "--orientation"),
        ),
    ),
    (("--coco", "--images"), ("--orientation",)),
)


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
