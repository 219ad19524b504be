"""One row of the table of published weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class KnownWeights:
    """A published file of weights.

    Attributes:
      name: the name that selects it.
      converter: its entry in `segjax.pretrained.SOURCES`.
      address: where the publisher has it.
      licence: the licence that the publisher names; "not stated" if we found none.
      data: the data that the network was trained on.
      size: bytes, approximately; None if the publisher does not say.
      checksum: kind and first digits of its hash, such as "sha256:cd0a2569"; None if the publisher
        gives none.
      score: the published score, or None.
      file: the file's name in segjax's folder; by default that of the address.
      options: the converter's options for these weights.
    """

    name: str
    converter: str
    address: str
    licence: str
    data: str
    size: int | None = None
    checksum: str | None = None
    score: str | None = None
    file: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not self.file:
            object.__setattr__(self, "file", self.address.rpartition("/")[2])

    @property
    def source(self) -> str:
        """The publisher: "torchvision", "detectron2", "mmdet", "mmseg", "smp" or "tf"."""
        return self.name.partition("/")[0]
