"""segjax's side of the input pipeline benchmark."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from timed_batches import TimedBatches

from segjax.data.augmentation.instance import RandomFlip, ResizeShortSide
from segjax.data.images import read_image
from segjax.data.instance_masks import InstancesToObjects
from segjax.data.label_maps import read_stored_values
from segjax.data.loading.aspect_ratio import orientation_groups
from segjax.data.loading.loader import training_batches
from segjax.data.loading.pack_objects import PackObjects
from segjax.data.sources.semantic import open_dataset


@dataclass(frozen=True)
class Files:
    """Photographs with class or object maps, read by Pillow from a folder laid out as VOC.

    Attributes:
      folder: a folder with JPEGImages and SegmentationClass or SegmentationObject.
      objects: whether examples have the objects of SegmentationObject or labels.
    """

    folder: Path
    objects: bool

    @cached_property
    def photographs(self) -> list[Path]:
        return sorted((self.folder / "JPEGImages").glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int) -> dict:
        path = self.photographs[index]
        kind = "SegmentationObject" if self.objects else "SegmentationClass"
        stored = read_stored_values(self.folder / kind / f"{path.stem}.png")
        example = {"id": path.stem, "image": read_image(path)}
        if not self.objects:
            return {**example, "labels": stored}
        return InstancesToObjects()({**example, "instances": stored.astype(np.int32)}, None)


@dataclass(frozen=True)
class Cells:
    """The photographs of a folder in grey, with its objects as cells; see `Files`."""

    files: Files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        path = self.files.photographs[index]
        stored = read_stored_values(self.files.folder / "SegmentationObject" / f"{path.stem}.png")
        return {
            "id": path.stem,
            "image": read_image(path)[..., :1],
            "labels": (stored > 0).astype(np.uint8),
            "instances": stored.astype(np.int32),
        }


@dataclass(frozen=True)
class Waiting:
    """Finished examples, each after a wait as long as a core would take to make it."""

    examples: tuple[dict, ...]
    seconds: float

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict:
        time.sleep(self.seconds)
        return self.examples[index]


def unet(folder: str, batch: int, batches: int, workers: int):
    """Makes the U-Net paper's tiles, deformed elastically, with the weight map."""
    return timed(*unet_parts(folder), batch, batches, workers)


def deeplab(folder: str, prepared: bool, batch: int, batches: int, workers: int):
    """Makes crops of 513² as `experiments/deeplab/v3_voc2012.py` does.

    Args:
      prepared: whether to read the data set that `segjax data prepare voc2012` made of the files,
        decoded by OpenCV as in an experiment, or the files themselves, by Pillow.
    """
    return timed(*deeplab_parts(folder, prepared), batch, batches, workers)


def mask_rcnn(folder: str, batch: int, batches: int, workers: int):
    """Makes images of short side 800 with boxes and masks, as `segjax.recipes.mask_rcnn` does."""
    source, transforms = mask_rcnn_parts(folder)
    sizes = [read_image(path).shape[:2] for path in source.photographs]
    groups = orientation_groups(np.array(sizes))
    return timed(source, transforms, batch, batches, workers, groups=groups)


def simulated(family: str, folder: str, batch: int, batches: int, workers: int, seconds: float):
    """Passes finished examples of a family on, from workers that each wait instead of computing.

    What is left is the work of the main process: taking examples out of shared memory, and stacking
    them. So it shows how many workers one loader can make use of, on a machine with fewer cores.

    Args:
      seconds: the time that a core takes for an example; a worker has one thread here.
    """
    parts = {"unet": unet_parts, "deeplab": deeplab_parts, "mask_rcnn": mask_rcnn_parts}
    source, transforms = parts[family](folder)
    examples = []
    for index in range(4):
        example, rng = source[index], np.random.default_rng(index)
        for transform in transforms:
            example = transform(example, rng)
        examples.append(example)
    waiting = Waiting(tuple(examples), seconds)
    # More workers keep more examples ready, which must not count.
    return timed(waiting, (), batch, batches, workers, buffered=5 + 2 * workers, num_threads=1)


def unet_parts(folder: str):
    """The source and the transforms of `unet`."""
    from segjax.recipes.unet import UNetAugmentConfig, UNetConfig, WeightMapConfig
    from segjax.recipes.unet import training_transforms as transforms_of

    steps = transforms_of(UNetConfig(), UNetAugmentConfig(), WeightMapConfig())
    return Cells(Files(Path(folder), objects=True)), steps


def deeplab_parts(folder: str, prepared: bool = True):
    """The source and the transforms of `deeplab`."""
    from segjax.pretrained.preprocess import IMAGENET
    from segjax.recipes.deeplab import DeepLabAugmentConfig, training_transforms

    if prepared:
        source = open_dataset("voc2012", "train", data_dir=Path(folder) / "prepared")
    else:
        source = Files(Path(folder), objects=False)
    return source, training_transforms(DeepLabAugmentConfig(), IMAGENET)


def mask_rcnn_parts(folder: str):
    """The source and the transforms of `mask_rcnn`."""
    from segjax.pretrained.preprocess import IMAGENET
    from segjax.recipes.mask_rcnn import InputConfig

    settings = InputConfig()
    return Files(Path(folder), objects=True), (
        ResizeShortSide((800,), 1333),
        RandomFlip(),
        PackObjects(settings.buckets, max_objects=settings.max_objects, normalize=IMAGENET),
    )


def timed(source, transforms, batch, batches, workers, buffered=5, **options) -> TimedBatches:
    loader = training_batches(
        source, transforms, batch_size=batch, seed=0, num_workers=workers, **options
    )
    return TimedBatches(loader, count=batches, buffered=buffered)
