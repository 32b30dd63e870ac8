"""Beam search over a queue: a row that is done leaves its place to the next source, and the others do not wait for it.

The search runs STEPS steps at a time in one jit. Then the rows that are done are read out, and when a group's worth of
places is free, the next group of sources is read into them, in one jit too. Each row counts its own steps. Two
programs a source length, whatever comes; a row's hypotheses are those of `jaxlm.decode.beam.beam_search`.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding

from jaxlm.decode.beam import Hypotheses, Request, Rules, Search, begin, compiled, results, step
from jaxlm.decode.options import Beam
from jaxlm.decode.ranking import Ranking, ranking
from jaxlm.nn.stack import cut_apart
from jaxlm.parallel import constrain_state, state_layout
from jaxlm.types import Array, Batch, Params

STEPS = 4
"""Steps between two looks at who is done: fewer look more often, more go on for rows that are done."""


@struct.dataclass
class Desk:
    """The rows at work: their limits and their search."""

    limit_B: Array
    search: Search


Group = Callable[[np.ndarray], tuple[Batch, np.ndarray]]
"""The batch of some rows of the queue (-1: a filler) and their limits (0 for a filler), always of one shape."""


def search_queue(
    model: Any,
    params: Params,
    waiting: np.ndarray,
    group_of: Group,
    places: int,
    group: int,
    *,
    length: int,
    begin_with: int,
    beam: Beam,
    stop: tuple[int, ...],
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """The hypotheses of every row of `waiting`, as rows are done: (rows, the fields of `Hypotheses` as NumPy).

    `places` rows are at work at once, `group` of them begin together. `begin_with`: the one token of each prompt.
    """
    model, rules = compiled(model, beam, stop, length)
    params, rank = cut_apart(params), ranking(beam, length)
    of_place = np.full(places, -1)
    desk = None
    while len(waiting) or (of_place >= 0).any():
        while len(waiting) and (of_place < 0).sum() >= group:
            free = np.flatnonzero(of_place < 0)[:group]
            now, waiting = waiting[:group], waiting[group:]
            of_place[free[: len(now)]] = now
            rows_G = np.concatenate([now, np.full(group - len(now), -1)])
            place_G = np.where(rows_G >= 0, np.resize(free, group), places).astype(np.int32)
            batch, limit_G = group_of(rows_G)
            asked: Any = model, rules, begin_with, params, batch, np.minimum(limit_G, length), rank
            if desk is None:
                desk = _empty(places, *asked)
            desk = _admit(*asked, desk, place_G)
        desk, found = _work(model, rules, params, desk, rank)
        ended = np.flatnonzero(np.asarray(desk.search.done_B) & (of_place >= 0))
        if len(ended):
            yield of_place[ended], {name: np.asarray(value)[ended] for name, value in vars(found).items()}
            of_place[ended] = -1


@functools.partial(jax.jit, static_argnames=("model", "rules"), donate_argnames="desk")
def _work(model: Any, rules: Rules, params: Params, desk: Desk, rank: Ranking) -> tuple[Desk, Hypotheses]:
    """Up to STEPS steps, and the best finished hypotheses after them."""
    request = Request(desk.limit_B, rank, None, None)

    def goes_on(carry: tuple[Array, Search]) -> Array:
        return (carry[0] < STEPS) & ~jnp.all(carry[1].done_B)

    def more(carry: tuple[Array, Search]) -> tuple[Array, Search]:
        return carry[0] + 1, step(model, rules, params, carry[1], request)

    _, search = jax.lax.while_loop(goes_on, more, (jnp.int32(0), desk.search))
    return constrain_state(Desk(desk.limit_B, search)), results(search.finished, rules.beam.returns)


def _begun(
    model: Any, rules: Rules, begin_with: int, params: Params, batch: Batch, limit_G: Array, rank: Ranking
) -> Desk:
    prompt_G1 = jnp.full((limit_G.shape[0], 1), begin_with)
    request = Request(jnp.asarray(limit_G), rank, None, None)
    return Desk(request.limit_B, begin(model, rules, params, batch, prompt_G1, jnp.ones_like(prompt_G1, bool), request))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnames="desk")
def _admit(
    model: Any,
    rules: Rules,
    begin_with: int,
    params: Params,
    batch: Batch,
    limit_G: Array,
    rank: Ranking,
    desk: Desk,
    place_G: Array,
) -> Desk:
    """The desk with a group of new rows in the given places; a place beyond the last is none."""
    group, places = limit_G.shape[0], desk.limit_B.shape[0]

    def put(old: Array, new: Array) -> Array:
        old_B, new_G = (leaf.reshape(rows, -1, *leaf.shape[1:]) for leaf, rows in ((old, places), (new, group)))
        return old_B.at[place_G].set(new_G, mode="drop").reshape(old.shape)

    return constrain_state(jax.tree.map(put, desk, _begun(model, rules, begin_with, params, batch, limit_G, rank)))


def _empty(
    places: int, model: Any, rules: Rules, begin_with: int, params: Params, batch: Batch, limit_G: Any, rank: Ranking
) -> Desk:
    """A desk with nobody at it. Every leaf has one row a place, or one a slot."""
    shapes = jax.eval_shape(functools.partial(_begun, model, rules, begin_with), params, batch, limit_G, rank)
    group = len(limit_G)
    blank = jax.tree.map(lambda x: np.zeros((x.shape[0] // group * places, *x.shape[1:]), x.dtype), shapes)
    desk = Desk(blank.limit_B, blank.search.replace(done_B=np.ones(places, bool)))
    # Bound to devices if the parameters are: what comes back from the jit is then, and is no other argument to it.
    first = jax.tree.leaves(params)[0]
    place = first.sharding if getattr(first, "committed", False) else None
    return jax.device_put(desk, state_layout(desk, place.mesh) if isinstance(place, NamedSharding) else place)
