"""Initial weights of a run: random, trained elsewhere, or those of another run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import flax.linen as nn

from segjax import pretrained
from segjax.models.backbones.registry import BackboneName, make_backbone
from segjax.training.checkpoint import Checkpoints
from segjax.training.state import TrainState


@dataclass(frozen=True)
class InitialConfig:
    """Initial weights; random by default."""

    name: str | None = None
    """Name of the model in the weights file, such as torchvision/resnet101; see
    `segjax.pretrained.SOURCES`."""
    weights: Path | None = None
    """File of trained weights: .pth, .safetensors, .npz or .pkl."""
    run: Path | None = None
    """Run directory to start from instead of a file, at its last checkpoint (a paper's next
    phase)."""
    backbone_only: bool = False
    """Leave out the heads of trained networks, even if they fit."""

    def __post_init__(self):
        if (self.name is None) != (self.weights is None):
            raise ValueError("initial.name and initial.weights go together; one of them is missing")
        if self.name is not None and self.run is not None:
            raise ValueError("initial: give either a file of weights or a run, not both")

    def initialize(
        self,
        variables: dict,
        *,
        normalize,
        backbone: BackboneName | nn.Module,
        moved: Mapping[str, str] = MappingProxyType({}),
    ) -> dict:
        """Replaces random variables by trained ones, and prints which.

        The class-dependent layers of classifiers and detection heads stay random if the number of
        classes differs.

        Args:
          variables: the random variables of the model.
          normalize: the transform that normalises the images of this run.
          backbone: the model's backbone.
          moved: see `pretrained.initialize`.

        Raises:
          FileNotFoundError: there is no such file or run, or the run has no checkpoint.
          ValueError: the weights do not fit, or were trained with another normalisation of pixels
            or with strides in other layers; the message lists every misfit.
        """
        if self.name is not None and self.weights is not None:
            found = pretrained.load(self.name, self.weights)
            _check_fit(found, self.name, normalize=normalize, backbone=backbone)
            source, trained = self.weights, found.variables
        elif self.run is not None:
            source, trained = self.run, _variables_of_run(self.run)
        else:
            return variables
        if self.backbone_only and "backbone" in trained["params"]:
            trained = {
                collection: {name: part for name, part in parts.items() if name == "backbone"}
                for collection, parts in trained.items()
            }
        merged, report = pretrained.initialize(variables, trained, moved=moved)
        print(f"initial variables from {source}: {report}")
        return merged


def _check_fit(
    found: pretrained.Pretrained, name: str, *, normalize, backbone: BackboneName | nn.Module
):
    """Rejects mismatches that shapes cannot reveal."""
    if found.preprocess != normalize:
        raise ValueError(
            f"{name} was trained with pixels normalised by {found.preprocess}, but network.pixels "
            f"gives {normalize}; choose another network.pixels"
        )
    theirs: BackboneName | nn.Module = getattr(found.model, "backbone", found.model)
    modules = [make_backbone(x) if isinstance(x, str) else x for x in (backbone, theirs)]
    for attribute in ("stride_in", "stem"):
        ours, its = (getattr(module, attribute, None) for module in modules)
        if ours != its:
            raise ValueError(
                f"{name} was trained with {attribute}={its!r}, but the network has {ours!r}; "
                "choose another network.backbone"
            )


def _variables_of_run(run: Path) -> dict:
    """Reads the variables of a run's last checkpoint."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"initial.run: {run} has no checkpoints")
    with Checkpoints(folder, read_only=True) as checkpoints:
        if checkpoints.latest_step is None:
            raise FileNotFoundError(f"initial.run: {run} has no checkpoint yet")
        return TrainState(**checkpoints.read(checkpoints.latest_step)).variables
