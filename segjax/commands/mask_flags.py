"""The options that say what the masks of folders hold; see `segjax.recipes.folders.FolderData`."""

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
    Literal["classes", "instances"] | None,
    tyro.conf.arg(
        metavar="{classes,instances}",
        help="Whether values in the masks are classes, or each object has one of its own.",
        help_behavior_hint="(default: found)",
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
