"""Load on `jaxlm serve`: many requests at once, some broken, some whose client goes; and the same one line at a time.

    python -m benchmarks.serve runs/quickstart
    python -m benchmarks.serve runs/quickstart --requests 400 --batch 16

Sends the first lines of the run's test set, a line a request, all at once. Every answer must equal that of `jaxlm
predict --fixed-batch` to the bit, every broken request must be refused with status 400, and the server must be idle
afterwards. Then the same requests meet a server with one place, which translates line by line. The first load compiles
and is not timed. The last line is JSON; the exit code is 1 if an answer differs.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.contest import machine

BROKEN, GOES = "broken", "goes"
BROKEN_BODIES = (b'{"text": ', b'{"text": 7}', b'{"line": "a"}', b'{"text": "\xff"}', b'{"text": ["a", null]}')


def main() -> int:
    """Measure and print."""
    options = _options()
    lines = _lines(options.workdir, options.requests)
    kinds = [_kind(number, options) for number in range(len(lines))]
    results = {}
    for name, batch in (("together", options.batch), ("one at a time", 1)):
        expected = _predicted(options.workdir, lines, batch)
        with _server(options.workdir, batch) as port:
            for _ in range(2):
                seconds, waits, wrong = asyncio.run(_load(port, lines, kinds, expected))
            answered = len(waits)
        results[name] = {
            "answers": answered, "wrong": wrong, "seconds": seconds, "answers_per_second": answered / seconds,
            "median_wait": statistics.median(waits), "longest_wait": max(waits),
        }  # fmt: skip
        print(f"{name}: {answered} answers in {seconds:.2f} s, {answered / seconds:.1f} a second, wait "
              f"{statistics.median(waits):.2f} s (median) and {max(waits):.2f} s (longest), {wrong} wrong")  # fmt: skip
    count = {kind: kinds.count(kind) for kind in (BROKEN, GOES)}
    print(json.dumps({"benchmark": "serve", "machine": machine(), "requests": len(lines), **count, "results": results}))
    return int(any(result["wrong"] for result in results.values()))


def _kind(number: int, options: argparse.Namespace) -> str:
    """Every n-th request is broken, or its client goes."""
    if number % round(100 / options.broken_percent) == 3:
        return BROKEN
    return GOES if number % round(100 / options.gone_percent) == 7 else ""


def _lines(workdir: str, count: int) -> list[str]:
    import jaxlm

    lines = [source for source, _ in jaxlm.load(workdir).experiment.task.test]
    return (lines * -(-count // len(lines)))[:count]


def _predicted(workdir: str, lines: list[str], batch: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "jaxlm", "predict", workdir, "--fixed-batch", str(batch), "--jsonl"]
    text = "".join(f"{line}\n" for line in lines).encode()
    output = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    return [json.loads(line) for line in output.splitlines()]


@contextmanager
def _server(workdir: str, batch: int) -> Iterator[int]:
    command = [sys.executable, "-m", "jaxlm", "serve", workdir, "--port", "0", "--batch", str(batch)]
    command += ["--max-requests", "1000", "--timeout", "300"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        yield next(int(line.split(":")[2].split(";")[0]) for line in process.stderr if line.startswith("serving at"))
    finally:
        process.terminate()
        if (code := process.wait(60)) != 0:
            raise SystemExit(f"the server ended with {code}")


async def _load(port: int, lines: list[str], kinds: list[str], expected: list) -> tuple[float, list[float], int]:
    """Seconds of all, the waits of the answered requests, and the number of wrong answers."""
    start = time.perf_counter()
    pairs = [_one(port, number, lines[number], kinds[number]) for number in range(len(lines))]
    replies = await asyncio.gather(*pairs)
    seconds, waits, wrong = time.perf_counter() - start, [], 0
    for (status, body, wait), kind, record in zip(replies, kinds, expected, strict=True):
        if not kind:
            waits.append(wait)
            wrong += status != 200 or body["answers"] != [record]
        elif kind == BROKEN:
            wrong += status != 400 or "message" not in body["error"]
    for _ in range(100):
        if (await _request(port, b"GET /health HTTP/1.1\r\n", b""))[1]["requests"] == 0:
            return seconds, waits, wrong
        await asyncio.sleep(0.1)
    raise SystemExit("requests of clients that have gone are still in progress")


async def _one(port: int, number: int, line: str, kind: str) -> tuple[int, Any, float]:
    start = time.perf_counter()
    body = BROKEN_BODIES[number % len(BROKEN_BODIES)] if kind == BROKEN else json.dumps({"text": line}).encode()
    head = b"POST /v1/translate HTTP/1.1\r\nContent-Type: application/json\r\n"
    status, reply = await _request(port, head, body, goes=kind == GOES)
    return status, reply, time.perf_counter() - start


async def _request(port: int, head: bytes, body: bytes, goes: bool = False) -> tuple[int, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    length = f"Host: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head + length.encode() + body)
    await writer.drain()
    if goes:
        await asyncio.sleep(0.02)
        writer.transport.abort()
        return 0, None
    reply = await reader.read()
    writer.close()
    top, _, text = reply.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workdir")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8, help="places of the server (default: 8)")
    parser.add_argument("--broken-percent", type=float, default=5)
    parser.add_argument("--gone-percent", type=float, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
