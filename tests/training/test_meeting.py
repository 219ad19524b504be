"""Processes that meet before they train together, here as threads, and watch over one another."""

import queue
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from segjax.training import meeting as meetings
from segjax.training.connection import Connection
from segjax.training.distributed import Place
from segjax.training.meeting import TRY_AGAIN, ProcessesDiffer, meet

pytestmark = pytest.mark.quick
FACTS = {"seed": 0, "version of jax": "0.12.0"}


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(meetings, "GRACE", 0.2)


def together(address, *places, wait=5.0, facts=None):
    """Returns what each process gets from `meet`, its meeting or its error.

    Args:
      places: (index, count) of each process.
      facts: those of some processes, by their position in `places`.
    """

    def one(number):
        index, count = places[number]
        try:
            return meet(Place(address, count, index), (facts or {}).get(number, FACTS), wait=wait)
        except ProcessesDiffer as error:
            return error

    with ThreadPoolExecutor(len(places)) as threads:
        return [*threads.map(one, range(len(places)))]


@pytest.fixture(autouse=True)
def close_all(monkeypatch):
    """Closes the connections, as the end of a process does."""
    opened = []
    before = Connection.__init__

    def remember(self, connected):
        opened.append(connected)
        before(self, connected)

    monkeypatch.setattr(Connection, "__init__", remember)
    yield
    for connected in opened:
        connected.close()


def messages(results):
    assert all(isinstance(result, ProcessesDiffer) for result in results), results
    found = {str(result) for result in results}
    assert all("\n" not in message for message in found)
    return found


def test_processes_that_agree_meet_and_get_one_address_for_jax(address):
    results = together(address, (2, 3), (0, 3), (1, 3))
    addresses = {result.jax_address for result in results}
    assert len(addresses) == 1
    assert addresses != {address}
    assert addresses.pop().startswith("127.0.0.1:")
    for result in results:
        result.leave()


@pytest.mark.parametrize(
    ("places", "facts", "message"),
    [
        (
            [(0, 2), (1, 2)],
            {1: {**FACTS, "seed": 1}},
            r"process 1 on .* differs from process 0, .*: seed: 1 there, 0 in process 0$",
        ),
        (
            [(0, 2), (1, 2)],
            {1: {"seed": 0}},
            r"version of jax: None there, 0\.12\.0 in process 0$",
        ),
        (
            [(0, 2), (1, 2)],
            {1: {f"key {i}": i for i in range(9)}},
            r"; 6 more$",
        ),
        (
            [(0, 3), (1, 3), (1, 3)],
            {},
            r"process 1 on .* has the --distributed.process-id of process 1 on .*; each needs",
        ),
        (
            [(0, 2), (1, 3)],
            {},
            r"process 1 on .* was started with --distributed.num-processes 3, process 0 with 2$",
        ),
    ],
    ids=["a setting", "a version", "many settings", "the same id", "another number"],
)
def test_processes_that_cannot_train_together_all_hear_why(address, places, facts, message):
    found = messages(together(address, *places, facts=facts))
    assert len(found) == 1
    with pytest.raises(ProcessesDiffer, match=message):
        raise ProcessesDiffer(found.pop())


def test_a_process_that_does_not_come_is_named_to_all_that_came(address):
    (message,) = messages(together(address, (0, 4), (2, 4), wait=0.5))
    assert message.startswith(f"processes 1, 3 of 4 did not reach process 0 at {address} within")


def test_a_process_0_that_does_not_come_is_named(address):
    (message,) = messages(together(address, (1, 2), wait=0.5))
    assert message.startswith(f"process 1 did not reach process 0 at {address} within 0.5 s (")


def test_an_address_of_no_machine_is_named():
    (message,) = messages(together("no-such-machine.invalid:1234", (1, 2), wait=0.3))
    assert "at no-such-machine.invalid:1234 within 0.3 s" in message


def test_a_port_in_use_is_named(address):
    host, port = address.split(":")
    with socket.create_server((host, int(port))):
        (message,) = messages(together(address, (0, 2), wait=0.5))
    assert message.startswith(f"process 0 cannot listen on port {port} of ")


