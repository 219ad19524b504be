"""Rows of mmdetection's and mmsegmentation's model zoos.

Addresses and scores are those of configs/mask_rcnn/metafile.yml (mmdetection, 5f55ad6) and of the
README.md of configs/deeplabv3 and configs/deeplabv3plus (mmsegmentation, 0999c55), with the host
that both packages use today. The hash in a file's name is the beginning of its SHA-256
(tools/model_converters/publish_model.py). They give no sizes: those here count 4 bytes for each
number in the arrays. Both packages are Apache-2.0.

Scores are at one scale without flips.
"""

from segjax.weights.row import KnownWeights

HOST = "https://download.openmmlab.com"
MASK_RCNN_MEGABYTES = {"r50": 178, "r101": 254, "x101": 431}
DEEPLAB_MEGABYTES = {
    ("deeplabv3", "r50"): 273,
    ("deeplabv3", "r101"): 349,
    ("deeplabv3plus", "r50"): 175,
    ("deeplabv3plus", "r101"): 251,
}
DATA = {"voc12aug": "VOC", "cityscapes": "Cityscapes", "ade20k": "ADE20K"}


def _mmdet(body: str, schedule: str, file: str, box_ap: float, mask_ap: float | None):
    """A row of Mask R-CNN; `file` is what follows the configuration's name in the file's."""
    config = f"mask_rcnn_{body}_fpn_{schedule}_coco"
    score = f"box AP {box_ap}" + ("" if mask_ap is None else f", mask AP {mask_ap}")
    return KnownWeights(
        name=f"mmdet/{config}",
        converter=f"mmdet/mask-rcnn_{body.replace('_', '-')}_fpn",
        address=f"{HOST}/mmdetection/v2.0/mask_rcnn/{config}/{config}_{file}.pth",
        licence="Apache-2.0",
        data="COCO",
        size=MASK_RCNN_MEGABYTES[body.partition("_")[0]] * 10**6,
        checksum=f"sha256:{file.rpartition('-')[2]}",
        score=score,
    )


def _mmseg(config: str, file: str, score: float):
    """A row of DeepLab v3 or v3+; `config` is the configuration's name in versions 0.x."""
    architecture, depth, crop, _, data = config.split("_")
    converter = f"{architecture}_{depth}" + ("_769x769" if crop == "769x769" else "")
    megabytes = DEEPLAB_MEGABYTES[architecture, depth.removesuffix("-d8")]
    return KnownWeights(
        name=f"mmseg/{config}",
        converter=f"mmseg/{converter}",
        address=f"{HOST}/mmsegmentation/v0.5/{architecture}/{config}/{config}_{file}.pth",
        licence="Apache-2.0",
        data=DATA[data],
        size=megabytes * 10**6,
        checksum=f"sha256:{file.rpartition('-')[2]}",
        score=f"val mIoU {score:.2f}",
    )


ROWS = (
    # The longest schedule first: a name without a schedule means it.
    _mmdet("r50", "mstrain-poly_3x", "20210524_201154-21b550bb", 40.9, 37.1),
    _mmdet("r50", "2x", "bbox_mAP-0.392__segm_mAP-0.354_20200505_003907-3e542a40", 39.2, 35.4),
    _mmdet("r50", "1x", "20200205-d4b0c5d6", 38.2, 34.7),
    _mmdet("r101", "mstrain-poly_3x", "20210524_200244-5675c317", 42.7, 38.5),
    _mmdet("r101", "2x", "bbox_mAP-0.408__segm_mAP-0.366_20200505_071027-14b391c7", 40.8, 36.6),
    _mmdet("r101", "1x", "20200204-1efe0ed5", 40.0, 36.1),
    _mmdet(
        "r50_caffe",
        "mstrain-poly_3x",
        "bbox_mAP-0.408__segm_mAP-0.37_20200504_163245-42aa3d00",
        40.8,
        37.0,
    ),
    _mmdet(
        "r50_caffe",
        "mstrain-poly_2x",
        "bbox_mAP-0.403__segm_mAP-0.365_20200504_231822-a75c98ce",
        40.3,
        36.5,
    ),
    _mmdet("r50_caffe", "1x", "bbox_mAP-0.38__segm_mAP-0.344_20200504_231812-0ebd1859", 38.0, 34.4),
    _mmdet("r101_caffe", "mstrain-poly_3x", "20210526_132339-3c33ce02", 42.9, 38.5),
    _mmdet("r101_caffe", "1x", "20200601_095758-805e06c1", 40.4, 36.4),
    _mmdet("x101_32x8d", "mstrain-poly_3x", "20210607_161042-8bd2c639", 44.3, None),
    _mmseg("deeplabv3_r50-d8_512x512_40k_voc12aug", "20200613_161546-2ae96e7e", 77.68),
    _mmseg("deeplabv3_r101-d8_512x512_40k_voc12aug", "20200613_161432-0017d784", 77.92),
    _mmseg("deeplabv3_r50-d8_512x512_160k_ade20k", "20200615_123227-5d0ee427", 42.66),
    _mmseg("deeplabv3_r101-d8_512x512_160k_ade20k", "20200615_105816-b1f72b3b", 45.00),
    _mmseg("deeplabv3_r50-d8_512x1024_80k_cityscapes", "20200606_113404-b92cfdd4", 79.32),
    _mmseg("deeplabv3_r101-d8_512x1024_80k_cityscapes", "20200606_113503-9e428899", 80.20),
    _mmseg("deeplabv3_r50-d8_769x769_80k_cityscapes", "20200606_221338-788d6228", 79.89),
    _mmseg("deeplabv3_r101-d8_769x769_80k_cityscapes", "20200607_013353-60e95418", 79.67),
    _mmseg("deeplabv3plus_r50-d8_512x512_40k_voc12aug", "20200613_161759-e1b43aa9", 76.81),
    _mmseg("deeplabv3plus_r101-d8_512x512_40k_voc12aug", "20200613_205333-faf03387", 78.62),
    _mmseg("deeplabv3plus_r50-d8_512x512_160k_ade20k", "20200615_124504-6135c7e0", 43.95),
    _mmseg("deeplabv3plus_r101-d8_512x512_160k_ade20k", "20200615_123232-38ed86bb", 45.47),
    _mmseg("deeplabv3plus_r50-d8_512x1024_80k_cityscapes", "20200606_114049-f9fb496d", 80.09),
    _mmseg("deeplabv3plus_r101-d8_512x1024_80k_cityscapes", "20200606_114143-068fcfe9", 80.97),
    _mmseg("deeplabv3plus_r50-d8_769x769_80k_cityscapes", "20200606_210233-0e9dfdc4", 79.83),
    _mmseg("deeplabv3plus_r101-d8_769x769_80k_cityscapes", "20200607_000405-a7573d20", 80.98),
)
