"""Downloads from a server on this machine: whole, interrupted, wrong, refused, at once."""

import errno
import json
import shutil
import threading

import pytest

from segjax.weights import download as module
from segjax.weights.download import DownloadFailed, download
from segjax.weights.places import own_folder
from tests.weights.server import CONTENT, SHA256, publish, serving, use_empty_folders


@pytest.fixture
def server(monkeypatch, tmp_path):
    use_empty_folders(monkeypatch, tmp_path)
    with serving() as running:
        yield running


def left_in_folder():
    """The names of the files that users see in segjax's folder."""
    return sorted(p.name for p in own_folder().iterdir() if not p.name.startswith("."))


def test_a_file_arrives_whole_and_is_not_fetched_again(server):
    weights = publish(server)
    path = download(weights)
    assert path == own_folder() / "net.npz"
    assert path.read_bytes() == CONTENT
    assert left_in_folder() == ["net.npz"]
    assert download(weights) == path
    assert len(server.requests) == 1


def test_a_damaged_file_is_replaced(server):
    weights = publish(server)
    own_folder().mkdir(parents=True)
    (own_folder() / "net.npz").write_bytes(CONTENT[:-1])
    assert download(weights).read_bytes() == CONTENT


@pytest.mark.parametrize("checksum", [f"sha256:{SHA256[:8]}", None])
@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on_where_it_stopped(server, checksum, ranges):
    weights = publish(server, checksum=checksum)
    server.breaks_after, server.headers = 2_500_000, {"ETag": '"one"'}
    with pytest.raises(DownloadFailed, match=r"the connection broke .* the same command goes on"):
        download(weights)
    assert left_in_folder() == ["net.npz.part", "net.npz.part.json"]
    kept = (own_folder() / "net.npz.part").stat().st_size
    assert 0 < kept < len(CONTENT)
    server.ranges = ranges
    assert download(weights).read_bytes() == CONTENT
    assert server.requests[1][1]["Range"] == f"bytes={kept}-"
    assert "net.npz.part" not in left_in_folder()


def test_a_part_of_a_file_that_has_changed_since_is_not_continued(server):
    weights = publish(server, checksum=None)
    server.breaks_after, server.headers = 2_500_000, {"ETag": '"one"'}
    with pytest.raises(DownloadFailed):
        download(weights)
    server.files["/models/net.npz"], server.headers = CONTENT[::-1], {"ETag": '"two"'}
    assert download(weights).read_bytes() == CONTENT[::-1]


def test_without_a_hash_and_a_tag_a_part_is_received_anew(server):
    weights = publish(server, checksum=None)
    server.breaks_after = 2_500_000
    with pytest.raises(DownloadFailed):
        download(weights)
    server.files["/models/net.npz"] = CONTENT[::-1]
    assert download(weights).read_bytes() == CONTENT[::-1]
    assert "Range" not in server.requests[1][1]


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_part_as_long_as_the_file_is_received_anew(server, extra):
    weights = publish(server)
    own_folder().mkdir(parents=True)
    (own_folder() / "net.npz.part").write_bytes(CONTENT + extra)
    assert download(weights).read_bytes() == CONTENT


def test_another_file_than_the_published_one_is_refused_and_removed(server):
    weights = publish(server)
    server.files["/models/net.npz"] = CONTENT[:-1] + b"\0"
    with pytest.raises(DownloadFailed, match=rf"has the sha256 \w+..., not {SHA256[:8]}: damaged"):
        download(weights)
    assert left_in_folder() == []


def test_a_file_cut_short_by_the_server_is_refused(server):
    weights = publish(server)
    server.files["/models/net.npz"], server.has_length = CONTENT[:-9], False
    with pytest.raises(DownloadFailed, match="damaged, or another file"):
        download(weights)
    assert left_in_folder() == []


