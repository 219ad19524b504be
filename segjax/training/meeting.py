"""Processes that train together meet before the first step, and watch over one another after it.

JAX joins processes too, but ends them by an abort in C++ if one is missing, has the number of
another or dies. Here, every process keeps a connection to process 0, which listens at the address
that all of them are given:

1. Each says who it is and what it is about to do: its settings and versions. Process 0 compares
   these with its own and tells all of them the verdict, either what is wrong or the port at which
   JAX may then join them.
2. The connections stay open. The kernel closes those of a process that dies, and keep-alive packets
   find a machine that is gone. Process 0 tells the others, and each ends with one line, which is
   the last: JAX may have written of broken connections before it.
"""

import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from segjax.training.connection import Connection, free_port, listen
from segjax.training.distributed import Place

RETRY = 0.2  # seconds between two attempts to reach process 0
MARGIN = 10.0  # seconds that the verdict may come later than process 0's own deadline
GRACE = 2.0  # seconds in which a process may end by itself, in its own words, or hear the cause
MOST_SHOWN = 5  # differences in a message

# sysexits.h's EX_TEMPFAIL: the same command, started again, goes on.
TRY_AGAIN = 75


class ProcessesDiffer(RuntimeError):
    """Processes cannot train together; the message says which of them and why."""


@dataclass
class Meeting:
    """The processes that train together, as one of them sees them.

    Attributes:
      place: this process's.
      jax_address: host:port at which JAX may join the processes.
    """

    place: Place
    jax_address: str
    _connections: dict[int, "Connection"] = field(repr=False)
    _leaving: bool = False

    def watch(self, end: Callable[[str, int], None] | None = None) -> None:
        """Ends this process once another has failed or died.

        Args:
          end: called with a message and an exit status; None prints the message and exits at once,
            since the main thread may wait for a process that is gone.
        """
        if end is None:
            _delay_aborts()
        thread = threading.Thread(
            target=self._watch, args=(end or _exit_at_once,), name="meeting", daemon=True
        )
        thread.start()

    def leave(self, failure: str | None = None) -> None:
        """Says that this process ends: normally, or by a failure with this message."""
        self._leaving = True
        self._tell(self._connections, {"end": failure or ""})
        if failure is None:
            for connection in self._connections.values():
                connection.close()

    def wait_for_news(self) -> None:
        """Waits for `watch` to hear of another process's end, and then to end this process."""
        time.sleep(GRACE)

    def _watch(self, end) -> None:
        heard = dict(self._connections)  # those that have not said goodbye
        while heard:
            try:
                ready, _, _ = select.select([each.socket for each in heard.values()], [], [], 1.0)
            except (OSError, ValueError):  # `leave` has closed them
                return
            if self._leaving:
                return
            for index, connection in [*heard.items()]:
                if connection.socket not in ready and not connection.has_line:
                    continue
                try:
                    said = connection.read(0.0)
                except TimeoutError:
                    continue  # part of a line
                if said is not None and said.get("end") == "":
                    del heard[index]
                    continue
                self._hear(index, connection, said, heard, end)
                return

    def _hear(self, index, connection, said, heard, end) -> None:
        """Tells the others about a process that failed or died, and ends this one."""
        if said is None:
            message = (
                f"{connection.name} ended without a word: it was killed, ran out of memory, or its "
                "machine is gone; its own output says more. The same command resumes from the last "
                "checkpoint"
            )
            verdict = {"lost": message}
        elif "lost" in said:
            message, verdict = said["lost"], said
        else:
            message = said["end"]
            if not message.startswith("process "):
                message = f"{connection.name}: {message}"
            verdict = {"end": message}
        self._tell({i: c for i, c in heard.items() if i != index}, verdict)
        if "end" in verdict:  # each may be about to say the same
            time.sleep(GRACE)
        if not self._leaving or "lost" in verdict:
            end(message, TRY_AGAIN if "lost" in verdict else 1)

    @staticmethod
    def _tell(connections: Mapping[int, "Connection"], said: dict) -> None:
        for connection in connections.values():
            with suppress(OSError):  # it is gone
                connection.write(said)


def meet(place: Place, facts: Mapping[str, object], *, wait: float) -> Meeting:
    """Waits for the other processes, and compares what all of them are about to do.

    Args:
      place: this process's place; at least two processes take part.
      facts: JSON values by name, which must be the same in all processes.
      wait: seconds to wait for the others.

    Raises:
      ProcessesDiffer: processes are missing, cannot be reached, have the same number or other
        facts. All that take part raise it, with one message.
    """
    hello = {
        "index": place.index,
        "count": place.count,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "facts": dict(facts),
    }
    deadline = time.monotonic() + wait
    if place.index == 0:
        return _lead(place, hello, deadline, wait)
    return _join(place, hello, deadline, wait)


