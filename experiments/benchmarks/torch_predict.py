"""Predicts photographs with torchvision's DeepLab v3 or Mask R-CNN, as a script of its users does.

    python torch_predict.py {deeplabv3,mask_rcnn} WEIGHTS OUTPUT PHOTOGRAPH ... [--channels-last]

It writes what `segjax predict` writes: label maps and overlays, or detections.json in COCO's result
format and overlays. Images are resized as torchvision's reference evaluation does, one at a time.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_image, write_png
from torchvision.transforms import v2
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=("deeplabv3", "mask_rcnn"))
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("photographs", type=Path, nargs="+")
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    (options.output / "labels").mkdir(parents=True)
    (options.output / "overlays").mkdir()
    predict = {"deeplabv3": label_pixels, "mask_rcnn": find_objects}[options.network]
    with torch.inference_mode():
        predict(options)


def loaded(model, options):
    """Returns the model with its weights, ready to predict, and the memory format of images."""
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    model.load_state_dict(load_file(options.weights))
    return model.eval().to(memory_format=layout), layout


def label_pixels(options):
    from torchvision.models.segmentation import deeplabv3_resnet50

    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    model, layout = loaded(model, options)
    model.aux_classifier = None
    transform = v2.Compose(
        [v2.Resize(520), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    for path in options.photographs:
        image = decode_image(path, ImageReadMode.RGB)
        logits = model(transform(image)[None].to(memory_format=layout))["out"]
        logits = functional.interpolate(logits, image.shape[-2:], mode="bilinear")
        labels = logits.argmax(1)
        write_png(labels.to(torch.uint8), str(options.output / "labels" / f"{path.stem}.png"))
        masks = labels == torch.arange(1, 21)[:, None, None]
        picture = draw_segmentation_masks(image, masks, alpha=0.5)
        write_png(picture, str(options.output / "overlays" / f"{path.stem}.png"))


def find_objects(options):
    import numpy as np
    from pycocotools import mask as run_lengths
    from torch_models import detector

    model, _ = loaded(detector(), options)
    results = []
    for number, path in enumerate(options.photographs, 1):
        image = decode_image(path, ImageReadMode.RGB)
        (found,) = model([image / 255])
        masks = found["masks"][:, 0] >= 0.5
        for box, label, score, mask in zip(
            found["boxes"].tolist(),
            found["labels"].tolist(),
            found["scores"].tolist(),
            masks.numpy(),
            strict=True,
        ):
            encoded = run_lengths.encode(np.asfortranarray(mask))
            encoded["counts"] = encoded["counts"].decode()
            box = [*box[:2], box[2] - box[0], box[3] - box[1]]
            results.append(
                {
                    "image_id": number,
                    "category_id": label,
                    "bbox": box,
                    "segmentation": encoded,
                    "score": score,
                }
            )
        shown = found["scores"] >= 0.5
        picture = draw_segmentation_masks(image, masks[shown])
        picture = draw_bounding_boxes(picture, found["boxes"][shown])
        write_png(picture, str(options.output / "overlays" / f"{path.stem}.png"))
    (options.output / "detections.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