def test_another_program_at_the_address_is_no_process_0(address):
    host, port = address.split(":")
    with (
        ThreadPoolExecutor(1) as threads,
        socket.create_server((host, int(port))) as server,
    ):
        joining = threads.submit(together, address, (1, 2), wait=1.0)
        with server.accept()[0] as connected:
            connected.sendall(b"HTTP/1.1 400 Bad Request\n")
            (message,) = messages(joining.result())
    assert "gave process 1 no answer" in message


def test_strangers_that_knock_at_process_0_do_not_count(address):
    host, port = address.split(":")
    with ThreadPoolExecutor(1) as threads:
        meeting = threads.submit(together, address, (0, 2), (1, 2))
        for said in (b"GET / HTTP/1.1\n", b"{}\n", b'{"index": "1"}\n', b""):
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                try:
                    with socket.create_connection((host, int(port))) as stranger:
                        stranger.sendall(said)
                    break
                except OSError:
                    if meeting.done():
                        break
        results = meeting.result()
    assert [type(result).__name__ for result in results] == ["Meeting", "Meeting"]
    for result in results:
        result.leave()


def watched(address, count=3):
    """Meetings of that many processes, and where each puts the end that it hears of."""
    results = together(address, *((index, count) for index in range(count)))
    ends = [queue.Queue() for _ in results]
    for result, end in zip(results, ends, strict=True):
        result.watch(lambda *heard, end=end: end.put(heard))
    return results, ends


def die(meeting):
    """What the kernel does with the connections of a killed process."""
    for connection in meeting._connections.values():
        connection.socket.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_all_hear_at_once_of_a_process_that_was_killed(address, victim):
    results, ends = watched(address)
    results[victim]._leaving = True  # its own thread is dead, too
    die(results[victim])
    for index in {0, 1, 2} - {victim}:
        message, status = ends[index].get(timeout=5)
        assert message.startswith(f"process {victim} ")
        assert "ended without a word" in message
        assert "The same command resumes from the last checkpoint" in message
        assert status == TRY_AGAIN
    assert ends[victim].empty()


ABORTED = """
import ctypes, socket, threading, time
from segjax.training.connection import Connection
from segjax.training.distributed import Place
from segjax.training.meeting import Meeting
server = socket.create_server(("localhost", 0))
other = socket.create_connection(server.getsockname())
mine, _ = server.accept()
connection = Connection(mine)
connection.name = "process 1"
Meeting(Place("localhost:1", 2, 0), "", {1: connection}).watch()
threading.Thread(target=ctypes.CDLL(None).abort, daemon=True).start()
time.sleep(0.5)
other.close()
time.sleep(60)
"""


def test_a_process_that_a_broken_connection_aborts_still_ends_with_the_cause():
    """JAX's client and gloo abort in threads of C++, here half a second before the news come."""
    process = subprocess.run(
        [sys.executable, "-c", ABORTED], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == TRY_AGAIN, process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: process 1 ended without a word")


@pytest.mark.parametrize("failing", [0, 2])
def test_all_hear_the_message_of_a_process_that_failed(address, failing):
    results, ends = watched(address)
    results[failing].leave("data: no such folder")
    for index in {0, 1, 2} - {failing}:
        message, status = ends[index].get(timeout=5)
        assert message.startswith(f"process {failing} ")
        assert message.endswith(": data: no such folder")
        assert status == 1


def test_processes_that_fail_alike_end_in_their_own_words(address):
    results, ends = watched(address)
    for result in results:
        result.leave("the run directory holds another run")
    time.sleep(2 * meetings.GRACE)
    assert all(end.empty() for end in ends)


def test_processes_that_end_one_after_the_other_alarm_nobody(address):
    results, ends = watched(address)
    for result in (results[1], results[0], results[2]):
        result.leave()
        time.sleep(0.1)
    assert all(end.empty() for end in ends)


def test_a_connection_reads_lines_that_come_in_pieces():
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        connection = Connection(server.accept()[0])
    with one, connection.socket:
        one.sendall(b'{"a": 1}\n{"b"')
        assert connection.read(1.0) == {"a": 1}
        with pytest.raises(TimeoutError):
            connection.read(0.05)
        one.sendall(b": 2}\n[1]\n")
        assert connection.read(1.0) == {"b": 2}
        with pytest.raises(ValueError, match="not a process of a run"):
            connection.read(1.0)
        one.close()
        assert connection.read(1.0) is None
