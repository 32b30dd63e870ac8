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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HANGS = "no end"
"""The exit code of a process that had to be killed after its time."""


@dataclass(frozen=True)
class Outcome:
    """One process: its exit code (negative: the signal that ended it; HANGS), its seconds, the wall clock at its end,
    and its two streams.
    """

    code: int | str
    seconds: float
    ended: float
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
        strike: tuple[float, int] | None = None,
    ) -> Outcome:  # fmt: skip
        """`jaxlm ARGV`, with more variables. `strike`: (seconds after the start, signal). Killed after `limit` s."""
        self.number += 1
        streams = [self.folder / f"{self.number}.{name}" for name in ("out", "err")]
        request = {"argv": [str(word) for word in argv], "env": dict(env or {}), "streams": list(map(str, streams))}
        print(json.dumps(request | {"limit": limit, "strike": strike}), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        out, err = (file.read_text(encoding="utf-8", errors="replace") for file in streams)
        return Outcome(answer["code"], answer["seconds"], answer["ended"], out, err)


def serve() -> None:
    """Answer requests until stdin ends."""
    import orbax.checkpoint  # noqa: F401
    import tensorboardX  # noqa: F401

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
        code = _wait(child, start, request["limit"], request["strike"])
        answer = {"code": code, "seconds": time.monotonic() - start, "ended": time.time()}
        print(json.dumps(answer), file=answers, flush=True)


def _redirect(streams: Sequence[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)


def _wait(child: int, start: float, limit: float, strike: tuple[float, int] | None) -> int | str:
    """The exit code of a child, which gets its signal and, after `limit` seconds, SIGKILL."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - start
        if strike and passed >= strike[0]:
            os.kill(child, strike[1])
            strike = None
        if passed >= limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return HANGS
        time.sleep(0.002)


if __name__ == "__main__":
    serve()
