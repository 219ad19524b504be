"""A server on this machine, and made-up weights that it publishes."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from segjax.weights.known import KnownWeights

CONTENT = bytes(range(256)) * 12_000  # 3 MB: some blocks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "made-up/net"


@dataclass
class Server:
    """What the server does, and the requests that it got: path and headers of each.

    Attributes:
      files: contents by path.
      ranges: whether it answers requests for a part of a file.
      headers: headers to send, such as an ETag.
      breaks_after: bytes of a body after which it closes the connection, once.
      redirects: {path: path}, with the headers to send along.
      has_length: whether it says how long a body is.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    breaks_after: int | None = None
    redirects: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    has_length: bool = True
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    address: str = ""


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Serves on a free port of the loopback device."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append((self.path, dict(self.headers)))
            if self.path in server.redirects:
                target, headers = server.redirects[self.path]
                return self._head(302, headers | {"Location": target, "Content-Length": "0"})
            if self.path not in server.files:
                return self._head(404, {"Content-Length": "0"})
            body, status, headers = server.files[self.path], 200, dict(server.headers)
            wanted = self.headers.get("Range")
            tag = self.headers.get("If-Range")
            if wanted and server.ranges and tag in (None, server.headers.get("ETag")):
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    return self._head(416, {"Content-Length": "0"})
                status = 206
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                body = body[start:]
            if server.has_length:
                headers["Content-Length"] = str(len(body))
            self._head(status, headers)
            if server.breaks_after is not None:
                body, server.breaks_after = body[: server.breaks_after], None
            self.wfile.write(body)

        def _head(self, status, headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.address = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def publish(server: Server, *, checksum: str | None = f"sha256:{SHA256[:8]}", **fields):
    """Puts made-up weights on the server; returns their row of the table."""
    server.files["/models/net.npz"] = CONTENT
    given = {
        "name": NAME,
        "converter": "tf/deeplabv3_mobilenetv2",
        "address": f"{server.address}/models/net.npz",
        "licence": "a licence",
        "data": "made-up data",
        "size": len(CONTENT),
    }
    return KnownWeights(checksum=checksum, **given | fields)


def use_empty_folders(monkeypatch, folder):
    """Lets all searches begin in empty folders below `folder`, and no proxy in between."""
    for variable in ("SEGJAX_WEIGHTS", "TORCH_HOME", "HF_HOME", "HF_HUB_CACHE", "FVCORE_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
