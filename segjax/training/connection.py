"""Connections between processes that carry JSON objects."""

import json
import select
import socket
import time

LINE_LIMIT = 2**20


class Connection:
    """A connection that carries JSON objects, one a line."""

    def __init__(self, connected: socket.socket):
        self.socket = connected
        self.name = "a process"
        self._buffer = b""
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):  # not on every system
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    @property
    def has_line(self) -> bool:
        return b"\n" in self._buffer

    def read(self, timeout: float) -> dict | None:
        """Returns the next object; None once the other side is gone.

        Raises:
          TimeoutError: no whole line has come in time.
          ValueError: the line is not an object.
        """
        deadline = time.monotonic() + timeout
        while not self.has_line:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self.socket], [], [], left)[0]:
                raise TimeoutError("no answer")
            try:
                part = self.socket.recv(65536)
            except OSError:  # reset, or unreachable for longer than the keep-alive
                return None
            if not part:
                return None
            self._buffer += part
            if len(self._buffer) > LINE_LIMIT:
                raise ValueError("not a process of a run")
        line, _, self._buffer = self._buffer.partition(b"\n")
        said = json.loads(line)
        if not isinstance(said, dict):
            raise ValueError("not a process of a run")
        return said

    def write(self, said: dict) -> None:
        self.socket.sendall(json.dumps(said).encode() + b"\n")

    def close(self) -> None:
        self.socket.close()


def listen(port: int, *, backlog: int = 1) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
        )
    return socket.create_server(("", port), backlog=backlog)


def free_port() -> int:
    with listen(0) as server:
        return server.getsockname()[1]
