"""Trains each network in float32 and in bfloat16 and compares loss curves and predictions.

    python experiments/benchmarks/mixed_precision.py --data DIR --output mixed_precision.json

The networks are narrow and the images are small crops of real data: ISBI 2012 for U-Net, CamVid for
the DeepLabs, and the Data Science Bowl's nuclei for Mask R-CNN. Both runs start from one state and
see the same batches and random keys. Parameters are float32 in both; `network.bfloat16` changes the
computation alone.

The control is a third run, in float32, whose first parameters differ by a relative 0.001. Training
amplifies any difference, so bfloat16 need not be closer to float32 than the control is.

Losses are compared as means over windows of 20 steps. Predictions are compared on held-out images
after training, and also from the same parameters (those that float32 trained), where only the
rounding of the prediction itself differs.
"""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from segjax.data.augmentation.semantic import Normalize
from segjax.data.images import read_image, read_images
from segjax.data.instance_masks import InstancesToObjects
from segjax.data.loading.pack_objects import PackObjects
from segjax.data.sources.protocol import BATCH_DTYPES
from segjax.evaluation.instance_evaluator import CocoEvaluator
from segjax.inference.coverings import WholeImage
from segjax.inference.paste import paste
from segjax.models.detections import DetectionConfig
from segjax.models.regions import AnchorSampling, RegionSampling
from segjax.models.rpn import ProposalConfig
from segjax.recipes.deeplab_networks import (
    BatchNormConfig,
    DeepLabV1Config,
    DeepLabV2Config,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
)
from segjax.recipes.mask_rcnn_networks import MaskRCNNConfig
from segjax.recipes.unet import UNetConfig
from segjax.tasks.instance import InstanceTask
from segjax.tasks.semantic import SemanticTask
from segjax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer
from segjax.training.run_directory import environment
from segjax.training.state import create_state
from segjax.training.step import make_train_step

WINDOW = 20  # steps
PERTURBATION = 1e-3
NORMALIZE = Normalize(127.5, 64.0)
CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car")
CAMVID += ("pedestrian", "bicyclist")
BATCH_NORM = BatchNormConfig(momentum=0.9)
OBJECTS = 24
HELD_OUT = 8  # images, which no step sees


@dataclass(frozen=True)
class MixedPrecisionOptions:
    """Options of the comparison.

    Attributes:
      data: a folder with "isbi2012", "camvid" and "dsb2018" as they are distributed.
      output: a JSON file, rewritten after each network.
      networks: the networks to train.
      steps: number of training steps.
    """

    data: Path
    output: Path
    networks: tuple[str, ...] = ("unet", "v1", "v2", "v3", "v3plus", "mask_rcnn")
    steps: int = 200


@dataclass(frozen=True)
class Case:
    """How a network is compared.

    Attributes:
      config: the network's configuration, in float32.
      batch: images in a batch.
      side: side of the images.
      optimizer: the optimiser.
      data: the data set's folder.
    """

    config: Any
    batch: int
    side: int
    optimizer: OptimizerConfig
    data: str = "camvid"


def sgd(learning_rate: float) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=learning_rate, weight_decay=1e-4, clip_norm=5.0)


CASES = {
    "unet": Case(
        UNetConfig(features=8, depth=3, padding="SAME"), 2, 96, sgd(0.05), data="isbi2012"
    ),
    "v1": Case(DeepLabV1Config(width_multiplier=1 / 8, head_features=64), 2, 97, sgd(0.005)),
    "v2": Case(DeepLabV2Config(backbone="vgg16", width_multiplier=1 / 8), 2, 97, sgd(0.005)),
    "v3": Case(
        DeepLabV3Config(
            backbone="resnet18",
            multi_grid=None,
            width_multiplier=1 / 4,
            aspp_features=32,
            batch_norm=BATCH_NORM,
        ),
        *(4, 97, sgd(0.005)),
    ),
    "v3plus": Case(
        DeepLabV3PlusConfig(
            backbone="mobilenet_v2",
            width_multiplier=1 / 4,
            aspp_features=32,
            decoder_features=32,
            low_level_features=8,
            batch_norm=BATCH_NORM,
        ),
        *(4, 97, sgd(0.005)),
    ),
    "mask_rcnn": Case(
        MaskRCNNConfig(
            backbone="resnet18",
            norm="batch",
            width_multiplier=1 / 4,
            fpn_features=32,
            fc_features=64,
            head_features=32,
            mask_convolutions=2,
            anchor_sizes=(8.0, 16.0, 32.0, 64.0, 128.0),
            proposals=ProposalConfig(pre_nms=200, post_nms=100),
            detections=DetectionConfig(max_detections=30),
        ),
        *(2, 128, sgd(0.005)),
        data="dsb2018",
    ),
}


