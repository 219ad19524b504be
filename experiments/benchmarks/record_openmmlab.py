"""Records the outputs of mmsegmentation's and mmdetection's models for tests/pretrained.

    PYTHONPATH=. python experiments/benchmarks/record_openmmlab.py tests/fixtures [NAME ...]

The models are the packages' own, built from the configurations they ship. Made with torch 2.14.1,
mmsegmentation 1.2.2, mmdetection 3.3.0, mmengine 0.10.7 and mmcv-lite 2.1.0, all without their
dependencies' pins. mmcv-lite has no compiled operators: torchvision's NMS takes the place of its
NMS, and RoIAlign is mmcv's own option `use_torchvision`. Format and weights of the records are
those of `record_reference.py`.
"""

import sys
import types
from pathlib import Path

import numpy as np
import torch
import torchvision

from experiments.benchmarks.record_reference import (
    MASK_RCNN_SIZE,
    channels_first,
    channels_last,
    outputs,
    with_reference_weights,
)
from tests.fixtures.reference_weights import reference_boxes, reference_image


class Operators(types.ModuleType):
    """mmcv's compiled operators; all but NMS are missing, and nothing here calls them."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    @staticmethod
    def nms(boxes, scores, iou_threshold, offset):
        assert offset == 0
        return torchvision.ops.nms(boxes, scores, iou_threshold)


def mmseg_deeplabv3_r50_d8():
    return _deeplab("deeplabv3/deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512")


def mmseg_deeplabv3plus_r50_d8_769x769():
    return _deeplab("deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-769x769")


def _deeplab(config):
    """Records the logits of both heads, every second row and column of them."""
    from mmseg.registry import MODELS

    cfg = _configuration("mmseg", f"{config}.py").model
    cfg.pretrained = None
    for part in (cfg.backbone, cfg.decode_head, cfg.auxiliary_head):
        part.norm_cfg.type = "BN"  # on one device, SyncBN's equal
    model = MODELS.build(cfg)

    class Segmentor(torch.nn.Module):
        def forward(self, images):
            maps = model.extract_feat(images)
            meta = [{"img_shape": images.shape[2:]}]
            heads = {"out": model.decode_head, "aux": model.auxiliary_head}
            logits = {k: head.predict(maps, meta, cfg.test_cfg) for k, head in heads.items()}
            return {name: value[:, :, ::2, ::2] for name, value in logits.items()}

        def state_dict(self):
            return model.state_dict()

        def load_state_dict(self, state):
            return model.load_state_dict(state)

        def eval(self):
            model.eval()
            return self

    return outputs(Segmentor(), height=65, width=97)


def mmdet_mask_rcnn_r50_fpn():
    return _mask_rcnn("mask-rcnn_r50_fpn_1x_coco")


def mmdet_mask_rcnn_r50_caffe_fpn():
    """Records a map of the backbone: the later parts are those of the other style."""
    record = _mask_rcnn("mask-rcnn_r50-caffe_fpn_1x_coco")
    return {name: record[name] for name in ("shapes", "normalised", "stage2")}


def _mask_rcnn(config):
    """Records every stage, thinned out; the heads get boxes of many sizes within the image."""
    from mmdet.registry import MODELS
    from mmengine.structures import InstanceData

    cfg = _configuration("mmdet", f"mask_rcnn/{config}.py").model
    cfg.backbone.init_cfg = None
    for part in ("bbox", "mask"):
        cfg.roi_head[f"{part}_roi_extractor"].roi_layer.use_torchvision = True
        cfg.roi_head[f"{part}_head"].num_classes = 5
    model, shapes = with_reference_weights(MODELS.build(cfg))
    height, width = MASK_RCNN_SIZE
    image = 255 * channels_first(reference_image(height, width))
    meta = {"img_shape": MASK_RCNN_SIZE, "ori_shape": MASK_RCNN_SIZE, "scale_factor": (1.0, 1.0)}
    boxes = torch.from_numpy(reference_boxes(32, height=height, width=width))
    rois = torch.cat([torch.zeros(32, 1), boxes], dim=1)
    with torch.no_grad():
        pixels = model.data_preprocessor
        # A file is read as BGR; the configuration says whether the network wants RGB.
        bgr = image.flip(0)
        [normalised] = pixels({"inputs": [bgr]})["inputs"]
        stages = model.backbone(normalised[None])
        pyramid = model.extract_feat(normalised[None])
        rpn = model.rpn_head(pyramid)
        [proposals] = model.rpn_head.predict_by_feat(*rpn, batch_img_metas=[meta], rescale=False)
        heads = model.roi_head
        found = heads._bbox_forward(pyramid, rois)
        masks = heads._mask_forward(pyramid, rois[:6])["mask_preds"]
        [detected] = heads.predict_bbox(
            pyramid, [meta], [InstanceData(bboxes=boxes)], heads.test_cfg
        )
    record = {"shapes": shapes, "normalised": channels_last(normalised[None])[0, ::16, ::16]}
    record["stage2"] = channels_last(stages[1])[..., ::32]
    for level, values in enumerate(pyramid):
        record[f"pyramid_{level}"] = channels_last(values)[..., ::32]
    for name, values in zip(("objectness", "deltas"), rpn, strict=True):
        for level, x in enumerate(values):
            record[f"rpn_{name}_{level}"] = channels_last(x)[:, ::2, ::2]
    record |= {"proposals": proposals.bboxes[:100].numpy()}
    record |= {"box_logits": found["cls_score"].numpy(), "box_deltas": found["bbox_pred"].numpy()}
    record |= {f"detected_{name}": detected[name].numpy() for name in ("bboxes", "scores")}
    record["detected_labels"] = detected["labels"].numpy()
    return record | {"mask_logits": channels_last(masks)}


def _configuration(package, path):
    import importlib

    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    sys.modules["mmcv._ext"] = Operators("mmcv._ext")
    importlib.import_module(f"{package}.models")
    init_default_scope(package)
    root = Path(importlib.import_module(package).__file__).parent
    return Config.fromfile(root / ".mim" / "configs" / path)


RECORDS = (
    mmseg_deeplabv3_r50_d8,
    mmseg_deeplabv3plus_r50_d8_769x769,
    mmdet_mask_rcnn_r50_fpn,
    mmdet_mask_rcnn_r50_caffe_fpn,
)


def main():
    folder, wanted = Path(sys.argv[1]), sys.argv[2:]
    for record in RECORDS:
        if not wanted or record.__name__ in wanted:
            path = folder / f"{record.__name__}.npz"
            np.savez_compressed(path, **record())
            print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
