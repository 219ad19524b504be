"""`--initial.name` without a file: the published one on this machine, never a download."""

import pytest

from segjax.recipes.deeplab_networks import DeepLabV3Config
from segjax.recipes.initial import InitialConfig
from segjax.weights.known import KNOWN
from segjax.weights.places import own_folder
from tests.weights.server import CONTENT, NAME, publish, serving, use_empty_folders


class Loaded(Exception):
    """The file that would have been read."""


@pytest.fixture
def server(monkeypatch, tmp_path):
    use_empty_folders(monkeypatch, tmp_path)
    with serving() as running:
        monkeypatch.setitem(KNOWN, NAME, publish(running))
        yield running


def test_the_published_file_is_read_or_the_message_says_how_to_get_it(server, monkeypatch):
    def load(name, path):
        raise Loaded(name, path)

    monkeypatch.setattr("segjax.pretrained.load", load)
    initial = InitialConfig(name=NAME)
    with pytest.raises(FileNotFoundError, match="segjax weights get made-up/net"):
        initial.initialize({}, network=DeepLabV3Config())
    assert server.requests == []
    own_folder().mkdir(parents=True)
    file = own_folder() / "net.npz"
    file.write_bytes(CONTENT)
    with pytest.raises(Loaded) as loaded:
        initial.initialize({}, network=DeepLabV3Config())
    assert loaded.value.args == (NAME, file)
    file.write_bytes(CONTENT[:-1])
    with pytest.raises(FileNotFoundError, match="damaged, or another file"):
        initial.initialize({}, network=DeepLabV3Config())


def test_the_settings_of_weights_follow_their_name_alone():
    """Also of weights with a schedule in their name, which is not the name of a converter."""
    network = DeepLabV3Config()
    by_name = InitialConfig(name="torchvision/resnet50_imagenet1k_v2").resolve(network)
    assert by_name == InitialConfig(name="torchvision/resnet50").resolve(network)
    assert by_name.backbone == "resnet50"
