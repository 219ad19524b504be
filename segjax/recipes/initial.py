"""Initial weights of a run: random, trained elsewhere, or those of another run."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Self, TypeVar, cast

from segjax import pretrained
from segjax.pretrained.catalog import check_has_file, conversion_of
from segjax.pretrained.converted import Conversion, Pretrained
from segjax.pretrained.published import is_published, read_variables
from segjax.recipes.network_config import BackboneNetworkConfig, NetworkConfig
from segjax.recipes.weights_settings import contradictions, take_over
from segjax.training.checkpoint import Checkpoints
from segjax.training.configuration import ExperimentConfig
from segjax.training.state import TrainState

Network = TypeVar("Network", bound=NetworkConfig)


@dataclass(frozen=True)
class InitialConfig:
    """Initial weights; random by default."""

    name: str | None = None
    """Name of weights, such as torchvision/resnet101; see `segjax weights list` and, for other
    files, `segjax.pretrained.SOURCES`. The network takes over the settings that belong to these
    weights (backbone, pixels, anchors, ...) in place of its defaults; in Python, by
    `config.resolved()`."""
    weights: Path | None = None
    """File of trained weights: .pth, .ckpt, .safetensors, .npz, .pkl or TensorFlow's .index.
    Without it, the published file of this name must be on this machine (`segjax weights get NAME`).
    A first layer for RGB images is adapted to images of N other bands: it gets the kernels of R, G
    and B in turn, times 3/N, and for one band their sum."""
    run: Path | None = None
    """Run directory to start from instead of a file, at its last checkpoint (a paper's next
    phase); or a folder of `segjax publish`."""
    backbone_only: bool = False
    """Leave out the heads of trained networks, even if they fit."""

    def __post_init__(self):
        if self.name is None and self.weights is not None:
            raise ValueError("initial.weights needs initial.name, the name of the weights")
        if self.name is not None and self.run is not None:
            raise ValueError("initial: give either a file of weights or a run, not both")
        if self.name is not None and self.weights is None:
            try:
                check_has_file(self.name)
            except ValueError as error:
                raise ValueError(f"initial.name without initial.weights: {error}") from error

    def resolve(self, network: Network, given: Collection[str] = ()) -> Network:
        """Returns the network with the settings of the weights in place of its defaults.

        Args:
          network: the configuration.
          given: dotted names of the settings on the command line, which stay as they are.

        Raises:
          ValueError: settings contradict the weights, or the network has no backbone.
        """
        if self.name is None:
            return network
        backboned = self._with_backbone(network)
        weights = conversion_of(self.name)
        given = [name.removeprefix("network.") for name in given if name.startswith("network.")]
        resolved = take_over(backboned, weights, given=given, backbone_only=self.backbone_only)
        self.check(resolved, weights)
        return cast(Network, resolved)

    def check(self, network: NetworkConfig, weights: Conversion | Pretrained) -> None:
        """Raises ValueError for settings of a network that contradict the weights."""
        network = self._with_backbone(network)
        problems = contradictions(network, weights, backbone_only=self.backbone_only)
        if problems:
            raise ValueError(
                f"the weights {self.name} need {', '.join(problems)}; a setting that is left out "
                "follows the weights"
            )

    def _with_backbone(self, network: NetworkConfig) -> BackboneNetworkConfig:
        if isinstance(network, BackboneNetworkConfig):
            return network
        raise ValueError(
            f"initial.name={self.name}: {type(network).__name__} takes no weights of other "
            "packages; expected a network with a backbone, such as EncoderUNetConfig"
        )

    def initialize(
        self,
        variables: dict,
        *,
        network: NetworkConfig,
        moved: Mapping[str, str] = MappingProxyType({}),
    ) -> dict:
        """Replaces random variables by trained ones, and prints which.

        The class-dependent layers of classifiers and detection heads stay random if the number of
        classes differs.

        Args:
          variables: the random variables of the model.
          network: the configuration of the model.
          moved: see `pretrained.initialize`.

        Raises:
          FileNotFoundError: there is no such file or run, the run has no checkpoint, or the
            published file is not on this machine; the message says how to get it.
          ValueError: the weights do not fit, or need other settings of the network; the message
            lists every misfit.
        """
        if self.name is not None:
            source = self.weights or pretrained.find_file(self.name)
            found = pretrained.load(self.name, source)
            self.check(network, found)
            trained = found.variables
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


@dataclass(frozen=True, kw_only=True)
class BackboneExperimentConfig(ExperimentConfig):
    """Settings common to the experiments whose network has a backbone."""

    network: BackboneNetworkConfig
    initial: InitialConfig = InitialConfig()

    def resolved(self, given: Collection[str] = ()) -> Self:
        """Takes over the settings of the initial weights, and refuses those that contradict."""
        return replace(self, network=self.initial.resolve(self.network, given))


def _variables_of_run(run: Path) -> dict:
    """Reads the variables of a run's last checkpoint, or of a published folder."""
    if is_published(run):
        return read_variables(run)
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"initial.run: {run} has no checkpoints")
    with Checkpoints(folder, read_only=True) as checkpoints:
        if checkpoints.latest_step is None:
            raise FileNotFoundError(f"initial.run: {run} has no checkpoint yet")
        return TrainState(**checkpoints.read(checkpoints.latest_step)).variables
