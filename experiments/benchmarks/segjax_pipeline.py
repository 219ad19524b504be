"""segjax's side of the input pipeline benchmark."""

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


def deeplab(folder: str, prepared: bool, batch: int, batches: int, workers: int):
    """Makes crops of 513² as `experiments/deeplab/v3_voc2012.py` does.

    Args:
      prepared: whether to read the data set that `segjax data prepare voc2012` made of the files,
        decoded by OpenCV as in an experiment, or the files themselves, by Pillow.
    """
    from segjax.pretrained.preprocess import IMAGENET
    from segjax.recipes.deeplab import DeepLabAugmentConfig, training_transforms

    if prepared:
        source = open_dataset("voc2012", "train", data_dir=Path(folder) / "prepared")
    else:
        source = Files(Path(folder), objects=False)
    transforms = training_transforms(DeepLabAugmentConfig(), IMAGENET)
    return timed(source, transforms, batch, batches, workers)


def mask_rcnn(folder: str, batch: int, batches: int, workers: int):
    """Makes images of short side 800 with boxes and masks, as `segjax.recipes.mask_rcnn` does."""
    from segjax.pretrained.preprocess import IMAGENET
    from segjax.recipes.mask_rcnn import InputConfig

    settings, source = InputConfig(), Files(Path(folder), objects=True)
    transforms = (
        ResizeShortSide((800,), 1333),
        RandomFlip(),
        PackObjects(settings.buckets, max_objects=settings.max_objects, normalize=IMAGENET),
    )
    sizes = [read_image(path).shape[:2] for path in source.photographs]
    return timed(source, transforms, batch, batches, workers, groups=orientation_groups(sizes))


def timed(source, transforms, batch, batches, workers, **options) -> TimedBatches:
    loader = training_batches(
        source, transforms, batch_size=batch, seed=0, num_workers=workers, **options
    )
    return TimedBatches(loader, count=batches, buffered=5)
