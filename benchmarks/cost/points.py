"""The plans behind `docs/scaling-cost.md`: a command of `jaxlm plan` for each point of each curve."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

KEPT = (
    "topology mesh batch tokens accumulate memory available_memory fits model_flops step_flops bytes_moved collectives "
    "seconds mfu tokens_per_second compiler"
).split()
"""The fields of a plan that are stored."""


@dataclass(frozen=True)
class Point:
    """One plan: its curve, its place on the axis, the words after `jaxlm plan`, and if its program is compiled."""

    curve: str
    x: float
    words: str
    compiled: bool = False

    @property
    def key(self) -> str:
        return point_key(self.curve, self.x, self.compiled)

    @property
    def command(self) -> str:
        return f"jaxlm plan {self.words}{'' if self.compiled else ' --analytic'}"


GPT2_SIZES = {"small": 124e6, "medium": 355e6, "large": 774e6, "xl": 1558e6}
SLICES = {1: "1x1", 4: "2x2", 16: "4x4", 64: "8x8", 256: "16x16"}
CONTEXTS = (1024, 2048, 4096, 8192, 16_384)
ROWS = (32, 64, 128, 256, 512)
"""Windows of 1,024 tokens in a batch, from 32k to 524k tokens."""


COMPILED = {"tokens": (2**15, 2**17), "devices": (256,), "presets": (1, 2, 5, 9, 10)}
"""Curve -> the places that are also compiled, which takes minutes each; the others are estimated by formula."""


def points() -> list[Point]:
    """Every point, curve by curve; where there are both, first the estimate, then the compiled program."""
    both = []
    for point in [*_curves(), *presets()]:
        both.append(point)
        if point.x in COMPILED.get(point.curve, ()):
            both.append(dataclasses.replace(point, compiled=True))
    return both


def _curves() -> Iterator[Point]:
    small = "experiments.gpt2:small"
    for rows in ROWS:
        words = f"{small} --topology v5e:1x1 --batching.rows {rows} --grad-accum {rows // 8}"
        yield Point("tokens", rows * 1024, words)
    for length in CONTEXTS:
        words = f"{small} --topology v5e:1x1 --batching.length {length} --model.max_length {length}"
        rows = 2**17 // length
        yield Point("context", length, f"{words} --batching.rows {rows} --grad-accum {min(16, rows)}")
    for name, size in GPT2_SIZES.items():
        words = f"experiments.gpt2:{name} --topology v5e:4x4 --mesh fsdp=16 --grad-accum 8"
        yield Point("parameters", size, words)
    for devices, shape in SLICES.items():
        accumulate = max(1, 64 // devices)
        words = f"{small} --topology v5e:{shape} --mesh data={devices} --grad-accum {accumulate}"
        yield Point("devices", devices, words)


def presets() -> list[Point]:
    """The presets on the slices that they are meant for; the axis is their number in this list."""
    big = "experiments.wmt14:big_en_de --model.dtype bfloat16 --mesh data=16 --topology"
    words = [
        "experiments.gpt2:xl --topology v5e:16x16 --mesh data=4,fsdp=64 --grad-accum 1",
        "experiments.llama:llama_8b --topology v5p:4x4x4 --mesh fsdp=64 --grad-accum 8",
        "experiments.llama:llama_8b --topology v6e:16x16 --mesh fsdp=256 --grad-accum 2",
        *(f"{big} v5e:4x4 --batching.tokens {tokens}" for tokens in (25_000, 100_000, 200_000)),
        *(f"{big} v5p:2x2x4 --batching.tokens {tokens}" for tokens in (25_000, 100_000, 200_000)),
        f"{big} v5p:2x2x4 --batching.tokens 100000 --model.no-scan",
    ]
    return [Point("presets", index, line) for index, line in enumerate(words, 1)]


def point_key(curve: str, x: float, compiled: bool) -> str:
    """The name of a point."""
    return f"{curve} {x:g} {'compiled' if compiled else 'estimated'}"


def plan(point: Point, seconds: float = 1800) -> dict[str, Any]:
    """Plan the point: its stored fields. Raises RuntimeError with the end of the messages if it fails."""
    command = [sys.executable, "-m", *point.command.split(), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    if not done.stdout.strip():
        raise RuntimeError(f"{point.command}: exit code {done.returncode}: {done.stderr[-1000:]}")
    whole = json.loads(done.stdout.splitlines()[-1])
    fields = {name: whole.get(name) for name in KEPT}
    return {"curve": point.curve, "x": point.x, "compiled": point.compiled, "command": point.command, **fields}
