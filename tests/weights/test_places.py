"""Where files of weights are looked for, and what is said if there is none."""

import dataclasses
import json

import pytest

from segjax.weights.known import KNOWN, find
from segjax.weights.places import MissingWeights, candidates, locate, own_folder, present
from tests.weights.server import CONTENT, NAME, SHA256, publish, serving, use_empty_folders

HUB = "models--smp-hub--resnet34.imagenet/snapshots/7a57b34f723329ff020b3f8bc41771163c519d0c"
ZOO = "detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600"


@pytest.fixture(autouse=True)
def empty_folders(monkeypatch, tmp_path):
    use_empty_folders(monkeypatch, tmp_path)


@pytest.fixture
def made_up(monkeypatch):
    """Adds a row of the table, with or without a published hash."""
    with serving() as server:

        def add(**fields):
            monkeypatch.setitem(KNOWN, NAME, publish(server, **fields))

        yield add
        assert server.requests == []  # no search asks a server


def write(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "cache/segjax/weights"),
        ({"SEGJAX_WEIGHTS": "~/mine"}, "mine"),
        ({"XDG_CACHE_HOME": ""}, ".cache/segjax/weights"),
    ],
)
def test_segjax_has_a_folder_in_the_users_cache(monkeypatch, tmp_path, variables, folder):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert own_folder() == tmp_path / folder


@pytest.mark.parametrize(
    ("name", "variables", "path"),
    [
        ("torchvision/resnet18", {}, "cache/torch/hub/checkpoints/resnet18-f37072fd.pth"),
        (
            "torchvision/resnet18",
            {"TORCH_HOME": "~/torch"},
            "torch/hub/checkpoints/resnet18-f37072fd.pth",
        ),
        ("smp/resnet34", {}, f"cache/huggingface/hub/{HUB}/model.safetensors"),
        ("smp/resnet34", {"HF_HOME": "~/hf"}, f"hf/hub/{HUB}/model.safetensors"),
        ("smp/resnet34", {"HF_HUB_CACHE": "~/a", "HF_HOME": "~/b"}, f"a/{HUB}/model.safetensors"),
        (
            "detectron2/mask_rcnn_R_50_FPN",
            {},
            f".torch/iopath_cache/{ZOO}/model_final_f10217.pkl",
        ),
        (
            "detectron2/mask_rcnn_R_50_FPN",
            {"FVCORE_CACHE": "~/cached"},
            f"cached/{ZOO}/model_final_f10217.pkl",
        ),
    ],
)
def test_the_caches_of_the_publishers_packages_are_searched(
    monkeypatch, tmp_path, name, variables, path
):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    weights = find(name)
    assert present(weights) is None
    there = write(tmp_path / path)
    assert present(weights)[1] == there
    ours = write(own_folder() / weights.file)
    assert present(weights) == ("segjax", ours)
    assert [path for _, path in candidates(weights)] == [ours, there]


def test_a_damaged_file_is_passed_over_for_a_whole_one(monkeypatch, tmp_path, made_up):
    made_up()
    ours = write(own_folder() / "net.npz", CONTENT[:-1])
    with pytest.raises(
        MissingWeights, match=rf"net\.npz has the sha256 \w+\.\.\., not {SHA256[:8]}"
    ):
        locate(NAME)
    name = "torchvision/net"
    monkeypatch.setitem(
        KNOWN,
        name,
        dataclasses.replace(KNOWN[NAME], name=name, address="https://a.invalid/net.npz"),
    )
    whole = write(tmp_path / "cache/torch/hub/checkpoints/net.npz")
    assert locate(name) == whole
    write(ours)
    assert locate(name) == ours


def test_a_missing_file_is_described_in_one_line_with_the_ways_to_get_it(made_up):
    made_up()
    with pytest.raises(MissingWeights) as caught:
        locate(NAME)
    message = str(caught.value)
    for part in (
        *(NAME, "3.1 MB", "licence a licence", "from http://127.0.0.1:"),
        *("segjax weights get made-up/net", "--download", "segjax weights add FILE"),
    ):
        assert part in message
    assert "\n" not in message


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match="did you mean 'torchvision/resnet34'"):
        locate("torchvision/resnet43")


def test_without_a_published_hash_the_recorded_one_is_compared(made_up):
    made_up(checksum=None)
    path = write(own_folder() / "net.npz", CONTENT[:-1])
    assert locate(NAME) == path
    record = path.with_name("net.npz.json")
    record.write_text(json.dumps({"sha256": SHA256}))
    with pytest.raises(MissingWeights, match="damaged, or another file"):
        locate(NAME)
    write(path)
    assert locate(NAME) == path
    record.write_text("{}")
    with pytest.raises(ValueError, match=r"net\.npz\.json: no record of a hash; remove it"):
        locate(NAME)


def test_hugging_faces_cache_says_by_a_files_name_what_it_should_be(tmp_path):
    hub = tmp_path / "cache/huggingface/hub"
    blob = write(hub / "models--smp-hub--resnet34.imagenet/blobs" / SHA256)
    link = hub / HUB / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    assert locate("smp/resnet34") == link
    write(blob, CONTENT[:-1])
    with pytest.raises(MissingWeights, match="damaged, or another file"):
        locate("smp/resnet34")
