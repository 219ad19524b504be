"""The table of published weights that have a converter in `segjax.pretrained`.

Every address, score and hash is the publisher's; each block names the source. Sizes are the
publisher's too, rounded as it rounds them, unless a comment says otherwise.
"""

from collections.abc import Mapping
from typing import Any

from segjax.data.datasets.ade20k.class_names import CLASS_NAMES
from segjax.weights import openmmlab
from segjax.weights.row import KnownWeights


def find(name: str) -> KnownWeights | None:
    """Returns the weights of a name, or None.

    The name of a converter alone, such as "detectron2/mask_rcnn_R_50_FPN", means the first weights
    in the table that it converts.
    """
    exact = KNOWN.get(name)
    return exact or next((each for each in KNOWN.values() if each.converter == name), None)


def _torchvision(
    network: str,
    hash_: str,
    mebibytes: float,
    score: str,
    data: str,
    *,
    version: str = "",
    file: str | None = None,
) -> KnownWeights:
    """Addresses, sizes and scores are those of torchvision 0.29.1's enums of weights.

    The hash in a file's name is the beginning of its SHA-256 (torch.hub,
    `load_state_dict_from_url`). The package is BSD-3-Clause; its README adds that weights "may have
    their own licenses or terms and conditions derived from the dataset used for training".
    """
    file = file or (network if data == IMAGENET else f"{network}_coco")
    return KnownWeights(
        name=f"torchvision/{network}{version}",
        converter=f"torchvision/{network}",
        address=f"https://download.pytorch.org/models/{file}-{hash_}.pth",
        licence="BSD-3-Clause",
        data=data,
        size=round(mebibytes * 2**20),
        checksum=f"sha256:{hash_}",
        score=score,
    )


def _detectron2(
    network: str, run: int, hash_: str, megabytes: int, box_ap: float, mask_ap: float
) -> KnownWeights:
    """Addresses, scores and licence are those of detectron2's MODEL_ZOO.md (02b5c4e).

    MODEL_ZOO.md: "any model on this page contains its md5 prefix in its file name". It gives no
    sizes: those here count 4 bytes for each number in the arrays.
    """
    name = f"mask_rcnn_{network}"
    return KnownWeights(
        name=f"detectron2/{name}",
        converter=f"detectron2/{name.rpartition('_')[0]}",  # without the schedule, 1x or 3x
        address=f"{DETECTRON2}/COCO-InstanceSegmentation/{name}/{run}/model_final_{hash_}.pkl",
        licence="CC BY-SA 3.0",
        data=COCO,
        size=megabytes * 10**6,
        checksum=f"md5:{hash_}",
        score=f"box AP {box_ap}, mask AP {mask_ap}",
    )


def _detectron2_backbone(name: str, file: str) -> KnownWeights:
    """From the same page, which gives neither hashes nor sizes of the backbones."""
    return KnownWeights(
        name=f"detectron2/{name}",
        converter=f"detectron2/{name}",
        address=f"{DETECTRON2}/ImageNetPretrained/{file}.pkl",
        licence="CC BY-SA 3.0",
        data=IMAGENET,
    )


def _smp(encoder: str, revision: str) -> KnownWeights:
    """Repositories and revisions are those that the encoders of segmentation-models-pytorch 0.6.0
    name.

    The encoders derive from torchvision's classes, and so do the names of their arrays. The package
    states no sizes, scores or hashes, and no licence of these weights; its code is MIT. Hugging
    Face sends the SHA-256 of a file along with it.
    """
    repository = f"smp-hub/{encoder}.imagenet"
    return KnownWeights(
        name=f"smp/{encoder}",
        converter=f"smp/{encoder}",
        address=f"https://huggingface.co/{repository}/resolve/{revision}/model.safetensors",
        licence="not stated",
        data=IMAGENET,
        file=f"smp-hub_{encoder}.imagenet.safetensors",
    )