def main(options: MixedPrecisionOptions) -> None:
    results = {"command": sys.argv, "environment": environment() | {"processor": processor()}}
    results |= {"steps": options.steps, "window": WINDOW, "perturbation": PERTURBATION}
    results["networks"] = {}
    for name in options.networks:
        record = compare(CASES[name], options.data, options.steps, description=name)
        results["networks"][name] = record
        options.output.write_text(json.dumps(results, indent=1) + "\n")
        print(line_of(name, record), flush=True)


def compare(case: Case, data: Path, steps: int, *, description: str = "") -> dict:
    """Trains in float32, in bfloat16 and perturbed, and compares the last two with the first."""
    task = task_of(case, bfloat16=False)
    batches = [pack(case, examples) for examples in training_examples(case, data, steps)]
    held_out = pack(case, held_out_examples(case, data))
    schedule = learning_rate_schedule(case.optimizer, num_steps=steps, batch_size=1)
    optimizer = make_optimizer(case.optimizer, schedule)
    start = create_state(task, optimizer, seed=0, batch=batches[0], ema=False)
    perturbed = start.starting_from(perturb(start.variables))
    half = task_of(case, bfloat16=True)
    full_step, half_step = (
        jax.jit(make_train_step(run_task, optimizer, schedule, seed=0)) for run_task in (task, half)
    )
    runs, predictions = {}, {}
    with tqdm(total=3 * steps, desc=description, mininterval=5) as bar:
        for run, run_task, step, state in (
            ("float32", task, full_step, start),
            ("bfloat16", half, half_step, start),
            ("control", task, full_step, perturbed),
        ):
            losses = []
            for batch in batches:
                state, metrics = step(state, batch)
                losses.append(float(metrics["loss"]))
                bar.update()
            runs[run] = losses
            predictions[run] = predict(run_task, state.variables, held_out)
            if run == "float32":
                predictions["same parameters"] = predict(half, state.variables, held_out)
    reference = predictions["float32"]
    return {
        "batch": case.batch,
        "side": case.side,
        "losses": runs,
        "loss_difference": {
            run: largest_difference(runs["float32"], runs[run]) for run in ("bfloat16", "control")
        },
        "equal_pixels": {
            run: float(np.mean(predictions[run] == reference))
            for run in ("same parameters", "bfloat16", "control")
        },
        # How much equality says: all equal pixels could be of one class.
        "commonest_class": float(np.bincount(reference.ravel()).max() / reference.size),
    }


def task_of(case: Case, *, bfloat16: bool):
    config = type(case.config)(**(vars(case.config) | {"bfloat16": bfloat16}))
    if case.data != "dsb2018":
        classes = ("membrane", "cell") if case.data == "isbi2012" else CAMVID
        channels = 1 if case.data == "isbi2012" else 3
        model = config.model(len(classes))
        return SemanticTask(model, classes, channels, WholeImage(), preprocess=NORMALIZE)
    return InstanceTask(
        config.model(1),
        ("background", "nucleus"),
        channels=3,
        buckets=((case.side, case.side),),
        preprocess=NORMALIZE,
        views=(),
        make_evaluator=partial(CocoEvaluator, ("background", "nucleus")),
        proposals=ProposalConfig(pre_nms=200, post_nms=100),
        anchor_sampling=AnchorSampling(size=64),
        region_sampling=RegionSampling(size=64),
    )


def training_examples(case: Case, data: Path, steps: int) -> Iterator[list[dict]]:
    """Yields the examples of each batch: crops at random places of random images."""
    images, rng = read_examples(case, data)[HELD_OUT:], np.random.default_rng(0)
    for _ in range(steps):
        chosen = rng.choice(len(images), case.batch, replace=False)
        yield [crop(images[i], case.side, rng) for i in chosen]


def held_out_examples(case: Case, data: Path) -> list[dict]:
    rng = np.random.default_rng(1)
    return [crop(example, case.side, rng) for example in read_examples(case, data)[:HELD_OUT]]


