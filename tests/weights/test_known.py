"""The table of published weights: what its rows must have in common."""

import re

import pytest

from segjax.weights.known import KNOWN, find

HEXADECIMAL = set("0123456789abcdef")


def test_no_two_rows_share_a_file_or_an_address():
    rows = list(KNOWN.values())
    assert [row.name for row in rows] == list(KNOWN)
    assert len({row.file for row in rows}) == len({row.address for row in rows}) == len(rows)
    assert len(rows) == 72


@pytest.mark.parametrize("row", KNOWN.values(), ids=lambda row: row.name)
def test_a_published_hash_is_the_one_in_the_name_of_the_file(row):
    if row.checksum is None:
        assert row.source in ("smp", "tf") or "ImageNetPretrained" in row.address
    else:
        kind, _, hexadecimal = row.checksum.partition(":")
        assert (kind, len(hexadecimal)) == (
            ("md5", 6) if row.source == "detectron2" else ("sha256", 8)
        )
        assert set(hexadecimal) <= HEXADECIMAL
        assert re.search(f"[-_]{hexadecimal}[.](pth|pkl)$", row.file)
    assert row.size is None or 5e6 < row.size < 1e9
    assert row.file.rpartition(".")[2] in row.address


def test_the_name_of_a_converter_means_its_first_weights():
    assert find("torchvision/resnet50").file == "resnet50-0676ba61.pth"
    assert find("detectron2/mask_rcnn_R_50_FPN").name == "detectron2/mask_rcnn_R_50_FPN_3x"
    assert find("tf/xception65").name == "tf/xception65_imagenet"
    assert find("smp/unet_resnet34") is None
    assert find("nothing") is None
