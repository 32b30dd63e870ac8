"""Standard output and error as a caller may leave them: closed, full, or without a reader."""

import contextlib
import io
import os
import sys


class Messages(io.TextIOWrapper):
    """Standard error. A message that nobody can read is lost; it does not end a run."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def open_streams() -> None:
    """Let closed streams end in the null device: the next file to be opened must not take the number of one of them,
    since libraries write messages to that number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = Messages(open(2, "wb", closefd=False), "utf-8", "backslashreplace", line_buffering=True)


def close_stdout() -> None:
    """Write what is pending; what cannot be written is lost, and Python's own flush at exit finds nothing to do."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor (in tests)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