def read_examples(case: Case, data: Path) -> list[dict]:
    """Reads up to 40 images with their maps of labels or instances."""
    folder = data / case.data
    if case.data == "isbi2012":
        images = read_images(folder / "train-volume.tif")
        labels = read_images(folder / "train-labels.tif")
        return [
            {"image": image, "labels": (label[..., 0] > 127).astype(np.uint8)}
            for image, label in zip(images, labels, strict=True)
        ]
    names = ("train", "trainannot") if case.data == "camvid" else ("images", "labels")
    images, labels = (sorted((folder / name).iterdir())[::7][:40] for name in names)
    key = "labels" if case.data == "camvid" else "instances"
    found = []
    for image, label in zip(images, labels, strict=True):
        image, label = read_image(image), read_image(label)[..., 0]
        if key == "labels":  # half the size, so that a crop shows more than one class
            image, label = image[::2, ::2], label[::2, ::2]
            label = np.where(label < len(CAMVID), label, 255).astype(np.uint8)
        else:
            image = np.broadcast_to(image, (*image.shape[:2], 3))
            label = label.astype(np.int32)
        found.append({"image": image, key: label})
    return found


def crop(example: dict, side: int, rng: np.random.Generator) -> dict:
    height, width = example["image"].shape[:2]
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    return {name: x[top : top + side, left : left + side] for name, x in example.items()}


def pack(case: Case, examples: list[dict]) -> dict:
    """Returns a batch of examples."""
    if case.data == "dsb2018":
        transform = PackObjects(
            ((case.side, case.side),), max_objects=OBJECTS, normalize=NORMALIZE, mask_size=28
        )
        rng = np.random.default_rng(0)
        packed = [transform(InstancesToObjects()(x, None), rng) for x in examples]
        packed = [x | {"index": np.int32(i)} for i, x in enumerate(packed)]
        names = [name for name in (*BATCH_DTYPES, "index") if name in packed[0]]
    else:
        packed, names = [NORMALIZE(x, None) for x in examples], ("image", "labels")
    return {
        name: np.stack([x[name] for x in packed]).astype(BATCH_DTYPES.get(name, np.int32))
        for name in names
    }


def perturb(variables: dict) -> dict:
    """Multiplies each parameter by 1 + 0.001 · a standard normal number."""
    rng = np.random.default_rng(2)

    def multiply(x):
        return x * jnp.asarray(1 + PERTURBATION * rng.standard_normal(x.shape), x.dtype)

    return variables | {"params": jax.tree.map(multiply, variables["params"])}


def predict(task, variables: dict, batch: dict) -> np.ndarray:
    """Returns the class of each pixel; of detections, the one with the highest score wins."""
    outputs = jax.tree.map(np.asarray, jax.jit(task.predict)(variables, batch))
    if "probabilities" in outputs:
        return outputs["probabilities"].argmax(axis=-1)
    size = batch["image"].shape[1:3]
    merged = np.zeros(batch["image"].shape[:3], np.int64)
    for image, merge in enumerate(merged):
        for place in np.flatnonzero(outputs["valid"][image])[::-1]:  # the best is the last
            mask, box = outputs["masks"][image, place], outputs["boxes"][image, place]
            covered = paste(mask, box, size, rule="detectron2") >= 0.5
            merge[covered] = outputs["classes"][image, place]
    return merged


def largest_difference(reference: list[float], losses: list[float]) -> float:
    """Returns the largest relative difference between the means over windows of 20 steps."""
    count = max(len(reference) // WINDOW, 1)
    means, others = (
        [np.mean(part) for part in np.array_split(np.asarray(x), count)]
        for x in (reference, losses)
    )
    difference = np.max(np.abs(np.divide(others, means) - 1))
    return float(difference) if math.isfinite(difference) else math.inf


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((x.split(":")[1].strip() for x in lines if "model name" in x), "unknown")


def line_of(name: str, record: dict) -> str:
    loss, equal = record["loss_difference"], record["equal_pixels"]
    return (
        f"{name}: loss differs by {loss['bfloat16']:.2%} (control {loss['control']:.2%}); equal "
        f"pixels {equal['bfloat16']:.2%} (control {equal['control']:.2%}, same parameters "
        f"{equal['same parameters']:.2%}; the commonest class has {record['commonest_class']:.0%})"
    )


if __name__ == "__main__":
    main(tyro.cli(MixedPrecisionOptions, description=__doc__))
