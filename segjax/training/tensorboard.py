"""TensorBoard's event files, written in the thread that logs.

tensorboardX's `SummaryWriter` writes in a thread of its own. On a full disk, that thread ends, its
queue fills up and the training hangs. Here the error reaches the caller.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

# The module makes its classes when it is imported, so a type checker does not find them.
_messages: Any = event_pb2


class EventFile:
    """Writes scalars and pictures to a new event file: a `segjax.training.logging.Tracker`.

    Args:
      folder: the folder, created if needed.
      purge_step: TensorBoard discards the events of earlier files from this step on.
    """

    def __init__(self, folder: Path, *, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard expects whole seconds. A run may start twice in one, hence the suffix.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._file = (folder / f"{name}.{os.getpid()}.{time.monotonic_ns()}").open("wb")
        self._write(_messages.Event(file_version="brain.Event:2"))
        start = _messages.SessionLog(status=_messages.SessionLog.START)
        self._write(_messages.Event(step=purge_step, session_log=start))

    def scalars(self, step: int, values: Mapping[str, float]):
        """Writes numbers by name."""
        for name, value in values.items():
            self._write(_messages.Event(step=step, summary=summary.scalar(name, value)))

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]):
        """Writes pictures, uint8 RGB [height, width, 3], by name."""
        for name, picture in pictures.items():
            image = summary.image(name, picture, dataformats="HWC")
            self._write(_messages.Event(step=step, summary=image))

    def close(self, *, failed: bool):
        """Closes the file."""
        del failed
        self._file.close()

    def _write(self, event):
        """Writes a record of the TFRecord format."""
        event.wall_time = time.time()
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._file.write(length + _checksum(length) + data + _checksum(data))
        self._file.flush()


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))
