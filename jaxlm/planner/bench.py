"""Timed training steps: compile time cold and warm, tokens/s, step times, memory and MFU."""

import collections
import contextlib
import ctypes
import itertools
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from jaxlm.data.batching.loader import DataLoader
from jaxlm.distributed.placement import put_batch
from jaxlm.distributed.sharding import data_mesh, make_mesh, num_batch_shards
from jaxlm.experiment import Experiment
from jaxlm.perf.chips import chip_for_device_kind
from jaxlm.perf.flops import FLOPS_CONVENTION, StepFlops, adapt_batching, count_step, peak_flops, synthetic_batch
from jaxlm.planner.estimates import program_bytes
from jaxlm.planner.plan import check_has_steps
from jaxlm.training.profiling import MAX_STEPS_IN_FLIGHT, start_trace
from jaxlm.training.run_options import DEFAULT_RUN_OPTIONS, RunOptions
from jaxlm.training.setup import check_batch_divisible, setup_training
from jaxlm.training.step import CompiledStep, build_compiled_step, make_init_fn
from jaxlm.workdir import Workdir

WARMUP_STEPS = 2
"""Steps of each batch shape that are not timed."""

MFU_CONVENTION = (
    f"FLOPs of the model for real tokens, over the dense peak of the chip for its dtype: {FLOPS_CONVENTION}; "
    "halved: causal attention counts half"
)


@dataclass(frozen=True)
class SameBatch:
    """The same batch at every index."""

    batch: Any

    def __getitem__(self, k: int) -> Any:
        return self.batch


class TimedStep(NamedTuple):
    """A timed step: its seconds, and the FLOPs of all positions of its batch, of which `tokens` are real."""

    seconds: float
    tokens: float
    flops: StepFlops


@dataclass(frozen=True)
class StepCache:
    """The train step, compiled once for each shape of a batch."""

    step: CompiledStep
    mesh: Any
    compiled_by_shape: dict[Any, Any] = field(default_factory=dict)

    def for_batch(self, batch: Any) -> Any:
        """The compiled step for batches of this shape."""
        shape = batch_shapes(batch)
        if shape not in self.compiled_by_shape:
            placed = jax.eval_shape(lambda: put_batch(batch, self.mesh))
            self.compiled_by_shape[shape] = self.step.train_step.lower(self.step.abstract_state, placed).compile()
        return self.compiled_by_shape[shape]


