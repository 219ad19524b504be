"""The options that say what the masks of folders hold; see `segjax.recipes.folders.FolderData`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

MaskSuffix = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="TEXT",
        help="What the names of masks have behind the name of the image, such as _mask.",
        help_behavior_hint="(default: found)",
    ),
]
MasksHold = Annotated[
    Literal["classes", "instances", "components"] | None,
    tyro.conf.arg(
        metavar="{classes,instances,components}",
        help="Whether values in the masks are classes, or each object has one of its own, or each "
        "connected region of a class is an object.",
        help_behavior_hint="(default: found)",
    ),
]
ClassMasks = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="DIR",
        help="Folder of masks with the classes of the objects that --masks numbers; --values and "
        "--ignored are then about these.",
        help_behavior_hint="",
    ),
]
Unmatched = Annotated[
    Literal["refuse", "skip"],
    tyro.conf.arg(
        metavar="{refuse,skip}",
        help="What to do with images without a mask and masks without an image.",
    ),
]
MaskValues = Annotated[
    tuple[str, ...],
    tyro.conf.arg(
        metavar="VALUE ...",
        help="Value of each class in the masks: numbers, or colours such as '#ff0000'.",
        help_behavior_hint="(default: found)",
    ),
]
MaskIgnored = Annotated[
    tuple[str, ...],
    tyro.conf.arg(
        metavar="VALUE ...",
        help="Values of pixels that are of no class.",
        help_behavior_hint="",
    ),
]