def _tensorflow(
    name: str,
    converter: str,
    file: str,
    megabytes: float,
    score: str | None,
    data: str,
    options: Mapping[str, Any] | None = None,
) -> KnownWeights:
    """Archives, sizes and scores are those of TensorFlow DeepLab's g3doc/model_zoo.md
    (tensorflow/models, d318246).

    It gives no hashes. The repository is Apache-2.0. Scores are those at one scale without flips,
    where the page has one; `options` has their output stride. Networks without a converter are left
    out: Xception-71, MobileNetV3, and MobileNetV2 with a decoder.
    """
    return KnownWeights(
        name=f"tf/{name}",
        converter=f"tf/{converter}",
        address=f"http://download.tensorflow.org/models/{file}.tar.gz",
        licence="Apache-2.0",
        data=data,
        size=round(megabytes * 10**6),
        score=score,
        options=options or {},
    )


IMAGENET, COCO, COCO_AS_VOC = "ImageNet", "COCO", "COCO, classes of VOC"
TF_VOC, TF_CITYSCAPES = "ImageNet, COCO, VOC", "ImageNet, COCO, Cityscapes"
DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2"
MOBILE, XCEPTION = "deeplabv3_mobilenetv2", "deeplabv3plus_xception65"
V2 = "_imagenet1k_v2"
CITYSCAPES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
    *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train"),
    *("motorcycle", "bicycle"),
)
# The output strides of TensorFlow's scores. g3doc/cityscapes.md evaluates images as 1025×2049.
AT_8, AT_16 = {"output_stride": 8}, {"output_stride": 16}
CITY_OPTIONS = {"input_side": 2049, "classes": CITYSCAPES} | AT_16
# Class 0, everything else, was ignored in training (deeplab/datasets/data_generator.py).
ADE20K_OPTIONS = {"classes": ("background", *CLASS_NAMES)} | AT_8
SCALES = "with scales, flips"

