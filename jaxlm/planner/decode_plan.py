"""One decoding step of an experiment's model, compiled as the train step is: one more token in each of some rows."""

import math
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.decode.prefill import decode_step
from jaxlm.distributed.sharding import (
    AnyMesh,
    decode_state_shardings,
    num_batch_shards,
    row_sharding,
    train_state_shardings,
    with_shardings,
)
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.models.properties import abstract_params
from jaxlm.nn.transformer.layer_stack import unstack_layers
from jaxlm.perf.chips import Chip
from jaxlm.perf.collectives import find_collectives
from jaxlm.perf.dummy_batch import synthetic_batch
from jaxlm.perf.flops import count_flops
from jaxlm.planner import memory
from jaxlm.planner.hbm_traffic import bytes_moved
from jaxlm.planner.roofline import StepTime, step_seconds
from jaxlm.types import Batch, Params, State


@dataclass(frozen=True)
class DecodePlan:
    """Bytes are of one device; FLOPs and tokens of all. `memory` is what the compiler says, 0 where it only says no."""

    rows: int
    capacity: int
    state_bytes: int
    memory: int
    fits: bool | None
    flops: int
    bytes_moved: int | None
    seconds: StepTime | None
    compile_seconds: float

    def summary(self) -> str:
        """One line for a person."""
        time = "" if self.seconds is None else (
            f"; {self.seconds.lower_bound * 1e3:.3g} to {self.seconds.upper_bound * 1e3:.3g} ms a token, "
            f"{self.rows / self.seconds.upper_bound:,.0f} to {self.rows / self.seconds.lower_bound:,.0f} tokens/s"
        )  # fmt: skip
        fits = "" if self.fits is None else ": fits" if self.fits else ": does not fit"
        return (
            f"decoding    {self.rows} rows of {self.capacity} tokens: {memory.format_gib(self.memory)} GiB a "
            "device, of which "
            f"{memory.format_gib(self.state_bytes)} of state{fits}{time} (compiled in {self.compile_seconds:.0f} s)"
        )


def check_can_decode(model: Any) -> None:
    """Raises UserError for a model that writes nothing."""
    if not hasattr(type(model), "extend"):
        raise UserError(
            f"{type(model).__name__} answers a whole row at once and writes no token after token, so there is no "
            "decoding step to plan: leave --decode-batch-size out"
        )


def decode_step_shapes(model: Any, batch: Batch, num_rows: int) -> tuple[Params, State, Any, Any]:
    """Parameters, state, token_B and valid_B of a decoding step of `count` rows like those of `batch`, as shapes; the
    state has room for as many tokens as a row of it has. Raises UserError for a model that writes nothing."""
    check_can_decode(model)
    rows_of = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_rows, *x.shape[1:]), x.dtype), batch)
    params, capacity = abstract_params(model), batch.target_BT.shape[1]
    state = jax.eval_shape(lambda p, b: model.apply({"params": p}, b, capacity, method="start"), params, rows_of)
    token, valid = (jax.ShapeDtypeStruct((num_rows,), dtype) for dtype in (jnp.int32, bool))
    return params, state, token, valid


def plan_decoding(experiment: Experiment, mesh: AnyMesh, chip: Chip | None, min_rows: int) -> DecodePlan:
    """Of at least so many rows, as many as the devices share evenly, with room for as many tokens as in training."""
    model, shards = experiment.model, num_batch_shards(mesh)
    count = math.ceil(min_rows / shards) * shards
    batch = synthetic_batch(experiment)
    params, state, token, valid = decode_step_shapes(model, batch, count)

    def step(params: Any, token_B: Any, state: Any, valid_B: Any) -> Any:
        logits_BV, state = decode_step(model, unstack_layers(params), token_B, state, valid_B)
        return jnp.argmax(logits_BV, axis=-1), state

    arithmetic = count_flops(step, params, token, state, valid)
    params = with_shardings(params, train_state_shardings({"params": params}, mesh)["params"])
    state = with_shardings(state, decode_state_shardings(state, mesh))
    token, valid = with_shardings((token, valid), row_sharding(mesh))
    began = time.perf_counter()
    compiled, total = memory.compile_or_bytes_needed(jax.jit(step, donate_argnums=2).lower(params, token, state, valid))
    seconds, limit, moved, took = time.perf_counter() - began, memory.available_memory(chip), None, None
    if compiled is not None:
        text, total = compiled.as_text() or "", memory.program_bytes(compiled.memory_analysis())
        moved, dtype = bytes_moved(text), getattr(model, "dtype", "float32")
        work = arithmetic / mesh.size, moved, find_collectives(text)
        took = step_seconds(chip, dtype, *work, mesh.size, [0] * mesh.size) if chip else None
    fits = compiled is not None and (None if limit is None else total <= limit)
    capacity = batch.target_BT.shape[1]
    return DecodePlan(count, capacity, memory.shard_bytes(state), total, fits, arithmetic, moved, took, seconds)
