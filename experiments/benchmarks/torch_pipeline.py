"""PyTorch's side of the input pipeline benchmark: a DataLoader with torchvision.transforms.v2.

OpenCV decodes the files if the interpreter has it, otherwise Pillow, as in torchvision. The
transforms work on uint8 tensors, for which v2 is fastest.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timed_batches import TimedBatches
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

try:
    import cv2
except ImportError:
    cv2 = None

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = {tv_tensors.Image: [round(255 * mean) for mean in MEAN], tv_tensors.Mask: 255}


class Files(Dataset):
    """Photographs of a folder laid out as VOC, as (image, labels) or (image, target)."""

    def __init__(self, folder: Path, *, objects: bool, transforms):
        self.photographs = sorted((folder / "JPEGImages").glob("*.jpg"))
        self.maps = folder / ("SegmentationObject" if objects else "SegmentationClass")
        self.objects, self.transforms = objects, transforms

    def __len__(self):
        return len(self.photographs)

    def __getitem__(self, index):
        path = self.photographs[index]
        image = tv_tensors.Image(torch.from_numpy(decode(path)).permute(2, 0, 1))
        stored = torch.from_numpy(np.array(Image.open(self.maps / f"{path.stem}.png")))
        if not self.objects:
            return self.transforms(image, tv_tensors.Mask(stored[None]))
        ids = torch.bincount(stored.flatten()).nonzero()
        masks = (stored == ids[ids > 0][:, None, None]).to(torch.uint8)
        boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=stored.shape),
            "labels": torch.ones(len(masks), dtype=torch.int64),
            "masks": tv_tensors.Mask(masks),
        }
        return self.transforms(image, target)


def decode(path: Path) -> np.ndarray:
    """Reads an RGB image, uint8 [height, width, 3]."""
    if cv2 is not None:
        return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return np.array(Image.open(path).convert("RGB"))


class RandomScale(torch.nn.Module):
    """Scales by one of 0.5, 0.75, …, 2; v2's own transforms draw from ranges of sizes."""

    def forward(self, image, labels):
        scale = 0.5 + 0.25 * torch.randint(7, ()).item()
        size = [round(scale * side) for side in image.shape[-2:]]
        return v2.functional.resize(image, size), v2.functional.resize(labels, size)


def deeplab(folder: str, batch: int, batches: int, workers: int):
    transforms = v2.Compose(
        [
            RandomScale(),
            v2.RandomCrop(513, pad_if_needed=True, fill=FILL),
            v2.RandomHorizontalFlip(),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return timed(Files(Path(folder), objects=False, transforms=transforms), batch, batches, workers)


def mask_rcnn(folder: str, batch: int, batches: int, workers: int):
    transforms = v2.Compose(
        [
            v2.RandomShortestSize(800, 1333),
            v2.RandomHorizontalFlip(),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    files = Files(Path(folder), objects=True, transforms=transforms)
    return timed(files, batch, batches, workers, collate_fn=pad_together)


def pad_together(examples):
    """Pads the images to a shared multiple of 32, as the detectors do, and keeps the targets."""
    images, targets = zip(*examples, strict=True)
    height, width = (max(-(-i.shape[axis] // 32) * 32 for i in images) for axis in (1, 2))
    padded = torch.zeros(len(images), 3, height, width)
    for place, image in enumerate(images):
        padded[place, :, : image.shape[1], : image.shape[2]] = image
    return padded, targets


def timed(files: Files, batch: int, batches: int, workers: int, **options) -> TimedBatches:
    endless = RandomSampler(files, replacement=True, num_samples=2**40)
    loader = DataLoader(
        files, batch, sampler=endless, num_workers=workers, drop_last=True, **options
    )
    note = f"decoded by {'Pillow' if cv2 is None else 'OpenCV'}"
    return TimedBatches(iter(loader), count=batches, buffered=5, note=note)
