"""Add a term to a semantic loss: the Lovász-softmax, on the quickstart's cells.

Paper     Berman, Triki, Blaschko, The Lovász-Softmax loss, CVPR 2018 (arXiv:1705.08790): 79.0 mean
          IoU on the test set of PASCAL VOC 2012, with DeepLab v2.
Protocol  The quickstart (experiments/quickstart.py), with the Lovász-softmax of each image added to
          its loss ("lovasz" in the log). The cross-entropy keeps its pixel weights.
Data      synthetic_cells, made by code on first use.
Cost      9 minutes on 2 CPU cores that were busy with other work.
Command   python experiments/extending/lovasz.py --workdir runs/lovasz
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from segjax.commands.launch import run
from segjax.labels import IGNORE_LABEL
from segjax.training.experiment import Experiment, load_module
from segjax.training.experiment_files import experiments_folder

quickstart = load_module(experiments_folder() / "quickstart.py")


@dataclass(frozen=True)
class Config(quickstart.Config):
    """The quickstart with a Lovász-softmax term."""

    workdir: Path = Path("runs/lovasz")
    lovasz: float = 1.0
    """Weight of the Lovász-softmax term."""


def jaccard_surrogate(errors, truth, valid):
    """Computes the Lovász extension of one class's Jaccard loss (equation 8, algorithm 1).

    Args:
      errors: [pixels], the distance of each probability from the truth.
      truth: [pixels] bool, the pixels of the class.
      valid: [pixels] bool, the pixels that are not ignored.
    """
    order = jnp.argsort(-jnp.where(valid, errors, -1.0))  # ignored pixels come last
    truth, valid = (truth & valid)[order], valid[order]
    count = jnp.sum(truth, dtype=jnp.float32)
    intersection = count - jnp.cumsum(truth, dtype=jnp.float32)
    union = count + jnp.cumsum(valid & ~truth, dtype=jnp.float32)
    jaccard = 1.0 - intersection / jnp.maximum(union, 1.0)
    steps = jnp.diff(jaccard, prepend=0.0)
    return jnp.sum(jnp.where(valid, errors[order], 0.0) * steps)


def lovasz_softmax(outputs, batch, variables, *, weight: float):
    """Averages the surrogate over the classes present in each image, then over the images."""
    del variables

    def of_image(probabilities, labels):
        valid = labels != IGNORE_LABEL
        truth = jax.nn.one_hot(jnp.where(valid, labels, -1), probabilities.shape[1])
        errors = jnp.abs(truth - probabilities)
        losses = jax.vmap(jaccard_surrogate, in_axes=(1, 1, None))(errors, truth > 0, valid)
        present = jnp.any(truth > 0, axis=0)
        count = jnp.sum(present, dtype=jnp.float32)
        return jnp.sum(jnp.where(present, losses, 0.0)) / jnp.maximum(count, 1.0)

    labels = batch["labels"]
    probabilities = jax.nn.softmax(outputs["logits"])
    flat = probabilities.reshape(labels.shape[0], -1, probabilities.shape[-1])
    losses = jax.vmap(of_image)(flat, labels.reshape(labels.shape[0], -1))
    return weight * jnp.mean(losses)  # images weigh the same, and so do devices


def build(config: Config) -> Experiment:
    experiment = quickstart.build(config)
    extra_losses = {"lovasz": partial(lovasz_softmax, weight=config.lovasz)}
    task = dataclasses.replace(experiment.task, extra_losses=extra_losses)
    return dataclasses.replace(experiment, task=task)


if __name__ == "__main__":
    run(Config, build, __file__)