def _lead(place: Place, hello: dict, deadline: float, wait: float) -> Meeting:
    """Process 0's part."""
    try:
        server = listen(place.port, backlog=place.count)
    except OSError as error:
        raise ProcessesDiffer(
            f"process 0 cannot listen on port {place.port} of {socket.gethostname()} "
            f"({error.strerror}): another run, or a second process 0, uses it; take another port"
        ) from error
    came: dict[int, Connection] = {}
    refused: list[Connection] = []
    problem = None
    with server:
        while problem is None and len(came) < place.count - 1:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([server], [], [], left)[0]:
                problem = _missing(place, came, wait)
                break
            connection = Connection(server.accept()[0])
            # Others than processes of a run may knock too.
            with suppress(OSError, ValueError):
                said = connection.read(min(5.0, max(deadline - time.monotonic(), 0.1)))
                if said is None or not _is_hello(said, hello):
                    connection.close()
                    continue
                connection.name = _name(said)
                problem = _misfit(place, said, came, hello)
                if problem is None:
                    came[said["index"]] = connection
                else:
                    refused.append(connection)
    port = free_port()
    verdict = {"problem": problem} if problem else {"port": port}
    for connection in (*came.values(), *refused):
        with suppress(OSError):
            connection.write(verdict)
    if problem:
        for connection in (*came.values(), *refused):
            connection.close()
        raise ProcessesDiffer(problem)
    return Meeting(place, _address(place.host, port), came)


def _join(place: Place, hello: dict, deadline: float, wait: float) -> Meeting:
    """The part of every other process."""
    while True:
        try:
            connection = Connection(
                socket.create_connection(
                    (place.host, place.port), timeout=max(deadline - time.monotonic(), 1.0)
                )
            )
            break
        except OSError as error:
            if time.monotonic() + RETRY > deadline:
                raise ProcessesDiffer(
                    f"process {place.index} did not reach process 0 at {place.address} within "
                    f"{wait:g} s ({error.strerror or error}): expected it to be started there; "
                    "--distributed.wait-seconds sets how long to wait"
                ) from error
            time.sleep(RETRY)
    connection.name = f"process 0 at {place.address}"
    try:
        connection.write(hello)
        verdict = connection.read(max(deadline - time.monotonic(), 0) + MARGIN)
    except (OSError, ValueError):
        verdict = None
    if verdict is not None and "port" in verdict:
        return Meeting(place, _address(place.host, verdict["port"]), {0: connection})
    connection.close()
    raise ProcessesDiffer(
        (verdict or {}).get("problem")
        or f"{connection.name} gave process {place.index} no answer: it has ended, or another "
        "program listens there"
    )


def _misfit(place: Place, said: dict, came: Mapping, hello: dict) -> str | None:
    """Says why a process cannot take part; None if it can."""
    index = said["index"]
    if said["count"] != place.count:
        return (
            f"{_name(said)} was started with --distributed.num-processes {said['count']}, process "
            f"0 with {place.count}"
        )
    if index in came or index == 0:
        other = came[index].name if index in came else _name(hello)
        return f"{_name(said)} has the --distributed.process-id of {other}; each needs its own"
    mine, its = hello["facts"], said["facts"]
    unlike = [
        f"{name}: {its.get(name)} there, {mine.get(name)} in process 0"
        for name in dict.fromkeys([*mine, *its])
        if mine.get(name) != its.get(name)
    ]
    if not unlike:
        return None
    more = f"; {len(unlike) - MOST_SHOWN} more" if len(unlike) > MOST_SHOWN else ""
    return (
        f"{_name(said)} differs from process 0, and all must run the same command with the same "
        f"versions: {'; '.join(unlike[:MOST_SHOWN])}{more}"
    )


def _missing(place: Place, came: Mapping[int, "Connection"], wait: float) -> str:
    absent = [str(index) for index in range(1, place.count) if index not in came]
    which = f"process {absent[0]}" if len(absent) == 1 else f"processes {', '.join(absent)}"
    return (
        f"{which} of {place.count} did not reach process 0 at {place.address} within {wait:g} s: "
        "not started, ended by an error of their own, or unable to connect; "
        "--distributed.wait-seconds sets how long to wait"
    )


def _name(said: Mapping) -> str:
    return f"process {said['index']} on {said['host']} (pid {said['pid']})"


def _is_hello(said: dict, hello: dict) -> bool:
    return all(type(said.get(name)) is type(value) for name, value in hello.items())


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _delay_aborts():
    """Lets this process live for 6 s after an abort, in which the watch may end it with the cause.

    When another process dies, JAX's coordination client and gloo abort in threads of their own, at
    the moment at which the watch hears of the death. The signal's handler is C's `sleep`, which
    takes the signal's number, 6, as seconds. It needs neither Python's lock nor memory.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _exit_at_once(message: str, status: int) -> NoReturn:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(status)