def batch_shapes(batch: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes that select the compiled step."""
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def run_benchmark(
    experiment: Experiment, status: Callable[[str], None], steps: int = 20,
    run_options: RunOptions = DEFAULT_RUN_OPTIONS, synthetic: bool = False, profile: Path | None = None,
    compile_times: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Time `steps` steps on the experiment's data, or on one full synthetic batch; the result is a JSON object.
    `profile`: a folder for a trace of the timed steps. `compile_times`: whether to compile with an empty cache, to time
    it; the step that was compiled then is the timed one. Raises UserError under the conditions of training."""
    check_has_steps(experiment)
    mesh = data_mesh() if run_options.mesh is None else make_mesh(run_options.mesh)
    with contextlib.ExitStack() as stack:
        if synthetic:
            experiment, _ = adapt_batching(experiment, num_batch_shards(mesh))
            batches: Any = SameBatch(synthetic_batch(experiment))
            rows = len(jax.tree.leaves(batches.batch)[0])
            check_batch_divisible(rows, experiment.grad_accum, num_batch_shards(mesh))
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
            batches = setup_training(experiment, Workdir(folder), status, run_options).batches
        make_step = partial(build_compiled_step, experiment, make_init_fn(experiment), mesh, run_options)
        programs, compile_seconds = _compile(make_step, batches[0], mesh, compile_times)
        planned_bytes = program_bytes(programs.for_batch(batches[0]).memory_analysis())
        init_state = programs.step.init_state.lower().compile()
        loader = stack.enter_context(DataLoader(batches, 0, run_options.threads, run_options.workers))
        first_batch = next(loader)
        # One step is not measured: it starts threads and maps the pages of libraries and code.
        jax.block_until_ready(programs.for_batch(batches[0])(init_state(), put_batch(batches[0], mesh)))
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        memory_before, ordered = _process_memory("VmRSS"), itertools.chain([first_batch], loader)
        timed = _time_steps(experiment, programs, init_state(), ordered, steps, profile)
    metrics = _benchmark_metrics(experiment, timed, mesh)
    metrics |= {"compile_seconds": compile_seconds, "mfu_convention": MFU_CONVENTION}
    metrics |= _peak_memory(mesh.devices.flat[0], memory_before)
    return metrics | {"planned_memory_bytes": planned_bytes, "synthetic": synthetic}


def _compile(
    make_step: Callable[[], CompiledStep], batch: Any, mesh: Any, compile_times: bool
) -> tuple[StepCache, dict[str, float]]:
    """The step and the seconds to compile it: with an empty cache and from that cache, or with the user's cache."""
    seconds, old = {}, jax.config.values["jax_compilation_cache_dir"]

    def compile_step(name: str) -> StepCache:
        jax.clear_caches()
        programs, start = StepCache(make_step(), mesh), time.perf_counter()
        programs.for_batch(batch)
        seconds[name] = time.perf_counter() - start
        return programs

    if not compile_times:
        return compile_step("first"), seconds
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
        try:
            programs = compile_step("cold")
            compile_step("warm")
        finally:
            jax.config.update("jax_compilation_cache_dir", old)
            compilation_cache.reset_cache()
    return programs, seconds


def _time_steps(
    experiment: Experiment, programs: StepCache, state: Any, batches: Iterator, steps: int, profile: Path | None
) -> list[TimedStep]:
    """Run steps as training does, with `MAX_STEPS_IN_FLIGHT` dispatched ahead; each shape has its warm-up steps."""
    timed, pending = list[TimedStep](), collections.deque[tuple[Any, StepFlops]]()
    flops, steps_by_shape = dict[Any, StepFlops](), collections.Counter[Any]()
    with contextlib.ExitStack() as stack:
        last = time.perf_counter()
        while len(timed) < steps:
            batch = next(batches)
            if (shape := batch_shapes(batch)) not in flops:
                flops[shape] = count_step(experiment, batch)
            is_timed = steps_by_shape[shape] >= WARMUP_STEPS
            steps_by_shape[shape] += 1
            if profile is not None and is_timed and not timed and not pending:
                start_trace(profile)
                stack.callback(jax.profiler.stop_trace)
                last = time.perf_counter()
            state, metrics = programs.for_batch(batch)(state, put_batch(batch, programs.mesh))
            pending.append((metrics, flops[shape]))
            max_pending = min(MAX_STEPS_IN_FLIGHT, steps - len(timed) - 1) if is_timed else 0
            while pending and len(pending) > max_pending:
                done, step_flops = pending.popleft()
                tokens = float(done.count)  # waits for the step
                now = time.perf_counter()
                if is_timed:
                    timed.append(TimedStep(now - last, tokens, step_flops))
                    max_pending = min(max_pending, steps - len(timed) - 1)
                last = now
    return timed


def _benchmark_metrics(experiment: Experiment, timed: list[TimedStep], mesh: Any) -> dict[str, Any]:
    kind, step_times = mesh.devices.flat[0].device_kind, [step.seconds for step in timed]
    seconds = sum(step_times)
    peak = peak_flops(experiment.model, chip_for_device_kind(kind), mesh.size)
    rates = {
        name: sum(step.tokens * getattr(step.flops, name) / step.flops.positions for step in timed) / seconds
        for name in ("full", "causal_halved")
    }
    return {
        "device": kind,
        "devices": mesh.size,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "steps": len(timed),
        "tokens_per_second": sum(step.tokens for step in timed) / seconds,
        "step_seconds": {f"p{q}": float(np.percentile(step_times, q)) for q in (10, 50, 90, 99)},
        "flops_per_second": rates,
        "mfu": {name: "n/a" if peak is None else rate / peak for name, rate in rates.items()},
    }


def _peak_memory(device: Any, memory_before: int) -> dict[str, Any]:
    """Peak memory, as the device counts it, or else as the growth of this process since the first state."""
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if peak is not None:
        return {"peak_memory_bytes": peak, "peak_memory_is": "of the first device, by its own count"}
    growth: Any = _process_memory("VmHWM") - memory_before if memory_before else "n/a"
    return {"peak_memory_bytes": growth, "peak_memory_is": "growth of the process since the state"}


def _process_memory(name: str) -> int:
    with contextlib.suppress(OSError):
        if match := re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(match[1]) * 1024
    return 0