def test_without_a_published_hash_the_first_one_is_recorded_and_compared(server):
    weights = publish(server, checksum=None)
    path = download(weights)
    record = json.loads((own_folder() / "net.npz.json").read_text())
    assert record["sha256"] == SHA256
    assert record["bytes"] == len(CONTENT)
    path.write_bytes(CONTENT[:-1])
    server.files["/models/net.npz"] = CONTENT[::-1]
    with pytest.raises(DownloadFailed, match=r"remove .*net\.npz\.json if the publisher has repla"):
        download(weights)
    server.files["/models/net.npz"] = CONTENT
    assert download(weights).read_bytes() == CONTENT


def test_the_hash_that_hugging_face_sends_along_is_compared(server):
    weights = publish(server, checksum=None, address=f"{server.address}/resolve/net.npz")
    server.redirects["/resolve/net.npz"] = ("/models/net.npz", {"X-Linked-Etag": f'"{SHA256}"'})
    server.files["/models/net.npz"] = CONTENT[::-1]
    with pytest.raises(DownloadFailed, match="damaged, or another file"):
        download(weights)
    server.files["/models/net.npz"] = CONTENT
    assert download(weights).read_bytes() == CONTENT


def test_a_mirror_has_the_file_under_its_path_or_its_name(server):
    weights = publish(server, address="https://weights.invalid/models/net.npz")
    assert download(weights, mirror=server.address).read_bytes() == CONTENT
    shutil.rmtree(own_folder())
    server.files = {"/flat/net.npz": CONTENT}
    assert download(weights, mirror=f"{server.address}/flat/").read_bytes() == CONTENT
    assert [path for path, _ in server.requests[1:]] == ["/flat/models/net.npz", "/flat/net.npz"]
    with pytest.raises(ValueError, match="--mirror nowhere: expected an address"):
        download(weights, mirror="nowhere")


def test_the_proxy_of_the_environment_is_used(server, monkeypatch):
    address = "http://weights.invalid/models/net.npz"
    weights = publish(server, address=address)
    server.files[address] = CONTENT  # a proxy is asked for the whole address
    monkeypatch.setenv("http_proxy", server.address)
    assert download(weights).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {}}, r"no such file \(404\). --mirror URL names another server"),
        ({"headers": {"Content-Type": "text/html"}}, "a web page instead of a file"),
    ],
)
def test_a_server_without_the_file_is_named(server, change, message):
    weights = publish(server)
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(DownloadFailed, match=message) as caught:
        download(weights)
    assert weights.address in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_connection_the_message_names_the_way_without_one(server):
    weights = publish(server, address="http://127.0.0.1:1/net.npz")
    with pytest.raises(DownloadFailed) as caught:
        download(weights)
    assert "no connection ([Errno 111] Connection refused)" in str(caught.value)
    assert "segjax weights add FILE" in str(caught.value)


def test_a_full_disk_is_named_before_or_when_it_is_full(server, monkeypatch):
    weights = publish(server)
    usage = shutil.disk_usage(own_folder().anchor)
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
        with pytest.raises(DownloadFailed, match=r"3\.1 MB to download, 1 MB free"):
            download(weights)

    part = own_folder() / "net.npz.part"
    part.symlink_to("/dev/full")
    with pytest.raises(DownloadFailed, match="the disk is full; make space"):
        download(weights)
    part.unlink()
    assert download(weights).read_bytes() == CONTENT


def test_a_file_system_without_locks_does_too(server, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", no_locks)
    assert download(publish(server)).read_bytes() == CONTENT
    assert left_in_folder() == ["net.npz"]


def test_a_second_download_waits_for_the_first_and_uses_its_file(server, capsys):
    weights = publish(server)
    own_folder().mkdir(parents=True)
    second = threading.Thread(target=download, args=(weights,))
    with module._alone(own_folder() / ".net.npz.lock"):
        second.start()
        shown = ""
        while "another process downloads net.npz; waiting" not in shown:
            shown += capsys.readouterr().out
            assert second.is_alive()
        (own_folder() / "net.npz").write_bytes(CONTENT)
    second.join()
    assert server.requests == []
    assert left_in_folder() == ["net.npz"]
