"""Train a small U-Net on generated cells and look at what it learned: minutes on a laptop.

Paper     Ronneberger et al., U-Net, MICCAI 2015, in small: 3 poolings instead of 4, 16 features
          instead of 64, batch norm, AdamW.
Data      synthetic_cells, made by code on first use: touching, textured, noisy cells.
Expected  foreground IoU ≥ 0.85 on held-out images, touching cells separated (see predictions/).
Cost      3 minutes on 2 CPU cores.
Command   python experiments/quickstart.py --workdir runs/quickstart
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segjax.data.prepare import open_generated
from segjax.evaluation.metrics import CellTracking
from segjax.losses import SemanticLoss
from segjax.recipes.unet import (
    AugmentConfig,
    CellInstances,
    PredictionConfig,
    UNetConfig,
    WeightMapConfig,
    segmentation_task,
    training_transforms,
)
from segjax.training.configuration import ExperimentConfig, TrainConfig, parse
from segjax.training.experiment import Experiment
from segjax.training.launch import run
from segjax.training.schedules import OptimizerConfig

DATASET = "synthetic_cells"


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """A small U-Net on generated cells."""

    workdir: Path = Path("runs/quickstart")
    train: TrainConfig = TrainConfig(
        num_steps=150, batch_size=4, eval_every=50, checkpoint_every=50, log_every=5
    )
    optimizer: OptimizerConfig = OptimizerConfig(
        name="adamw",
        learning_rate=3e-3,
        reference_batch_size=4,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_steps=20,
    )
    unet: UNetConfig = UNetConfig(features=16, depth=3, norm="batch", tile=140)
    augment: AugmentConfig = AugmentConfig(elastic_sigma=5.0)
    weight_map: WeightMapConfig = WeightMapConfig()
    loss: SemanticLoss = SemanticLoss()
    prediction: PredictionConfig = PredictionConfig()


def build(config: Config) -> Experiment:
    decode = CellInstances(gap=config.weight_map.gap, min_size=config.prediction.min_cell_size)
    return Experiment(
        task=segmentation_task(
            config.unet,
            DATASET,
            prediction=config.prediction,
            loss=config.loss,
            metrics=(CellTracking(),),
            decode=decode,
        ),
        train=partial(open_generated, DATASET, "train", data_dir=config.data_dir),
        transforms=training_transforms(config.unet, config.augment, config.weight_map),
        evaluation={
            split: partial(open_generated, DATASET, split, data_dir=config.data_dir)
            for split in ("validation", "test")
        },
        best_metric="seg",
    )


def say_what_next(workdir: Path, scores: dict):
    """Says how well it went, and where to go from here."""
    here = Path.cwd()
    python, this_file = (
        path.relative_to(here) if path.is_relative_to(here) else path
        for path in (Path(sys.executable), Path(__file__).absolute())
    )
    segjax = python.with_name("segjax")
    print(
        f"""
On images held out from training: foreground IoU {scores["foreground_iou"]:.3f}, and SEG, which
counts cells that were told apart, {scores["seg"]:.3f} (1 is perfect for both).
Look at {workdir}/report.html first, and at the pictures in {workdir}/predictions. Then:

  {segjax} predict {workdir} IMAGES... --output DIR
      segments images of your own with this network
  {python} {this_file} --help
      lists everything that can be changed, such as --unet.features 32 --workdir runs/wider
  {segjax} experiments list
      lists the experiments, such as the paper's network on published data sets
"""
    )


if __name__ == "__main__":
    evaluations = run(Config, build, __file__)
    say_what_next(parse(Config).workdir, evaluations["test"].metrics)
