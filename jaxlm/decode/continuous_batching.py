"""Beam search over a queue: a row that is done leaves its place to the next source, and the others do not wait for it.

The search runs STEPS steps at a time in one jit. Then the rows that are done are read out, and when a group's worth of
places is free, the next group of sources is read into them, in one jit too. Each row counts its own steps. Two
programs a source length, whatever comes; a row's hypotheses are those of `jaxlm.decode.beam_search.beam_search`.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding

from jaxlm.decode.beam_config import Beam
from jaxlm.decode.beam_search import (
    BeamState,
    SearchInputs,
    StaticConfig,
    beam_step,
    best_hypotheses,
    initial_beam_state,
    specialize,
)
from jaxlm.decode.length_penalty import ScoreParams, make_score_params
from jaxlm.decode.results import Hypotheses
from jaxlm.distributed.sharding import constrain_state, decode_state_shardings
from jaxlm.nn.transformer.layer_stack import unstack_layers_jit
from jaxlm.types import Array, Batch, Params

STEPS_PER_CHECK = 4
"""Steps between two looks at who is done: fewer look more often, more go on for rows that are done."""


@struct.dataclass
class ActiveBatch:
    """The rows at work: their limits and their search."""

    limit_B: Array
    beams: BeamState


MakeBatch = Callable[[np.ndarray], tuple[Batch, np.ndarray]]
"""The batch of some rows of the queue (-1: a filler) and their limits (0 for a filler), always of one shape."""


def beam_search_queue(
    model: Any,
    params: Params,
    queue: np.ndarray,
    make_batch: MakeBatch,
    active_rows: int,
    admit_rows: int,
    *,
    length: int,
    bos_id: int,
    beam: Beam,
    stop: tuple[int, ...],
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """The hypotheses of every row of `waiting`, as rows are done: (rows, the fields of `Hypotheses` as NumPy).

    `places` rows are at work at once, `group` of them begin together. `begin_with`: the one token of each prompt.
    """
    model, rules = specialize(model, beam, stop, length)
    params, rank = unstack_layers_jit(params), make_score_params(beam, length)
    of_place = np.full(active_rows, -1)
    desk = None
    while len(queue) or (of_place >= 0).any():
        while len(queue) and (of_place < 0).sum() >= admit_rows:
            free = np.flatnonzero(of_place < 0)[:admit_rows]
            now, queue = queue[:admit_rows], queue[admit_rows:]
            of_place[free[: len(now)]] = now
            rows_G = np.concatenate([now, np.full(admit_rows - len(now), -1)])
            place_G = np.where(rows_G >= 0, np.resize(free, admit_rows), active_rows).astype(np.int32)
            batch, limit_G = make_batch(rows_G)
            asked: Any = model, rules, bos_id, params, batch, np.minimum(limit_G, length), rank
            if desk is None:
                desk = _empty_batch(active_rows, *asked)
            desk = _admit_rows(*asked, desk, place_G)
        desk, found = _run_steps(model, rules, params, desk, rank)
        ended = np.flatnonzero(np.asarray(desk.beams.done_B) & (of_place >= 0))
        if len(ended):
            yield of_place[ended], {name: np.asarray(value)[ended] for name, value in vars(found).items()}
            of_place[ended] = -1


@functools.partial(jax.jit, static_argnames=("model", "config"), donate_argnames="active")
def _run_steps(
    model: Any, config: StaticConfig, params: Params, active: ActiveBatch, score_params: ScoreParams
) -> tuple[ActiveBatch, Hypotheses]:
    """Up to STEPS steps, and the best finished hypotheses after them."""
    request = SearchInputs(active.limit_B, score_params, None, None)

    def goes_on(carry: tuple[Array, BeamState]) -> Array:
        return (carry[0] < STEPS_PER_CHECK) & ~jnp.all(carry[1].done_B)

    def more(carry: tuple[Array, BeamState]) -> tuple[Array, BeamState]:
        return carry[0] + 1, beam_step(model, config, params, carry[1], request)

    _, search = jax.lax.while_loop(goes_on, more, (jnp.int32(0), active.beams))
    return constrain_state(ActiveBatch(active.limit_B, search)), best_hypotheses(
        search.finished, config.beam.num_return_sequences
    )


def _start_rows(
    model: Any,
    config: StaticConfig,
    bos_id: int,
    params: Params,
    batch: Batch,
    limit_G: Array,
    score_params: ScoreParams,
) -> ActiveBatch:
    prompt_G1 = jnp.full((limit_G.shape[0], 1), bos_id)
    request = SearchInputs(jnp.asarray(limit_G), score_params, None, None)
    return ActiveBatch(
        request.limit_B,
        initial_beam_state(model, config, params, batch, prompt_G1, jnp.ones_like(prompt_G1, bool), request),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnames="active")
def _admit_rows(
    model: Any,
    config: StaticConfig,
    bos_id: int,
    params: Params,
    batch: Batch,
    limit_G: Array,
    score_params: ScoreParams,
    active: ActiveBatch,
    place_G: Array,
) -> ActiveBatch:
    """The desk with a group of new rows in the given places; a place beyond the last is none."""
    group, places = limit_G.shape[0], active.limit_B.shape[0]

    def put(old: Array, new: Array) -> Array:
        old_B, new_G = (leaf.reshape(rows, -1, *leaf.shape[1:]) for leaf, rows in ((old, places), (new, group)))
        return old_B.at[place_G].set(new_G, mode="drop").reshape(old.shape)

    return constrain_state(
        jax.tree.map(put, active, _start_rows(model, config, bos_id, params, batch, limit_G, score_params))
    )


def _empty_batch(
    active_rows: int,
    model: Any,
    config: StaticConfig,
    bos_id: int,
    params: Params,
    batch: Batch,
    limit_G: Any,
    score_params: ScoreParams,
) -> ActiveBatch:
    """A desk with nobody at it. Every leaf has one row a place, or one a slot."""
    shapes = jax.eval_shape(functools.partial(_start_rows, model, config, bos_id), params, batch, limit_G, score_params)
    group = len(limit_G)
    blank = jax.tree.map(lambda x: np.zeros((x.shape[0] // group * active_rows, *x.shape[1:]), x.dtype), shapes)
    desk = ActiveBatch(blank.limit_B, blank.beams.replace(done_B=np.ones(active_rows, bool)))
    # Bound to devices if the parameters are: what comes back from the jit is then, and is no other argument to it.
    first = jax.tree.leaves(params)[0]
    place = first.sharding if getattr(first, "committed", False) else None
    return jax.device_put(desk, decode_state_shardings(desk, place.mesh) if isinstance(place, NamedSharding) else place)
