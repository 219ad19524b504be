"""Trains the networks of three experiments in PyTorch, on the same files and by the same recipes.

    python torch_training.py {dic_hela,camvid,dsb2018} --data DIR --steps N --batch-size B
        --workers W [--channels-last] [--output FILE]

dic_hela is `experiments/unet/dic_hela.py` with a padded U-Net of 32 features, on tiles of 256²;
camvid is the variant v3plus of `experiments/deeplab/camvid.py`; dsb2018 is
`experiments/mask_rcnn/dsb2018.py` with ResNet-18. DIR holds the published files.
"""

import argparse
import hashlib
import math
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, PolynomialLR
from torch.utils.data import DataLoader, Dataset
from torch_models import DEVICE, UNet, layout

POLY = partial(PolynomialLR, power=0.9)
VOID = 11  # the label of CamVid's unlabelled pixels


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("training", choices=TRAININGS)
    for name, kind in (("data", Path), ("steps", int), ("batch-size", int), ("workers", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--output", type=Path, help="file for the trained weights")
    options = parser.parse_args()
    torch.manual_seed(0)
    cv2.setNumThreads(0)  # the worker processes share the cores
    if DEVICE == "cuda":
        torch.set_float32_matmul_precision("high")
    model = TRAININGS[options.training](options)
    if options.output is not None:
        torch.save(model.state_dict(), options.output)


def train(options, model, loss, examples, optimizer, *, warmup, decay, clip=None, collate=None):
    """Trains and returns the model.

    `loss` takes the model and a batch. `optimizer` takes groups of parameters, and `decay` the
    optimiser and the number of steps. The warm-up multiplies that schedule.
    """
    memory = layout(options.channels_last)
    model = model.train().to(DEVICE, memory_format=memory)
    optimizer = optimizer(parameter_groups(model))
    rise = LinearLR(optimizer, 0.001, total_iters=warmup)
    schedule = ChainedScheduler([rise, decay(optimizer, options.steps)])
    workers = {"num_workers": options.workers, "persistent_workers": options.workers > 0}
    settings = {"shuffle": True, "drop_last": True, "pin_memory": DEVICE == "cuda", **workers}
    loader = DataLoader(examples, options.batch_size, collate_fn=collate, **settings)
    batches = islice(chain.from_iterable(repeat(loader)), options.steps)
    for step, batch in enumerate(batches, 1):
        optimizer.zero_grad()
        value = loss(model, *on_device(batch, memory))
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == options.steps:
            print(step, f"{value.item():.4f}", flush=True)
    return model


def parameter_groups(model):
    """Exempts norms, biases and depthwise convolutions from weight decay."""
    groups = {True: [], False: []}
    for parameter in model.parameters():
        groups[parameter.ndim > 1 and parameter.shape[1] > 1].append(parameter)
    return [{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}]


def on_device(batch, memory):
    if isinstance(batch, dict):
        return {name: on_device(value, memory) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [on_device(value, memory) for value in batch]
    memory = memory if batch.ndim == 4 else torch.preserve_format
    return batch.to(DEVICE, non_blocking=True, memory_format=memory)


class Windows(Dataset):
    """Random windows of images and label maps; `cut` makes an example of one, with a generator."""

    def __init__(self, images: list[Path], labels: list[Path], cut):
        self.files, self.cut = list(zip(images, labels, strict=True)), cut

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        image, labels = map(str, self.files[index])
        # Torch seeds each worker in each epoch.
        rng = np.random.default_rng(torch.randint(2**62, ()).item())
        labels = cv2.imread(labels, cv2.IMREAD_UNCHANGED)
        return self.cut(cv2.imread(image, cv2.IMREAD_COLOR_RGB), labels, rng)


def window(
    image, labels, rng, size, *, scale=(1, 1), vertical=False, rotation=0, elastic=0, outside=None
):
    """Cuts a window at random, flipped left and right in half of the cases.

    `vertical` also flips it up and down. `rotation` is the largest angle in degrees, and `elastic`
    the standard deviation of the displacements of 3 × 3 nodes in pixels. `outside` are the values
    beyond the image and beyond the labels; None mirrors both.
    """
    size, zoom = np.array(size), rng.uniform(*scale)
    room = np.round(image.shape[:2] - size / zoom).astype(int)
    corner = rng.integers(np.minimum(room, 0), np.maximum(room, 0), endpoint=True)
    angle = np.deg2rad(rng.uniform(-rotation, rotation))
    flips = np.where(rng.random(2) < (0.5 * vertical, 0.5), -1, 1)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = (turn * flips / zoom).astype(np.float32)
    centre = (corner + (size / zoom - 1) / 2).astype(np.float32)
    offsets = np.indices(size, np.float32) - (size[:, None, None] - 1).astype(np.float32) / 2
    if elastic:
        nodes = torch.from_numpy(rng.normal(0, elastic, (1, 2, 3, 3)).astype(np.float32))
        options = {"mode": "bicubic", "align_corners": True}
        offsets += functional.interpolate(nodes, size.tolist(), **options)[0].numpy()
    rows, columns = np.einsum("ij,jhw->ihw", matrix, offsets) + centre[:, None, None]
    border = cv2.BORDER_REFLECT_101 if outside is None else cv2.BORDER_CONSTANT
    fill, void = outside or (0, 0)
    image = cv2.remap(image, columns, rows, cv2.INTER_LINEAR, None, border, (fill,) * 3)
    return image, cv2.remap(labels, columns, rows, cv2.INTER_NEAREST, None, border, void)


def dic_hela(options):
    truths = sorted((options.data / "01_ST" / "SEG").glob("man_seg*.tif"))
    truths = truths[: round(0.85 * len(truths))]
    frames = [options.data / "01" / path.name.replace("man_seg", "t") for path in truths]
    network = UNet(2, channels=1, features=32)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            # A pixel after an up-convolution, which has a stride, sees one position.
            inputs = layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
            nn.init.normal_(layer.weight, std=math.sqrt(2 / inputs))
            nn.init.zeros_(layer.bias)
    for block in network.down[-2:]:
        block.append(nn.Dropout(0.5))
    examples, rate = Windows(frames, truths, cell_tile), 1e-3 * options.batch_size
    optimizer = partial(torch.optim.SGD, lr=rate, momentum=0.99, fused=True)
    settings = {"warmup": 500, "decay": POLY}
    return train(options, network, weighted_cross_entropy, examples, optimizer, **settings)


def cell_tile(image, cells, rng):
    image = image[..., 0].astype(np.float32)
    image = (image - image.mean()) / image.std()
    changes = {"vertical": True, "rotation": 180, "elastic": 10}
    image, cells = window(image, cells, rng, (256, 256), **changes)
    cells, image = with_gaps(cells, width=4), torch.from_numpy(jittered(image, rng))[None]
    return image, torch.from_numpy(cells > 0).long(), torch.from_numpy(weight_map(cells))


def jittered(image, rng):
    """Varies gamma, contrast and brightness, relative to the range of the grey values."""
    brightness, contrast = rng.uniform(-0.1, 0.1), 1 + rng.uniform(-0.2, 0.2)
    gamma, lowest, extent = 1.2 ** rng.uniform(-1, 1), image.min(), np.ptp(image)
    grey = ((image - lowest) / extent) ** gamma
    mean = grey.mean()
    return ((grey - mean) * contrast + mean + brightness) * extent + lowest


def with_gaps(cells, *, width: int):
    """Draws background between touching cells."""
    around = np.ones((width + 1, width + 1), np.uint8)
    highest = cv2.dilate(cells, around)
    lowest = cv2.erode(np.where(cells == 0, np.iinfo(cells.dtype).max, cells), around)
    return np.where((lowest == cells) & (highest == cells), cells, 0)


def weight_map(cells):
    """Weighs pixels as U-Net's paper does: w_c + 10·exp(−(d1 + d2)² / (2·5²))."""
    nearest, second = np.full((2, *cells.shape), np.inf, np.float32)
    for cell in np.unique(cells[cells > 0]):
        elsewhere = (cells != cell).astype(np.uint8)
        distance = cv2.distanceTransform(elsewhere, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    class_weights = np.array([0.96, 1.04], np.float32)[(cells > 0).astype(int)]
    return class_weights + 10 * np.exp(-((nearest + second) ** 2) / (2 * 5**2))


def weighted_cross_entropy(model, images, labels, weights):
    losses = functional.cross_entropy(model(images)["out"], labels, reduction="none")
    return (weights * losses).mean()


def camvid(options):
    import segmentation_models_pytorch as smp

    images = sorted((options.data / "train").glob("*.jpg"))
    labels = [options.data / "trainannot" / f"{path.stem}.png" for path in images]
    settings = {"encoder_weights": None, "encoder_output_stride": 16, "classes": 11}
    network = smp.DeepLabV3Plus("mobilenet_v2", decoder_atrous_rates=(6, 12, 18), **settings)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum, layer.eps = 0.01, 1e-3
    examples, rate = Windows(images, labels, street_crop), 0.05 * options.batch_size / 8
    optimizer = partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=4e-5, fused=True)
    return train(options, network, cross_entropy, examples, optimizer, warmup=100, decay=POLY)


def street_crop(image, labels, rng):
    changes = {"scale": (0.5, 2), "outside": (127.5, VOID)}
    image, labels = window(image, labels, rng, (257, 321), **changes)
    image = torch.from_numpy(image.transpose(2, 0, 1)) / 127.5 - 1
    return image, torch.from_numpy(labels).long()


def cross_entropy(model, images, labels):
    """Runs the network on sides that are no multiples of 16, which its own `forward` refuses."""
    resize = partial(functional.interpolate, mode="bilinear", align_corners=True)
    features, decoder = model.encoder(images), model.decoder
    low_level = decoder.block1(features[2])
    x = resize(decoder.aspp(features[-1]), low_level.shape[2:])
    logits = model.segmentation_head[0](decoder.block2(torch.cat([x, low_level], dim=1)))
    return functional.cross_entropy(resize(logits, labels.shape[1:]), labels, ignore_index=VOID)


def dsb2018(options):
    from torchvision.models import detection

    images = training_images(options.data / "images")
    settings = {"weights": None, "norm_layer": nn.BatchNorm2d, "trainable_layers": 5}
    sizes, ratios = ((8,), (16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 5
    network = detection.MaskRCNN(
        detection.backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", **settings),
        num_classes=2,
        min_size=256,
        max_size=256,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        rpn_anchor_generator=detection.anchor_utils.AnchorGenerator(sizes, ratios),
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=250,
        box_batch_size_per_image=128,
        box_positive_fraction=0.33,
    )
    labels = [options.data / "labels" / path.name for path in images]
    examples, rate = Windows(images, labels, nuclei_window), 2e-3 * options.batch_size / 4
    optimizer = partial(torch.optim.AdamW, lr=rate, weight_decay=1e-4, fused=True)
    settings = {"warmup": 100, "decay": CosineAnnealingLR, "clip": 5.0, "collate": listed}
    return train(options, network, sum_of_losses, examples, optimizer, **settings)


def training_images(folder: Path) -> list[Path]:
    """Leaves out segjax's test images: a fifth of the grey ones and of the coloured ones."""
    kinds = {}
    for path in folder.glob("*.png"):
        kinds.setdefault(Image.open(path).mode, []).append(path)
    for paths in kinds.values():
        paths.sort(key=lambda path: hashlib.sha256(path.stem.encode()).hexdigest())
        del paths[: len(paths) // 5]
    return sorted(chain.from_iterable(kinds.values()))


def nuclei_window(image, nuclei, rng):
    """Cuts a window and lists its nuclei for torchvision: the largest 160, of 16 pixels or more."""
    from torchvision.ops import masks_to_boxes

    changes = {"scale": (0.8, 1.6), "vertical": True, "outside": (0, 0)}
    image, nuclei = window(image, nuclei, rng, (256, 256), **changes)
    nuclei = torch.from_numpy(nuclei.astype(np.int64))
    areas = torch.bincount(nuclei.flatten())
    areas[0] = 0
    areas, ids = areas.topk(min(160, len(areas)))
    masks = (nuclei == ids[areas >= 16][:, None, None]).to(torch.uint8)
    boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])
    labels = torch.ones(len(masks), dtype=torch.int64)
    image = torch.from_numpy(image.transpose(2, 0, 1)) / 255
    return image, {"boxes": boxes, "labels": labels, "masks": masks}


def listed(examples):
    return tuple(zip(*examples, strict=True))


def sum_of_losses(model, images, targets):
    return sum(model(images, targets).values())


TRAININGS = {"dic_hela": dic_hela, "camvid": camvid, "dsb2018": dsb2018}

if __name__ == "__main__":
    main()
