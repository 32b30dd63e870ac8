"""The plan of one decoding step: one more token in each row, compiled like the train step."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.decode.prefill import decode_step, step_params
from jaxlm.distributed import sharding
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.models.properties import abstract_params, model_dtype
from jaxlm.perf.chips import Chip, format_gib
from jaxlm.perf.collectives import find_collectives
from jaxlm.perf.flops import count_flops, synthetic_batch
from jaxlm.planner import estimates
from jaxlm.planner.estimates import StepTime, step_seconds
from jaxlm.planner.hbm_traffic import program_costs
from jaxlm.types import Batch, Params, State


@dataclass(frozen=True)
class DecodePlan:
    """Bytes are of one device, FLOPs and tokens of all. `memory` is the compiler's figure, 0 if it only refuses."""

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
        """One line of text."""
        size = f"{format_gib(self.memory)} GiB a device, of which {format_gib(self.state_bytes)} of state"
        fits = {True: ": fits", False: ": does not fit", None: ""}[self.fits]
        time = ""
        if self.seconds is not None:
            lower, upper = self.seconds.lower_bound, self.seconds.upper_bound
            time = f"; {lower * 1e3:.3g} to {upper * 1e3:.3g} ms a token, "
            time += f"{self.rows / upper:,.0f} to {self.rows / lower:,.0f} tokens/s"
        time += f" (compiled in {self.compile_seconds:.0f} s)"
        return f"decoding    {self.rows} rows of {self.capacity} tokens: {size}{fits}{time}"


def check_can_decode(model: Any) -> None:
    """Raises UserError for a model that does not generate text."""
    if not hasattr(type(model), "extend"):
        problem = f"{type(model).__name__} does not generate token by token, so it has no decoding step to plan"
        raise UserError(f"{problem}: leave out --decode-batch-size")


def decode_step_shapes(model: Any, batch: Batch, num_rows: int) -> tuple[Params, State, Any, Any]:
    """The shapes of a decoding step of `num_rows` rows like those of `batch`: parameters, state with room for a row,
    token_B and valid_B. Raises UserError for a model that does not generate text."""
    check_can_decode(model)
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_rows, *x.shape[1:]), x.dtype), batch)
    params, capacity = abstract_params(model), batch.target_BT.shape[1]
    state = jax.eval_shape(lambda p, b: model.apply({"params": p}, b, capacity, method="start"), params, rows)
    token, valid = (jax.ShapeDtypeStruct((num_rows,), dtype) for dtype in (jnp.int32, bool))
    return params, state, token, valid


def plan_decoding(experiment: Experiment, mesh: sharding.AnyMesh, chip: Chip | None, min_rows: int) -> DecodePlan:
    """Plan a step of at least `min_rows` rows, as many as the devices share evenly, with the capacity of training."""
    model, shards = experiment.model, sharding.num_batch_shards(mesh)
    num_rows = math.ceil(min_rows / shards) * shards
    batch = synthetic_batch(experiment)
    params, state, token, valid = decode_step_shapes(model, batch, num_rows)

    def step(params: Any, token_B: Any, state: Any, valid_B: Any) -> Any:
        logits_BV, state = decode_step(model, step_params(model, params, token_B, state), token_B, state, valid_B)
        return jnp.argmax(logits_BV, axis=-1), state

    flops = count_flops(step, params, token, state, valid)
    param_shardings = sharding.train_state_shardings({"params": params}, mesh)["params"]
    params = sharding.with_shardings(params, param_shardings)
    state = sharding.with_shardings(state, sharding.decode_state_shardings(state, mesh))
    token, valid = sharding.with_shardings((token, valid), sharding.row_sharding(mesh))
    program = jax.jit(step, donate_argnums=2)
    compiled, total, compile_seconds = estimates.compile_program(program, params, token, state, valid)
    moved = seconds = None
    if compiled is not None:
        text, dtype = compiled.as_text() or "", model_dtype(model)
        moved = program_costs(text).bytes_moved
        if chip:
            collectives = find_collectives(text)
            seconds = step_seconds(chip, dtype, flops / mesh.size, moved, collectives, [0] * mesh.size)
    limit = estimates.available_memory(chip)
    fits = False if compiled is None else None if limit is None else total <= limit
    capacity, state_bytes = batch.target_BT.shape[1], estimates.shard_bytes(state)
    return DecodePlan(num_rows, capacity, state_bytes, total, fits, flops, moved, seconds, compile_seconds)
