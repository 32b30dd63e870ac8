"""One decoding step of an experiment's model, compiled as the train step is: one more token in each of some rows."""

import math
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.chips import Chip
from jaxlm.collectives import collectives
from jaxlm.decode.prefill import read_token
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.flops import flops
from jaxlm.nn.stack import unstacked
from jaxlm.parallel import Meshed, batch_shards, layout, rows, state_layout, with_sharding
from jaxlm.plan import memory
from jaxlm.plan.cost import Seconds, step_seconds
from jaxlm.plan.moved import bytes_moved
from jaxlm.plan.shapes import batch_of
from jaxlm.types import Batch, Params, State
from jaxlm.workdir import abstract_params


@dataclass(frozen=True)
class DecodePlan:
    """Bytes are of one device; FLOPs and tokens of all. `memory` is what the compiler says, 0 where it only says no."""

    rows: int
    capacity: int
    cache: int
    memory: int
    fits: bool | None
    flops: int
    bytes_moved: int | None
    seconds: Seconds | None
    compile_seconds: float

    def sentence(self) -> str:
        """One line for a person."""
        time = "" if self.seconds is None else (
            f"; {self.seconds.least * 1e3:.3g} to {self.seconds.most * 1e3:.3g} ms a token, "
            f"{self.rows / self.seconds.most:,.0f} to {self.rows / self.seconds.least:,.0f} tokens/s"
        )  # fmt: skip
        fits = "" if self.fits is None else ": fits" if self.fits else ": does not fit"
        return (
            f"decoding    {self.rows} rows of {self.capacity} tokens: {memory.gib(self.memory)} GiB a device, of which "
            f"{memory.gib(self.cache)} of state{fits}{time} (compiled in {self.compile_seconds:.0f} s)"
        )


def check_decodes(model: Any) -> None:
    """Raises UserError for a model that writes nothing."""
    if not hasattr(type(model), "extend"):
        raise UserError(
            f"{type(model).__name__} answers a whole row at once and writes no token after token, so there is no "
            "decoding step to plan: leave --decode out"
        )


def step_shapes(model: Any, batch: Batch, count: int) -> tuple[Params, State, Any, Any]:
    """Parameters, state, token_B and valid_B of a decoding step of `count` rows like those of `batch`, as shapes; the
    state has room for as many tokens as a row of it has. Raises UserError for a model that writes nothing."""
    check_decodes(model)
    rows_of = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), batch)
    params, capacity = abstract_params(model), batch.target_BT.shape[1]
    state = jax.eval_shape(lambda p, b: model.apply({"params": p}, b, capacity, method="start"), params, rows_of)
    token, valid = (jax.ShapeDtypeStruct((count,), dtype) for dtype in (jnp.int32, bool))
    return params, state, token, valid


def plan_decoding(experiment: Experiment, mesh: Meshed, chip: Chip | None, asked: int) -> DecodePlan:
    """Of at least so many rows, as many as the devices share evenly, with room for as many tokens as in training."""
    model, shards = experiment.model, batch_shards(mesh)
    count = math.ceil(asked / shards) * shards
    batch = batch_of(experiment)
    params, state, token, valid = step_shapes(model, batch, count)

    def step(params: Any, token_B: Any, state: Any, valid_B: Any) -> Any:
        logits_BV, state = read_token(model, unstacked(params), token_B, state, valid_B)
        return jnp.argmax(logits_BV, axis=-1), state

    arithmetic = flops(step, params, token, state, valid)
    params = with_sharding(params, layout({"params": params}, mesh)["params"])
    state = with_sharding(state, state_layout(state, mesh))
    token, valid = with_sharding((token, valid), rows(mesh))
    began = time.perf_counter()
    compiled, total = memory.compiled_or_wanted(jax.jit(step, donate_argnums=2).lower(params, token, state, valid))
    seconds, limit, moved, took = time.perf_counter() - began, memory.available(chip), None, None
    if compiled is not None:
        text, total = compiled.as_text() or "", memory.program_bytes(compiled.memory_analysis())
        moved, dtype = bytes_moved(text), getattr(model, "dtype", "float32")
        work = arithmetic / mesh.size, moved, collectives(text)
        took = step_seconds(chip, dtype, *work, mesh.size, [0] * mesh.size) if chip else None
    fits = compiled is not None and (None if limit is None else total <= limit)
    capacity = batch.target_BT.shape[1]
    return DecodePlan(count, capacity, memory.held(state), total, fits, arithmetic, moved, took, seconds)
