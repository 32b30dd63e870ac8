"""Commands in processes that are forked from one that has imported everything: a start costs no seconds.

The server reads a request a line (JSON) and answers with the exit code and the seconds; `Server` is its client. The
process that is struck (see `injector.c`) is a whole one: it ends as the command line ends.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HANGS = "no end"
"""The exit code of a process that had to be killed after its time."""


@dataclass(frozen=True)
class Outcome:
    """One process: its exit code (negative: the signal that ended it; HANGS), its seconds, the wall clock at its end,
    the seconds from the strike to it, and its two streams.
    """

    code: int | str
    seconds: float
    ended: float
    after_strike: float
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The last line of stderr."""
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else ""


def environment(cache: Path | None = None, **more: str) -> dict[str, str]:
    """The environment of a run on one CPU device, with compilations kept in the folder `cache`."""
    cached = {"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {}
    variables = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"} | cached
    variables |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    return variables | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} | more


@dataclass(frozen=True)
class Strike:
    """A signal after some seconds, which count from the start, or from when a file has some lines."""

    signal: int
    seconds: float
    file: str = ""
    lines: int = 0

    def is_ready(self) -> bool:
        """True if the seconds are to be counted."""
        try:
            return not self.file or Path(self.file).read_bytes().count(b"\n") >= self.lines
        except OSError:
            return False


class Server:
    """A server process. `preload` is a library for LD_PRELOAD; `folder` gets the streams of the runs."""

    def __init__(self, folder: Path, env: Mapping[str, str], preload: Path | None = None) -> None:
        self.folder, self.number = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        preloaded = {"LD_PRELOAD": str(preload)} if preload else {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.fork_server"], env={**env, **preloaded}, cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def run(
        self, argv: Sequence[object], env: Mapping[str, str] | None = None, limit: float = 300.0,
        strike: Strike | None = None,
    ) -> Outcome:  # fmt: skip
        """`jaxlm ARGV`, with more variables, and a signal if there is a strike. Killed after `limit` s."""
        self.number += 1
        streams = [self.folder / f"{self.number}.{name}" for name in ("out", "err")]
        request = {"argv": [str(word) for word in argv], "env": dict(env or {}), "streams": list(map(str, streams))}
        request |= {"limit": limit, "strike": strike and asdict(strike)}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        out, err = (file.read_text(encoding="utf-8", errors="replace") for file in streams)
        return Outcome(**answer, out=out, err=err)


def serve() -> None:
    """Answer requests until stdin ends."""
    import orbax.checkpoint  # noqa: F401

    import jaxlm.cli.training.prepare
    import jaxlm.cli.training.train
    import jaxlm.training.loop  # noqa: F401
    from benchmarks.faults import families  # noqa: F401
    from jaxlm.cli.main import main

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        start, child = time.monotonic(), os.fork()
        if not child:
            _redirect(request["streams"])
            os.environ.update(request["env"])
            sys.exit(main(request["argv"]))
        strike = Strike(**request["strike"]) if request["strike"] else None
        code, struck = _wait(child, start, request["limit"], strike)
        now = time.monotonic()
        answer = {"code": code, "seconds": now - start, "ended": time.time(), "after_strike": now - (struck or now)}
        print(json.dumps(answer), file=answers, flush=True)


def _redirect(streams: Sequence[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)


def _wait(child: int, start: float, limit: float, strike: Strike | None) -> tuple[int | str, float | None]:
    """The exit code of a child, which gets its signal and, after `limit` seconds, SIGKILL; when it got the signal."""
    ready = struck = None
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic()
        if pid:
            return os.waitstatus_to_exitcode(status), struck
        if strike and ready is None and strike.is_ready():
            ready = now if strike.file else start
        if strike and ready is not None and struck is None and now >= ready + strike.seconds:
            os.kill(child, strike.signal)
            struck = now
        if now - start >= limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return HANGS, struck
        time.sleep(0.002)


if __name__ == "__main__":
    serve()
