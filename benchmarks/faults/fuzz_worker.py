"""One process of the fuzzer: reads damaged files until its time is over, and writes down what was no refusal.

Case k of a reader is a function of (seed, reader, k). The number of the case in progress is in the file `progress`, so
that the parent knows it when this process hangs or dies in foreign code.
"""

import json
import mmap
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.mutate import mutate
from benchmarks.faults.readers import READERS, Reader
from benchmarks.faults.readers_models import MODEL_READERS
from benchmarks.faults.readers_storage import STORAGE_READERS

ALL_READERS: dict[str, Reader] = READERS | STORAGE_READERS | MODEL_READERS
CASE_SECONDS = 5
CASE_BYTES = 1 << 30
ADDRESS_SPACE = 6 << 30
"""Of what a case may allocate beyond what the process has; more ends as MemoryError."""
SHRINK_SECONDS = 3.0


class Hang(BaseException):
    """A case has used its time."""


class Peak(Exception):
    """A case has used its memory."""


def case(name: str, wholes: Sequence[bytes], seed: int, number: int) -> bytes:
    """The damaged file of a case."""
    draw = random.Random(f"{seed}/{name}/{number}")
    return mutate(draw.choice(wholes), wholes, draw)


def fault_of(reader: Reader, content: bytes, folder: Path) -> tuple[str, str] | None:
    """(kind and place, message) of what a reader did wrong with a file; None if it read or refused it."""
    from jaxlm.errors import UserError

    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
    try:
        reader.read(content, folder)
    except UserError as refusal:
        if not str(refusal).strip() or len(str(refusal)) > 100_000:
            return "message", f"a message of {len(str(refusal))} characters"
    except Hang:
        return "hang", f"no end within {CASE_SECONDS} s"
    except Exception as error:
        kind = "peak" if isinstance(error, MemoryError) else type(error).__name__
        return f"{kind} {_place(error)}", str(error).partition("\n")[0][:200]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    used = peak_bytes() - before
    return ("peak", f"{used / 2**30:.1f} GiB") if used > CASE_BYTES else None


def _place(error: BaseException) -> str:
    """The innermost function of jaxlm in a traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/jaxlm/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/jaxlm/')[2]}:{frames[-1].name}" if frames else "elsewhere"


def peak_bytes() -> int:
    """Peak of this process's resident memory; unlike ru_maxrss, without that of the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def shrink(reader: Reader, content: bytes, kind: str, folder: Path) -> bytes:
    """A smaller file with the same fault: pieces are cut out while the fault stays."""
    end, size = time.monotonic() + SHRINK_SECONDS, max(1, len(content) // 2)
    while size and time.monotonic() < end:
        at, cut = 0, False
        while at < len(content) and time.monotonic() < end:
            shorter = content[:at] + content[at + size :]
            fault = fault_of(reader, shorter, folder)
            if fault and fault[0] == kind:
                content, cut = shorter, True
            else:
                at += size
        size = size if cut else size // 2
    return content


def _on_alarm(*_: Any) -> None:
    raise Hang


def main(name: str, seed: int, first: int, seconds: float, folder: Path) -> None:
    """Read cases from number `first` on; write the faults to `faults.jsonl` and their smallest files next to it."""
    reader = ALL_READERS[name]
    (folder / "read").mkdir(parents=True, exist_ok=True)
    wholes = reader.prepare(folder / "read")
    for whole in wholes:
        reader.read(whole, folder / "read")  # a whole file is read
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, resource.RLIM_INFINITY))
    with (folder / "progress").open("w+b") as file:
        file.truncate(8)
        progress, seen, number = mmap.mmap(file.fileno(), 8), set(), first
        end = time.monotonic() + seconds
        with (folder / "faults.jsonl").open("a") as faults:
            while time.monotonic() < end:
                progress[:] = number.to_bytes(8, "little")
                content = case(name, wholes, seed, number)
                (folder / "current.bin").write_bytes(content)
                fault = fault_of(reader, content, folder / "read")
                if fault and fault[0] not in seen:
                    seen.add(fault[0])
                    small = content if fault[0] == "hang" else shrink(reader, content, fault[0], folder / "read")
                    (folder / f"{number}.bin").write_bytes(small)
                    record = {"case": number, "kind": fault[0], "message": fault[1], "bytes": len(small)}
                    print(json.dumps(record), file=faults, flush=True)
                    end += SHRINK_SECONDS
                number += 1
    print(json.dumps({"cases": number - first}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
