"""torchvision's side of the evaluation benchmark, after its reference scripts."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset
from torch_models import detector, layout, segmenter
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VOID = 11


class Files(Dataset):
    """Images as uint8 tensors, with the path of the label map or the id of the image."""

    def __init__(self, images, targets):
        self.images, self.targets = images, targets

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        target = self.targets[index]
        if isinstance(target, Path):
            target = decode_image(target, ImageReadMode.UNCHANGED)[0]
        return decode_image(self.images[index], ImageReadMode.RGB), target


def loader(images, targets):
    """Reads ahead in one worker process, one example at a time."""
    return DataLoader(Files(images, targets), batch_size=None, num_workers=1)


class Evaluation:
    def __init__(self, score):
        self.score, self.note = score, ""

    @torch.inference_mode()
    def __call__(self):
        self.note = self.score()


def deeplabv3(weights: str, folder: str, count: int, channels_last: bool = False):
    model, classes, _ = segmenter("deeplabv3")
    model.load_state_dict(load_file(weights))
    model.aux_classifier = None
    memory = layout(channels_last)
    model = model.eval().to(memory_format=memory)
    images = sorted((Path(folder) / "test").glob("*.jpg"))[:count]
    labels = [Path(folder) / "testannot" / f"{path.stem}.png" for path in images]
    transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def score():
        matrix = torch.zeros(classes * classes, dtype=torch.int64)
        for image, truth in loader(images, labels):
            logits = model(transform(image)[None].to(memory_format=memory))["out"]
            found = logits.argmax(1)[0]
            known = truth != VOID
            pairs = truth[known].long() * classes + found[known]
            matrix += torch.bincount(pairs, minlength=classes * classes)
        square = matrix.reshape(classes, classes).double()
        union = square.sum(0) + square.sum(1) - square.diag()
        iou = square.diag() / union
        return f"mean_iou {iou.nanmean():.3f}"

    return Evaluation(score)


def mask_rcnn(weights: str, folder: str, count: int, channels_last: bool = False):
    from pycocotools import mask as run_lengths
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    model = detector()
    model.load_state_dict(load_file(weights))
    model = model.eval().to(memory_format=layout(channels_last))
    annotations = Path(folder) / "annotations" / "instances_val2017.json"
    listed = json.loads(annotations.read_text())["images"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
    listed = sorted(listed, key=lambda image: image["id"])[:count]
    images = [Path(folder) / "val2017" / image["file_name"] for image in listed]
    ids = [image["id"] for image in listed]

    def score():
        results = []
        for image, image_id in loader(images, ids):
            (found,) = model([image / 255])
            masks = (found["masks"][:, 0] >= 0.5).numpy()
            for box, label, confidence, mask in zip(
                found["boxes"].tolist(),
                found["labels"].tolist(),
                found["scores"].tolist(),
                masks,
                strict=True,
            ):
                results.append(
                    {
                        "image_id": image_id,
                        "category_id": label,
                        "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
                        "segmentation": run_lengths.encode(np.asfortranarray(mask)),
                        "score": confidence,
                    }
                )
        with contextlib.redirect_stdout(io.StringIO()):
            loaded = truth.loadRes(results)
            for kind in ("bbox", "segm"):
                scored = COCOeval(truth, loaded, kind)
                scored.params.imgIds = ids
                scored.evaluate()
                scored.accumulate()
                scored.summarize()
        return f"mask_AP {scored.stats[0]:.3f}"

    return Evaluation(score)
