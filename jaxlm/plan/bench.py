"""Some training steps, timed: compilation cold and warm, tokens/s, step times, memory, utilisation."""

import collections
import contextlib
import ctypes
import itertools
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.chips import chip_of
from jaxlm.data.pipeline import Pipeline
from jaxlm.experiment import Experiment
from jaxlm.parallel import batch_shards, data_mesh, make_mesh
from jaxlm.placing import put_batch
from jaxlm.plan.memory import program_bytes
from jaxlm.plan.plan import causal_flops, check_steps
from jaxlm.plan.shapes import batch_of, fitted, positions
from jaxlm.train.machine import PLAIN, Machine
from jaxlm.train.meter import AHEAD
from jaxlm.train.prepare import check_rows, prepare
from jaxlm.train.program import Program, fresh_state, program
from jaxlm.train.utilisation import flops_per_token

WARM_UP = 2
"""Steps of each shape that are not timed."""
CONVENTION = (
    "FLOPs of the model: 3 x the products of the forward pass, counted in its jaxpr, of real tokens alone; attention "
    "in full (halved: causal attention counts half); the peak is the chip's dense one for the model's dtype"
)


class Repeated:
    """The same full batch for ever, without data."""

    def __init__(self, experiment: Experiment):
        self.batch = batch_of(experiment)
        self.multiple = len(jax.tree.leaves(self.batch)[0])

    def __getitem__(self, k: int) -> Any:
        return self.batch


@dataclass
class Ran:
    """What the timed steps left: seconds of each, real tokens, FLOPs with causal attention in full and halved."""

    intervals: list[float] = field(default_factory=list)
    tokens: float = 0.0
    flops: float = 0.0
    halved: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(self.intervals)