KNOWN = {
    each.name: each
    for each in (
        _torchvision("deeplabv3_resnet50", "cd0a2569", 160.515, "mIoU 66.4", COCO_AS_VOC),
        _torchvision("deeplabv3_resnet101", "586e9e4e", 233.217, "mIoU 67.4", COCO_AS_VOC),
        _torchvision(
            "deeplabv3_mobilenet_v3_large",
            "fc3c493d",
            42.301,
            "mIoU 60.3",
            COCO_AS_VOC,
            file="deeplabv3_mobilenet_v3_large",
        ),
        _torchvision(
            "maskrcnn_resnet50_fpn", "bf2d0c1e", 169.84, "box AP 37.9, mask AP 34.6", COCO
        ),
        _torchvision(
            "maskrcnn_resnet50_fpn_v2", "73cbd019", 177.219, "box AP 47.4, mask AP 41.8", COCO
        ),
        _torchvision("resnet18", "f37072fd", 44.661, "top-1 69.758", IMAGENET),
        _torchvision("resnet34", "b627a593", 83.275, "top-1 73.314", IMAGENET),
        _torchvision("resnet50", "0676ba61", 97.781, "top-1 76.130", IMAGENET),
        _torchvision("resnet50", "11ad3fa6", 97.79, "top-1 80.858", IMAGENET, version=V2),
        _torchvision("resnet101", "63fe2227", 170.511, "top-1 77.374", IMAGENET),
        _torchvision("resnet101", "cd907fc2", 170.53, "top-1 81.886", IMAGENET, version=V2),
        _torchvision("vgg16", "397923af", 527.796, "top-1 71.592", IMAGENET),
        _torchvision("mobilenet_v2", "b0353104", 13.555, "top-1 71.878", IMAGENET),
        _torchvision("mobilenet_v2", "7ebf99e0", 13.598, "top-1 72.154", IMAGENET, version=V2),
        _torchvision("mobilenet_v3_large", "8738ca79", 21.114, "top-1 74.042", IMAGENET),
        _torchvision(
            "mobilenet_v3_large", "5c1a4163", 21.107, "top-1 75.274", IMAGENET, version=V2
        ),
        # The longer schedule first: a name without a schedule means it.
        _detectron2("R_50_FPN_3x", 137849600, "f10217", 178, 41.0, 37.2),
        _detectron2("R_50_FPN_1x", 137260431, "a54504", 178, 38.6, 35.2),
        _detectron2("R_50_C4_3x", 137849525, "4ce675", 144, 39.8, 34.4),
        _detectron2("R_50_C4_1x", 137259246, "9243eb", 144, 36.8, 32.2),
        _detectron2("R_50_DC5_3x", 137849551, "84107b", 690, 40.0, 35.9),
        _detectron2("R_50_DC5_1x", 137260150, "4f86c3", 690, 38.3, 34.2),
        _detectron2("R_101_FPN_3x", 138205316, "a3ec72", 254, 42.9, 38.6),
        _detectron2("R_101_C4_3x", 138363239, "a2914c", 220, 42.6, 36.7),
        _detectron2("R_101_DC5_3x", 138363294, "0464b7", 766, 41.9, 37.3),
        _detectron2("X_101_32x8d_FPN_3x", 139653917, "2d9806", 431, 44.3, 39.5),
        _detectron2_backbone("resnet50", "MSRA/R-50"),
        _detectron2_backbone("resnet101", "MSRA/R-101"),
        _detectron2_backbone("resnext101", "FAIR/X-101-32x8d"),
        *openmmlab.ROWS,
        _smp("resnet18", "3f2325ff978283d47aa6a1d6878ca20565622683"),
        _smp("resnet34", "7a57b34f723329ff020b3f8bc41771163c519d0c"),
        _smp("resnet50", "00cb74e366966d59cd9a35af57e618af9f88efe9"),
        _smp("resnet101", "cd7c15e8c51da86ae6a084515fdb962d0c94e7d1"),
        _smp("mobilenet_v2", "e67aa804e17f7b404b629127eabbd224c4e0690b"),
        _tensorflow(
            "mobilenetv2_coco_voc_trainaug",
            MOBILE,
            "deeplabv3_mnv2_pascal_train_aug_2018_01_29",
            23,
            "val mIoU 75.32",
            TF_VOC,
            AT_16,
        ),
        _tensorflow(
            "mobilenetv2_coco_voc_trainval",
            MOBILE,
            "deeplabv3_mnv2_pascal_trainval_2018_01_29",
            23,
            f"test mIoU 80.25 {SCALES}",
            TF_VOC,
            AT_8,
        ),
        _tensorflow(
            "mobilenetv2_dm05_coco_voc_trainaug",
            MOBILE,
            "deeplabv3_mnv2_dm05_pascal_trainaug_2018_10_01",
            7.6,
            "val mIoU 70.19",
            TF_VOC,
            AT_16,
        ),
        _tensorflow(
            "mobilenetv2_dm05_coco_voc_trainval",
            MOBILE,
            "deeplabv3_mnv2_dm05_pascal_trainval_2018_10_01",
            7.6,
            "test mIoU 71.83",
            TF_VOC,
            AT_8,
        ),
        _tensorflow(
            "mobilenetv2_coco_cityscapes_trainfine",
            MOBILE,
            "deeplabv3_mnv2_cityscapes_train_2018_02_05",
            23,
            "val mIoU 70.71",
            TF_CITYSCAPES,
            CITY_OPTIONS,
        ),
        _tensorflow(
            "xception65_coco_voc_trainaug",
            XCEPTION,
            "deeplabv3_pascal_train_aug_2018_01_04",
            439,
            "val mIoU 82.20",
            TF_VOC,
            AT_16,
        ),
        _tensorflow(
            "xception65_coco_voc_trainval",
            XCEPTION,
            "deeplabv3_pascal_trainval_2018_01_04",
            439,
            f"test mIoU 87.80 {SCALES}",
            TF_VOC,
            AT_8,
        ),
        _tensorflow(
            "xception65_cityscapes_trainfine",
            XCEPTION,
            "deeplabv3_cityscapes_train_2018_02_06",
            439,
            "val mIoU 78.79",
            "ImageNet, Cityscapes",
            CITY_OPTIONS,
        ),
        _tensorflow(
            "xception65_ade20k_train",
            XCEPTION,
            "deeplabv3_xception_ade20k_train_2018_05_29",
            439,
            f"val mIoU 45.65 {SCALES}",
            "ImageNet, ADE20K",
            ADE20K_OPTIONS,
        ),
        _tensorflow(
            "xception65_imagenet",
            "xception65",
            "deeplabv3_xception_2018_01_04",
            447,
            None,
            IMAGENET,
        ),
    )
}
