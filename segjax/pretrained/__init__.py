"""Models without a run: weights trained elsewhere and published folders, read safely.

Each source has one converter file; `SOURCES` lists the names::

    pretrained = segjax.pretrained.load("torchvision/deeplabv3_resnet50", "weights.pth")
    pretrained = segjax.pretrained.load("torchvision/deeplabv3_resnet50")  # if it is here already
    labels = pretrained.predict(photo)["labels"]

`load` also takes a folder of `segjax publish`; see `segjax.pretrained.published`.
"""

from segjax.pretrained.catalog import SOURCES, convert, find_file, load
from segjax.pretrained.converted import Pretrained
from segjax.pretrained.files import read_weights
from segjax.pretrained.initialization import Initialization, adapt_to_bands, initialize

__all__ = [
    "SOURCES",
    "Initialization",
    "Pretrained",
    "adapt_to_bands",
    "convert",
    "find_file",
    "initialize",
    "load",
    "read_weights",
]