def bench(
    experiment: Experiment, note: Callable[[str], None], steps: int = 20, machine: Machine = PLAIN,
    synthetic: bool = False, profile: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Time `steps` steps on the real data, or on one full batch; figures for a JSON object.

    `profile`: a folder that gets a trace of the timed steps. Raises UserError where training would.
    """
    check_steps(experiment)
    mesh = data_mesh() if machine.mesh is None else make_mesh(machine.mesh)
    with contextlib.ExitStack() as stack:
        if synthetic:
            experiment, _ = fitted(experiment, batch_shards(mesh))
            batches: Any = Repeated(experiment)
            check_rows(batches.multiple, experiment.accumulate, batch_shards(mesh))
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
            batches = prepare(experiment, folder, note, machine).batches
        compiling, planned = _compile_times(experiment, batches[0], mesh, machine)
        made = program(experiment, fresh_state(experiment), mesh, machine)
        step, create = Compiled(made, mesh), made.create.lower().compile()
        step.of(batches[0])
        pipeline = stack.enter_context(Pipeline(batches, 0, machine.threads, machine.workers))
        made_ahead = itertools.chain([next(pipeline)], pipeline)
        _run_once(step, create(), batches[0], mesh)
        before = _resident()
        state = create()
        ran = _run(experiment, step, state, made_ahead, mesh, steps, profile)
    return _figures(experiment, ran, compiling, mesh, before) | {
        "planned_memory_bytes": planned,
        "synthetic": synthetic,
    }


def _run_once(step: "Compiled", state: Any, batch: Any, mesh: Any) -> None:
    """A step for nothing: threads, and pages of libraries and code, are had once, and are not the program's memory."""
    jax.block_until_ready(step.of(batch)(state, put_batch(batch, mesh)))


def _compile_times(experiment: Experiment, batch: Any, mesh: Any, machine: Machine) -> tuple[dict[str, float], int]:
    """Seconds to trace and compile the step, and again out of the compilation cache; and the bytes that the program
    says it needs, for a batch of this shape."""
    from jax.experimental.compilation_cache import compilation_cache

    seconds, planned, old = {}, 0, jax.config.values["jax_compilation_cache_dir"]
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
        try:
            for name in ("cold", "warm"):
                made = Compiled(program(experiment, fresh_state(experiment), mesh, machine), mesh)
                began = time.perf_counter()
                planned = program_bytes(made.of(batch).memory_analysis())
                seconds[name] = time.perf_counter() - began
                jax.clear_caches()
        finally:
            jax.config.update("jax_compilation_cache_dir", old)
            compilation_cache.reset_cache()
    return seconds, planned


class Compiled:
    """The step as one program for each shape of a batch, compiled when it is first asked for."""

    def __init__(self, made: Program, mesh: Any):
        self.made, self.mesh = made, mesh
        self.known: dict[Any, Any] = {}

    def of(self, batch: Any) -> Any:
        """The program for batches of this one's shape."""
        if (shape := shape_of(batch)) not in self.known:
            placed = jax.eval_shape(lambda: put_batch(batch, self.mesh))
            self.known[shape] = self.made.step.lower(self.made.abstract_state, placed).compile()
        return self.known[shape]


def shape_of(batch: Any) -> tuple[tuple[int, ...], ...]:
    """What decides which program a batch is for."""
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def _run(
    experiment: Experiment, step: Compiled, state: Any, batches: Iterator, mesh: Any, steps: int, profile: Path | None
) -> Ran:
    """Steps as training has them, `AHEAD` under way at once; a shape's first ones are not timed."""
    ran, seen, cost = Ran(), collections.Counter[Any](), {}
    pending: collections.deque[tuple[Any, Any]] = collections.deque()
    with contextlib.ExitStack() as stack:
        last = time.perf_counter()
        while len(ran.intervals) < steps:
            batch = next(batches)
            shape = shape_of(batch)
            if shape not in cost:
                hidden = causal_flops(experiment.model, batch) / 2 / positions(batch)
                cost[shape] = flops_per_token(experiment, batch), hidden
            timed = seen[shape] >= WARM_UP
            seen[shape] += 1
            if profile is not None and timed and not ran.intervals and not pending:
                stack.enter_context(jax.profiler.trace(str(profile), profiler_options=_of_programs()))
                last = time.perf_counter()
            state, metrics = step.of(batch)(state, put_batch(batch, mesh))
            pending.append((metrics, cost[shape]))
            while pending and (not timed or len(pending) > AHEAD or len(ran.intervals) + len(pending) >= steps):
                done, (each, less) = pending.popleft()
                tokens = float(done.count)
                now = time.perf_counter()
                if timed:
                    ran.intervals.append(now - last)
                    ran.tokens, ran.flops = ran.tokens + tokens, ran.flops + tokens * each
                    ran.halved += tokens * (each - less)
                last = now
    return ran


def _of_programs() -> Any:
    """A trace of what devices and XLA do: Python's own calls, traced, would slow the steps that are timed."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


def _figures(experiment: Experiment, ran: Ran, compiling: dict[str, float], mesh: Any, before: int) -> dict[str, Any]:
    device = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    peak = chip.peak(getattr(experiment.model, "dtype", "float32")) * mesh.size if chip else None
    at = {f"p{q}": float(np.percentile(ran.intervals, q)) for q in (10, 50, 90, 99)}
    return {
        "device": device.device_kind,
        "devices": mesh.size,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "steps": len(ran.intervals),
        "tokens_per_second": ran.tokens / ran.seconds,
        "step_seconds": at,
        "compile_seconds": compiling,
        "flops_per_second": {"full": ran.flops / ran.seconds, "halved": ran.halved / ran.seconds},
        "mfu": {
            name: done / ran.seconds / peak if peak else "n/a"
            for name, done in (("full", ran.flops), ("halved", ran.halved))
        },
        "mfu_convention": CONVENTION,
        **_memory(device, before),
    }


def _memory(device: Any, before: int) -> dict[str, Any]:
    """The most bytes at once: as the device tells it, or how much this process grew from the first state on."""
    told = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if told is not None:
        return {"peak_memory_bytes": told, "peak_memory_is": "of the first device, by its own count"}
    grown = _status("VmHWM") - before
    return {"peak_memory_bytes": grown if before else "n/a", "peak_memory_is": "growth of the process since the state"}


def _resident() -> int:
    """Bytes of this process now, from which its peak counts again; 0 where the system does not tell (not Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    if not os.path.exists("/proc/self/status"):
        return 0
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0
