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

from jaxlm.data.batching.loader import DataLoader
from jaxlm.distributed.placement import put_batch
from jaxlm.distributed.sharding import data_mesh, make_mesh, num_batch_shards
from jaxlm.experiment import Experiment
from jaxlm.perf.chips import chip_for_device_kind
from jaxlm.perf.dummy_batch import adapt_batching, num_positions, synthetic_batch
from jaxlm.perf.flops import flops_per_token
from jaxlm.planner.memory import program_bytes
from jaxlm.planner.plan import causal_attention_flops, check_has_steps
from jaxlm.training.run_options import DEFAULT_RUN_OPTIONS, RunOptions
from jaxlm.training.setup import check_batch_divisible, setup_training
from jaxlm.training.step import CompiledStep, build_compiled_step, make_init_fn
from jaxlm.training.throughput import MAX_STEPS_IN_FLIGHT
from jaxlm.workdir import Workdir

WARMUP_STEPS = 2
"""Steps of each shape that are not timed."""

MFU_CONVENTION = (
    "FLOPs of the model: 3 x the products of the forward pass, counted in its jaxpr, of real tokens alone; attention "
    "in full (halved: causal attention counts half); the peak is the chip's dense one for the model's dtype"
)


class SyntheticBatches:
    """The same full batch for ever, without data."""

    def __init__(self, experiment: Experiment):
        self.batch = synthetic_batch(experiment)
        self.row_multiple = len(jax.tree.leaves(self.batch)[0])

    def __getitem__(self, k: int) -> Any:
        return self.batch


@dataclass
class Timings:
    """What the timed steps left: seconds of each, real tokens, FLOPs with causal attention in full and halved."""

    step_times: list[float] = field(default_factory=list)
    tokens: float = 0.0
    flops: float = 0.0
    causal_halved_flops: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(self.step_times)


