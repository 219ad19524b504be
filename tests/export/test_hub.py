"""Uploads to the Hugging Face Hub: what is sent, and what is said when it fails."""

import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from segjax.cli import main
from segjax.export.hub import NotPushed, check_push, push
from segjax.export.published import Source, write_published
from segjax.pretrained.converted import Pretrained
from tests.training import tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    task = tiny.make_task(tiny.Config(workdir=Path()))
    model = Pretrained(task.model, {"params": {}}, task.preprocess, task)
    output = tmp_path_factory.mktemp("published") / "squares"
    write_published(model, output, Source(name="squares"))
    (output / "pictures").mkdir()
    (output / "pictures" / "a.png").write_bytes(b"\x89PNG")
    return output


class StubApi:
    """Stands for `huggingface_hub.HfApi`; `fails` is what its upload raises."""

    calls: ClassVar[list] = []
    fails: ClassVar[Exception | None] = None

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append((repo_id, private, exist_ok))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if self.fails is not None:
            raise self.fails
        self.calls.append((repo_id, Path(folder_path), commit_message))


@pytest.fixture
def stub(monkeypatch):
    api = type("Api", (StubApi,), {"calls": [], "fails": None})
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=api))
    return api


def test_a_published_folder_is_uploaded_as_it_is(folder, stub, capsys):
    main(["publish", str(folder), "--push", "me/squares", "--private"])
    assert stub.calls == [
        ("me/squares", True, True),
        ("me/squares", folder, "Publish a model with segjax"),
    ]
    assert capsys.readouterr().out == "uploaded   https://huggingface.co/me/squares\n"
    push(folder, "me/other")
    assert stub.calls[2] == ("me/other", False, True)


def test_a_failed_upload_says_why_and_how_to_try_again(folder, stub, capsys):
    stub.fails = RuntimeError("401 Client Error\n\nInvalid token")
    with pytest.raises(SystemExit) as stop:
        main(["publish", str(folder), "--push", "me/squares"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {folder} is complete, but the upload to me/squares failed: 401 Client Error "
        f"Invalid token (try again: segjax publish {folder} --push me/squares; a token comes from "
        "hf auth login)\n"
    )


def test_an_upload_that_cannot_be_tried_is_refused_before_anything_is_written(
    folder, tmp_path, monkeypatch, capsys
):
    with pytest.raises(ValueError, match=r"squares: expected a repository .* USER/NAME"):
        check_push("squares")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not installed
    output = tmp_path / "out"
    for arguments in ([str(folder)], ["run", "--output", str(output)]):
        with pytest.raises(SystemExit):
            main(["publish", *arguments, "--push", "me/squares"])
        assert "pip install 'segjax[hub]'" in capsys.readouterr().err
    assert not output.exists()


def test_only_published_folders_are_uploaded_without_output(tmp_path, stub, capsys):
    with pytest.raises(SystemExit):
        main(["publish", str(tmp_path), "--push", "me/squares"])
    assert f"{tmp_path} is not a folder that segjax publish wrote" in capsys.readouterr().err
    assert stub.calls == []


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's HTTP interface that an upload uses."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        if self.server.refuses:
            self.answer({"error": "Invalid username or password."}, status=401)
        elif self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.answer({"url": f"{self.server.address}/me/squares"})
        elif self.path == "/api/validate-yaml":
            self.server.card = json.loads(body)["content"]
            self.answer({"errors": [], "warnings": []})
        elif self.path.startswith("/api/models/me/squares/preupload/"):
            names = [file["path"] for file in json.loads(body)["files"]]
            large = (".safetensors", ".png")
            self.answer(
                {
                    "files": [
                        {
                            "path": name,
                            "uploadMode": "lfs" if name.endswith(large) else "regular",
                            "shouldIgnore": False,
                        }
                        for name in names
                    ]
                }
            )
        elif self.path == "/me/squares.git/info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            for each in objects:
                href = f"{self.server.address}/storage/{each['oid']}"
                each["actions"] = {"upload": {"href": href}}
            self.answer({"transfer": "basic", "objects": objects})
        elif self.path.startswith("/api/models/me/squares/commit/"):
            self.server.commit = [json.loads(line) for line in body.splitlines()]
            url = f"{self.server.address}/me/squares/commit/0"
            self.answer({"success": True, "commitOid": "0", "commitUrl": url, "hookOutput": ""})
        else:
            self.answer({"error": f"no {self.path}"}, status=404)

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.stored[self.path.rpartition("/")[2]] = content
        self.answer({})

    def answer(self, value, *, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def hub(*, refuses=False):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.seen, server.stored, server.refuses = [], {}, refuses
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def push_to(server, folder, tmp_path):
    """Calls `push` in a process whose huggingface_hub knows this server alone."""
    code = "import sys; from segjax.export.hub import push; print(push(sys.argv[1], 'me/squares'))"
    settings = {"HF_ENDPOINT": server.address, "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path)}
    settings |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_package_sends_every_file_in_one_commit(folder, tmp_path):
    pytest.importorskip("huggingface_hub")
    with hub() as server:
        done = push_to(server, folder, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{server.address}/me/squares"
    assert {token for _, token in server.seen} == {"Bearer hf_secret"}
    assert (server.created["organization"], server.created["name"]) == ("me", "squares")
    assert server.card == (folder / "README.md").read_text()
    sent = {}
    for line in server.commit:
        if line["key"] == "file":
            sent[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        elif line["key"] == "lfsFile":
            sent[line["value"]["path"]] = server.stored[line["value"]["oid"]]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sent == {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    weights = json.loads(sent["segjax.json"])["weights"]
    assert hashlib.sha256(sent["model.safetensors"]).hexdigest() == weights["sha256"]


def test_a_refusal_of_the_server_is_one_error(folder, tmp_path):
    pytest.importorskip("huggingface_hub")
    with hub(refuses=True) as server:
        done = push_to(server, folder, tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"segjax.export.hub.{NotPushed.__name__}: ")
    assert "401" in last
