"""A TensorBoard event file. It is written when the call returns, or has raised OSError: no thread fails later."""

import logging
import platform
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.filesystem import write_all


class EventFile:
    """A new file in `folder`. TensorBoard forgets what older files have from `first_step` on (None: nothing)."""

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        self._tensorboardx: Any = _import_tensorboardx()
        folder.mkdir(parents=True, exist_ok=True)
        # The time in whole seconds, as TensorBoard sorts the files by it, and then a name of its own.
        name = f"events.out.tfevents.{time.time():010.0f}.{platform.node()}.{time.time_ns()}"
        self._file = open(folder / name, "xb", buffering=0)
        self._write_event(file_version="brain.Event:2")
        if first_step is not None:
            session_log = self._tensorboardx.proto.event_pb2.SessionLog
            self._write_event(step=first_step, session_log=session_log(status=session_log.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one number a name."""
        summary = self._tensorboardx.proto.summary_pb2.Summary
        shown = [summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write_event(step=step, summary=summary(value=shown))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write_event(self, **fields: Any) -> None:
        event = self._tensorboardx.proto.event_pb2.Event(wall_time=time.time(), **fields).SerializeToString()
        length, checksum = struct.pack("<Q", len(event)), self._tensorboardx.record_writer.masked_crc32c
        parts = length, struct.pack("<I", checksum(length)), event, struct.pack("<I", checksum(event))
        write_all(self._file, b"".join(parts))


def _import_tensorboardx() -> Any:
    """The package tensorboardX, kept from importing torch, which takes seconds and is not needed."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]  # tensorboardX expects the ImportError
    try:
        import tensorboardX.proto.event_pb2
        import tensorboardX.proto.summary_pb2
        import tensorboardX.record_writer
    finally:
        if hide:
            del sys.modules["torch"]
    logging.getLogger("tensorboardX").setLevel(logging.ERROR)
    return tensorboardX