def run_benchmark(
    experiment: Experiment, status: Callable[[str], None], steps: int = 20,
    run_options: RunOptions = DEFAULT_RUN_OPTIONS,
    synthetic: bool = False, profile: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Time `steps` steps on the real data, or on one full batch; figures for a JSON object.

    `profile`: a folder that gets a trace of the timed steps. Raises UserError where training would.
    """
    check_has_steps(experiment)
    mesh = data_mesh() if run_options.mesh is None else make_mesh(run_options.mesh)
    with contextlib.ExitStack() as stack:
        if synthetic:
            experiment, _ = adapt_batching(experiment, num_batch_shards(mesh))
            batches: Any = SyntheticBatches(experiment)
            check_batch_divisible(batches.row_multiple, experiment.grad_accum, num_batch_shards(mesh))
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
            batches = setup_training(experiment, Workdir(folder), status, run_options).batches
        compiling, planned = _compile_times(experiment, batches[0], mesh, run_options)
        made = build_compiled_step(experiment, make_init_fn(experiment), mesh, run_options)
        step, create = StepCache(made, mesh), made.init_state.lower().compile()
        step.for_batch(batches[0])
        pipeline = stack.enter_context(DataLoader(batches, 0, run_options.threads, run_options.workers))
        made_ahead = itertools.chain([next(pipeline)], pipeline)
        _warm_up(step, create(), batches[0], mesh)
        before = _reset_peak_memory()
        state = create()
        ran = _time_steps(experiment, step, state, made_ahead, mesh, steps, profile)
    return _benchmark_metrics(experiment, ran, compiling, mesh, before) | {
        "planned_memory_bytes": planned,
        "synthetic": synthetic,
    }


def _warm_up(step: "StepCache", state: Any, batch: Any, mesh: Any) -> None:
    """A step for nothing: threads, and pages of libraries and code, are had once, and are not the program's memory."""
    jax.block_until_ready(step.for_batch(batch)(state, put_batch(batch, mesh)))


def _compile_times(
    experiment: Experiment, batch: Any, mesh: Any, run_options: RunOptions
) -> tuple[dict[str, float], int]:
    """Seconds to trace and compile the step, and again out of the compilation cache; and the bytes that the program
    says it needs, for a batch of this shape."""
    from jax.experimental.compilation_cache import compilation_cache

    seconds, planned, old = {}, 0, jax.config.values["jax_compilation_cache_dir"]
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
        try:
            for name in ("cold", "warm"):
                made = StepCache(build_compiled_step(experiment, make_init_fn(experiment), mesh, run_options), mesh)
                began = time.perf_counter()
                planned = program_bytes(made.for_batch(batch).memory_analysis())
                seconds[name] = time.perf_counter() - began
                jax.clear_caches()
        finally:
            jax.config.update("jax_compilation_cache_dir", old)
            compilation_cache.reset_cache()
    return seconds, planned


class StepCache:
    """The step as one program for each shape of a batch, compiled when it is first asked for."""

    def __init__(self, step_program: CompiledStep, mesh: Any):
        self.step_program, self.mesh = step_program, mesh
        self.compiled_by_shape: dict[Any, Any] = {}

    def for_batch(self, batch: Any) -> Any:
        """The program for batches of this one's shape."""
        if (shape := batch_shapes(batch)) not in self.compiled_by_shape:
            placed = jax.eval_shape(lambda: put_batch(batch, self.mesh))
            self.compiled_by_shape[shape] = self.step_program.train_step.lower(
                self.step_program.abstract_state, placed
            ).compile()
        return self.compiled_by_shape[shape]


def batch_shapes(batch: Any) -> tuple[tuple[int, ...], ...]:
    """What decides which program a batch is for."""
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def _time_steps(
    experiment: Experiment, step: StepCache, state: Any, batches: Iterator, mesh: Any, steps: int, profile: Path | None
) -> Timings:
    """Steps as training has them, `AHEAD` under way at once; a shape's first ones are not timed."""
    ran, seen, cost = Timings(), collections.Counter[Any](), {}
    pending: collections.deque[tuple[Any, Any]] = collections.deque()
    with contextlib.ExitStack() as stack:
        last = time.perf_counter()
        while len(ran.step_times) < steps:
            batch = next(batches)
            shape = batch_shapes(batch)
            if shape not in cost:
                hidden = causal_attention_flops(experiment.model, batch) / 2 / num_positions(batch)
                cost[shape] = flops_per_token(experiment, batch), hidden
            timed = seen[shape] >= WARMUP_STEPS
            seen[shape] += 1
            if profile is not None and timed and not ran.step_times and not pending:
                stack.enter_context(jax.profiler.trace(str(profile), profiler_options=_profile_options()))
                last = time.perf_counter()
            state, metrics = step.for_batch(batch)(state, put_batch(batch, mesh))
            pending.append((metrics, cost[shape]))
            while pending and (
                not timed or len(pending) > MAX_STEPS_IN_FLIGHT or len(ran.step_times) + len(pending) >= steps
            ):
                done, (each, less) = pending.popleft()
                tokens = float(done.count)
                now = time.perf_counter()
                if timed:
                    ran.step_times.append(now - last)
                    ran.tokens, ran.flops = ran.tokens + tokens, ran.flops + tokens * each
                    ran.causal_halved_flops += tokens * (each - less)
                last = now
    return ran


def _profile_options() -> Any:
    """A trace of what devices and XLA do: Python's own calls, traced, would slow the steps that are timed."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


def _benchmark_metrics(
    experiment: Experiment, timings: Timings, compile_seconds: dict[str, float], mesh: Any, memory_before: int
) -> dict[str, Any]:
    device = mesh.devices.flat[0]
    chip = chip_for_device_kind(device.device_kind)
    peak = chip.peak_flops(getattr(experiment.model, "dtype", "float32")) * mesh.size if chip else None
    at = {f"p{q}": float(np.percentile(timings.step_times, q)) for q in (10, 50, 90, 99)}
    return {
        "device": device.device_kind,
        "devices": mesh.size,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "steps": len(timings.step_times),
        "tokens_per_second": timings.tokens / timings.seconds,
        "step_seconds": at,
        "compile_seconds": compile_seconds,
        "flops_per_second": {
            "full": timings.flops / timings.seconds,
            "causal_halved": timings.causal_halved_flops / timings.seconds,
        },
        "mfu": {
            name: done / timings.seconds / peak if peak else "n/a"
            for name, done in (("full", timings.flops), ("causal_halved", timings.causal_halved_flops))
        },
        "mfu_convention": MFU_CONVENTION,
        **_peak_memory(device, memory_before),
    }


def _peak_memory(device: Any, memory_before: int) -> dict[str, Any]:
    """The most bytes at once: as the device tells it, or how much this process grew from the first state on."""
    told = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if told is not None:
        return {"peak_memory_bytes": told, "peak_memory_is": "of the first device, by its own count"}
    grown = _process_memory("VmHWM") - memory_before
    return {
        "peak_memory_bytes": grown if memory_before else "n/a",
        "peak_memory_is": "growth of the process since the state",
    }


def _reset_peak_memory() -> int:
    """Bytes of this process now, from which its peak counts again; 0 where the system does not tell (not Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _process_memory("VmRSS")


def _process_memory(name: str) -> int:
    if not os.path.exists("/proc/self/status"):
        return 0
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0
