"""Splits of any size are built without TensorFlow and without holding them in memory."""

import io
import sys
import tracemalloc
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import ExifTags, Image
from tensorflow_datasets.core import shuffle

from segjax.data import builder as builder_module
from segjax.data.builder import encode_image, image_feature, shard_bounds
from segjax.data.images import read_image
from segjax.data.loading import ordered_map
from segjax.data.prepare import prepare
from segjax.data.sources.catalog import make_builder
from segjax.data.sources.files import ExampleFiles
from segjax.data.sources.semantic import open_dataset
from tests.data import official_layouts


class TensorFlowThatFails:
    """Finds a TensorFlow, installed or not, and raises an error when it is imported."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return ModuleSpec(name, cls) if name == "tensorflow" else None

    @staticmethod
    def create_module(spec):
        return None  # the usual one

    @staticmethod
    def exec_module(module):
        raise AssertionError("TensorFlow was imported")


@pytest.fixture
def no_tensorflow(monkeypatch):
    """Makes every import of TensorFlow an error, and lets TFDS spill to disk after 1 kB."""
    monkeypatch.setattr(sys, "meta_path", [TensorFlowThatFails, *sys.meta_path])
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)


def noise(folder, count, *, size=100):
    """Writes files of `size` bytes as the images of examples."""
    folder.mkdir()
    for number in range(count):
        content = np.random.default_rng(number).bytes(size)
        (folder / f"{number}.png").write_bytes(content)
    return [ExampleFiles(str(n), {"image": folder / f"{n}.png"}) for n in range(count)]


def read_all(name, split, data_dir):
    return list(open_dataset(name, split, data_dir=data_dir))


def assert_same_examples(examples, expected):
    assert [example["id"] for example in examples] == [example["id"] for example in expected]
    for example, other in zip(examples, expected, strict=True):
        np.testing.assert_array_equal(example["image"], other["image"])
        np.testing.assert_array_equal(example["labels"], other["labels"])


def test_a_split_over_the_limit_of_tfds_needs_no_tensorflow_and_reads_the_same(
    tmp_path, monkeypatch, no_tensorflow
):
    expected = official_layouts.write_camvid(tmp_path / "source")
    monkeypatch.setattr(builder_module, "SHARD_BYTES", 1500)
    folder = prepare("camvid", source=tmp_path / "source", data_dir=tmp_path)
    assert sum(path.stat().st_size for path in folder.glob("camvid-train*")) > 1000
    assert len(list(folder.glob("camvid-train*"))) == 4
    for split, examples in expected.items():
        assert_same_examples(read_all("camvid", split, tmp_path), examples)
    assert_same_examples(read_all("camvid", "train[1:3]", tmp_path), expected["train"][1:3])


def test_the_limit_of_tfds_would_have_asked_for_tensorflow(tmp_path, no_tensorflow):
    shuffler = shuffle.Shuffler(tmp_path, hash_salt="", disable_shuffling=True)
    with pytest.raises(AssertionError, match="TensorFlow was imported"):
        shuffler.add(0, bytes(2000))


def test_building_twice_writes_the_same_bytes(tmp_path, monkeypatch):
    official_layouts.write_voc2012(tmp_path / "source")
    monkeypatch.setattr(builder_module, "SHARD_BYTES", 4000)
    once, again = (
        prepare("voc2012", source=tmp_path / "source", data_dir=tmp_path / name) for name in "ab"
    )
    names = sorted(path.name for path in once.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    assert sum("train_aug" in name for name in names) > 1
    for name in names:
        assert (once / name).read_bytes() == (again / name).read_bytes(), name


def peak_of_building(tmp_path, name):
    """Peak memory in bytes while building a set of 3 × 1 MB."""
    builder = make_builder("camvid", data_dir=tmp_path / name)
    config = tfds.download.DownloadConfig(manual_dir=tmp_path / "source")
    tracemalloc.start()
    try:
        builder.download_and_prepare(download_config=config, file_format="array_record")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_building_holds_one_shard_in_memory_and_not_the_split(tmp_path, monkeypatch):
    monkeypatch.setattr(ordered_map.os, "cpu_count", lambda: 1)
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number in range(16):
            images, labels = tmp_path / "source" / split, tmp_path / "source" / f"{split}annot"
            images.mkdir(parents=True, exist_ok=True)
            labels.mkdir(exist_ok=True)
            image = rng.integers(0, 256, (160, 128, 3), np.uint8)
            Image.fromarray(image).save(images / f"{number:02d}.png")
            Image.fromarray(image[..., 0] % 12).save(labels / f"{number:02d}.png")
    peak_of_building(tmp_path, "first")  # TFDS imports and caches on first use
    in_one = peak_of_building(tmp_path, "one shard")
    monkeypatch.setattr(builder_module, "SHARD_BYTES", 100_000)
    in_many = peak_of_building(tmp_path, "many shards")
    assert in_one > 1_000_000
    assert in_many < 0.7 * in_one


def test_shards_partition_a_split_in_order_by_the_size_of_its_files(tmp_path, monkeypatch):
    files = noise(tmp_path / "files", 10)
    assert shard_bounds(files) == [(0, 10)]
    monkeypatch.setattr(builder_module, "SHARD_BYTES", 400)
    assert shard_bounds(files) == [(0, 3), (3, 6), (6, 10)]
    monkeypatch.setattr(builder_module, "SHARD_BYTES", 1)
    assert shard_bounds(files) == [(index, index + 1) for index in range(10)]


def test_a_number_of_shards_can_be_asked_for(tmp_path):
    files = noise(tmp_path / "files", 10)
    assert shard_bounds(files, 4) == [(0, 2), (2, 5), (5, 7), (7, 10)]
    with pytest.raises(ValueError, match="11 shards need as many examples, and a split has 10"):
        shard_bounds(files, 11)


def test_a_file_that_examples_share_counts_once(tmp_path, monkeypatch):
    [stack] = noise(tmp_path / "files", 1)
    monkeypatch.setattr(builder_module, "SHARD_BYTES", 200)
    assert shard_bounds([stack] * 30) == [(0, 30)]
    assert shard_bounds([ExampleFiles("generated", {})] * 3) == [(0, 3)]


def stored_bytes(name, split, data_dir):
    builder = make_builder(name, data_dir=data_dir)
    undecoded = {"image": tfds.decode.SkipDecoding()}
    return [record["image"] for record in builder.as_data_source(split, decoders=undecoded)]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_images_are_stored_as_the_files_that_were_published(suffix, tmp_path):
    official_layouts.write_camvid(tmp_path / "source", suffix=suffix)
    prepare("camvid", source=tmp_path / "source", data_dir=tmp_path)
    published = [path.read_bytes() for path in sorted((tmp_path / "source/val").iterdir())]
    assert stored_bytes("camvid", "val", tmp_path) == published


def saved(path, *, kind):
    """Writes an image of some kind, and returns it as `read_image` reads it."""
    colour = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    image, options, expected = Image.fromarray(colour), {}, colour
    if kind == "turned":
        exif = image.getexif()
        exif[ExifTags.Base.Orientation] = 6
        options, expected = {"exif": exif}, np.rot90(colour, -1)
    elif kind == "alpha":
        image = Image.fromarray(np.dstack([colour, colour[..., 0]]))
    elif kind == "cmyk":
        image = image.convert("CMYK")
    if path.suffix == ".webp":
        options = {"lossless": True}
    image.save(path, **options)
    if kind == "cmyk":  # JPEG loses
        expected = read_image(path)
    return np.ascontiguousarray(expected)


@pytest.mark.parametrize(
    ("name", "kind", "kept"),
    [
        ("plain.png", "plain", True),
        ("PLAIN.PNG", "plain", True),
        ("turned.png", "turned", False),
        ("alpha.png", "alpha", False),
        ("cmyk.jpg", "cmyk", False),
        ("plain.webp", "plain", False),
        ("plain.tif", "plain", False),
        ("plain.bmp", "plain", False),
    ],
)
def test_only_files_that_tfds_decodes_to_the_same_image_are_kept(name, kind, kept, tmp_path):
    image = saved(tmp_path / name, kind=kind)
    stored = encode_image(image, tmp_path / name).getvalue()
    assert (stored == (tmp_path / name).read_bytes()) is kept
    decoded = image_feature(channels=3).decode_example_np(stored)
    np.testing.assert_array_equal(decoded, image)


def test_a_16_bit_image_keeps_its_file(tmp_path):
    image = np.arange(200, dtype=np.uint16).reshape(10, 20, 1) * 300
    Image.fromarray(image[..., 0]).save(tmp_path / "image.png")
    stored = encode_image(image, tmp_path / "image.png")
    assert isinstance(stored, io.BytesIO)
    assert stored.getvalue() == (tmp_path / "image.png").read_bytes()


def test_an_image_without_a_file_is_stored_as_png():
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    stored = encode_image(image, None).getvalue()
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(stored))), image)
