"""A user's own TFDS builder: opened by the names of two features, and trained on."""

import dataclasses
import pickle
from functools import partial

import numpy as np
import pytest
import tensorflow_datasets as tfds

from segjax.data.sources.splits import Splits
from segjax.data.sources.tfds_builders import from_tfds
from segjax.recipes.unet import (
    UNetAugmentConfig,
    UNetConfig,
    UNetExperimentConfig,
    unet_experiment,
)
from segjax.training.configuration import TrainConfig
from segjax.training.loop import train
from segjax.training.optimizer import OptimizerConfig
from tests.data import plain_builder

CLASSES = ("square", "rest")
IDS = {1: 0, 2: 1}


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    builder = plain_builder.PlainSquares(data_dir=tmp_path_factory.mktemp("data"))
    builder.download_and_prepare(file_format="array_record")
    return builder


def examples_of(source):
    """The examples sorted by their pixels, because TFDS shuffles while preparing."""
    return sorted((source[i] for i in range(len(source))), key=lambda e: e["image"].tobytes())


def test_two_named_features_make_the_examples_of_a_source(builder):
    by_mask = from_tfds(
        builder,
        "train",
        image="photo",
        labels="segmentation_mask",
        class_names=CLASSES,
        class_ids=IDS,
    )
    by_name = from_tfds(builder, "train", image="photo", labels="names")
    assert by_mask.class_names == by_name.class_names == CLASSES
    assert len({by_mask[i]["id"] for i in range(6)}) == len(by_mask) == 6
    drawn = sorted(map(plain_builder.square, range(6)), key=lambda pair: pair[0].tobytes())
    for source in (by_mask, by_name, pickle.loads(pickle.dumps(by_mask))):
        for example, (photo, mask) in zip(examples_of(source), drawn, strict=True):
            np.testing.assert_array_equal(example["image"], photo)
            np.testing.assert_array_equal(example["labels"], mask - 1)
            assert example["labels"].dtype == np.uint8


def test_the_files_are_enough_where_the_builders_code_is_not_there(builder):
    files = tfds.builder_from_directory(builder.data_dir)
    source = from_tfds(files, "val[1:]", image="photo", labels="names")
    assert (len(source), source.class_names) == (2, CLASSES)
    assert source[0]["labels"].shape == plain_builder.SIZE
    with pytest.raises(IndexError, match="example 2 of 2 in plain_squares"):
        source[2]


def test_what_names_no_image_and_labels_is_refused_by_name(builder):
    for named, message in {
        ("image", "names"): "no feature 'image'; it has photo, segmentation_mask, names, species",
        ("photo", "species"): r"'species' holds no integers \[H, W\]",
        ("photo", "photo"): r"'photo' holds no integers \[H, W\]",
        ("species", "names"): r"'species' holds no images \[H, W, C\]",
        ("photo", "segmentation_mask"): "'segmentation_mask' names no classes; give class_names",
    }.items():
        with pytest.raises(ValueError, match=message):
            from_tfds(builder, "train", image=named[0], labels=named[1])
    with pytest.raises(ValueError, match="has no split 'test'; it has train, val"):
        from_tfds(builder, "test", image="photo", labels="names")


def test_a_stored_value_that_is_no_class_is_an_error_that_says_where(builder):
    source = from_tfds(
        builder, "val", image="photo", labels="segmentation_mask", class_names=CLASSES
    )
    with pytest.raises(ValueError, match="'segmentation_mask' of example 1: value 2; expected"):
        source[1]


def test_a_builder_that_is_not_prepared_says_how_to(tmp_path):
    builder = plain_builder.PlainSquares(data_dir=tmp_path)
    with pytest.raises(ValueError, match=r'download_and_prepare\(file_format="array_record"\)'):
        from_tfds(builder, "train", image="photo", labels="names")


@dataclasses.dataclass(frozen=True)
class Config(UNetExperimentConfig):
    train: TrainConfig = TrainConfig(
        num_steps=60, batch_size=4, eval_every=60, checkpoint_every=60, log_every=10
    )
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=0.3, reference_batch_size=4)
    network: UNetConfig = UNetConfig(
        features=4, depth=1, padding="SAME", norm="batch", dropout_rate=0.0, tile=32
    )
    augment: UNetAugmentConfig = UNetAugmentConfig(elastic_sigma=0)


def build(config, builder):
    open_split = partial(from_tfds, builder, image="photo", labels="names")
    splits = Splits(
        classes=CLASSES,
        channels=3,
        train=partial(open_split, "train"),
        evaluation={"val": partial(open_split, "val")},
    )
    return unet_experiment(config, splits, best_metric="mean_iou")


def test_a_u_net_learns_from_a_builder_of_ones_own(builder, tmp_path):
    config = Config(workdir=tmp_path)
    scores = train(build(config, builder), config, experiment_file=__file__)
    assert scores["val"].metrics["mean_iou"] > 0.9
