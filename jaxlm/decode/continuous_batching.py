"""Continuous batching: beam search over a queue in which a finished row frees its place for the next prompt.

The search runs STEPS_PER_CHECK steps in one jit. Then finished rows are read out, and as soon as one batch fits in the
free places, the next batch of the queue is admitted to them, in another jit. Each row counts its own steps, so that its
hypotheses are those of `jaxlm.decode.beam_search.beam_search`. There are two programs for each shape of a request.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxlm import runtime
from jaxlm.decode.beam_config import BeamSearchConfig, ScoreParams
from jaxlm.decode.beam_search import BeamState, SearchInputs, beam_step, best_hypotheses, initial_beam_state, specialize
from jaxlm.decode.prefill import repeat_while, steps_per_check
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import Hypotheses
from jaxlm.distributed.sharding import constrain_state, decode_state_shardings
from jaxlm.nn.transformer.layer_stack import decoding_params
from jaxlm.types import Array, Params

STEPS_PER_CHECK = 4
"""Steps between two checks for finished rows: fewer synchronize more often, more run idle steps on finished rows."""


class BeamQueue:
    """Rows that are searched at once, `active_rows` of them; a finished or released row frees its place.

    The parameters are those of `search_params`. Grammars and forced prefixes are not supported.
    """

    def __init__(self, model: Any, params: Params, config: BeamSearchConfig, active_rows: int):
        self._model, self._config, self._score_params = specialize(model, config)
        self._params = params
        self._active: Any = None
        self._row_of_place = np.full(active_rows, -1)

    @property
    def rows(self) -> list[int]:
        """The numbers of the rows that are searched."""
        return self._row_of_place[self._row_of_place >= 0].tolist()

    @property
    def num_free(self) -> int:
        """The places without a row."""
        return int((self._row_of_place < 0).sum())

    def admit(self, row_G: np.ndarray, request: DecodeRequest) -> None:
        """Begin to search for rows, which have free places; all requests have one shape. A filler has number -1."""
        model, config = self._model, self._config
        request.check_positions(model, config.length)
        place_G = np.flatnonzero(self._row_of_place < 0)[: len(row_G)]
        self._row_of_place[place_G] = row_G
        # A filler gets a place beyond the last: the scatter drops it.
        place_G = np.where(row_G >= 0, place_G, len(self._row_of_place)).astype(np.int32)
        if self._active is None:
            self._active = _empty_batch(model, config, self._params, request, len(self._row_of_place))
        self._active = _admit_rows(model, config, self._params, request, self._active, place_G)

    def release(self, row: int) -> None:
        """Free the place of a row that nobody waits for."""
        self._row_of_place[self._row_of_place == row] = -1

    def step(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Run a few steps: the numbers of the rows that finished, and the fields of their `Hypotheses`."""
        self._active, hypotheses = _run_steps(self._model, self._config, self._params, self._active, self._score_params)
        ended = np.flatnonzero(np.asarray(self._active.done_B) & (self._row_of_place >= 0))
        rows, self._row_of_place[ended] = self._row_of_place[ended], -1
        return rows, {name: np.asarray(value)[ended] for name, value in vars(hypotheses).items()} if len(ended) else {}


def beam_search_queue(
    model: Any,
    params: Params,
    batches: Iterable[tuple[np.ndarray, DecodeRequest]],
    active_rows: int,
    config: BeamSearchConfig,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yield (row numbers, the fields of `Hypotheses` as NumPy arrays) as rows finish.

    params: as `search_params` returns them; others are unstacked and packed in every call of a program.
    batches: (row numbers, their request), all of one shape, at most `active_rows` rows each. Row number -1 marks a
    filler. The iterator is read one batch ahead.
    active_rows: the number of rows that are searched at once.
    """
    queue, requests = BeamQueue(model, params, config, active_rows), iter(batches)
    waiting = next(requests, None)
    while waiting is not None or queue.num_free < active_rows:
        runtime.between_batches()
        while waiting is not None and queue.num_free >= len(waiting[0]):
            queue.admit(*waiting)
            waiting = next(requests, None)
        rows, hypotheses = queue.step()
        if len(rows):
            yield rows, hypotheses


def search_params(model: Any, params: Params, request: DecodeRequest, config: BeamSearchConfig) -> Params:
    """The parameters for `beam_search_queue`, see `decoding_params`: the same ones serve requests of any shape."""
    model, config, score_params = specialize(model, config)
    return _decoding_params(model, config, params, request, score_params)


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _decoding_params(
    model: Any, config: BeamSearchConfig, params: Params, request: DecodeRequest, score_params: ScoreParams
) -> Params:

    def call(params: Params) -> BeamState:
        beams = initial_beam_state(model, config, params, request, config.length)
        return beam_step(model, config, params, beams, SearchInputs(score_params))

    return decoding_params(params, call)


@functools.partial(jax.jit, static_argnames=("model", "config"), donate_argnames="active")
def _run_steps(
    model: Any, config: BeamSearchConfig, params: Params, active: BeamState, score_params: ScoreParams
) -> tuple[BeamState, Hypotheses]:
    """Up to STEPS_PER_CHECK steps, and the best finished hypotheses after them."""

    def step(carry: tuple[Array, BeamState]) -> tuple[Array, BeamState]:
        return carry[0] + 1, beam_step(model, config, params, carry[1], SearchInputs(score_params))

    def goes_on(carry: tuple[Array, BeamState]) -> Array:
        return (carry[0] < STEPS_PER_CHECK) & ~jnp.all(carry[1].done_B)

    per_check = min(steps_per_check(active.done_B), STEPS_PER_CHECK)
    _, active = repeat_while(goes_on, step, (jnp.int32(0), active), per_check)
    return constrain_state(active), best_hypotheses(active.finished, config.beam.num_return_sequences)


@functools.partial(jax.jit, static_argnames=("model", "config"), donate_argnames="active")
def _admit_rows(
    model: Any, config: BeamSearchConfig, params: Params, request: DecodeRequest, active: BeamState, place_G: Array
) -> BeamState:
    """Put the initial state of a request's rows into the given places; a place beyond the last is dropped."""
    group, places = place_G.shape[0], active.limit_B.shape[0]

    def put(old: Array, new: Array) -> Array:
        # A leaf has one row a place or one a slot: (B * K, ...) -> (B, K, ...), a place then moves with its slots.
        old_B, new_G = old.reshape(places, -1, *old.shape[1:]), new.reshape(group, -1, *new.shape[1:])
        return old_B.at[place_G].set(new_G, mode="drop").reshape(old.shape)

    return constrain_state(jax.tree.map(put, active, _initial_state(model, config, params, request)))


@functools.partial(jax.jit, static_argnames=("model", "config"), inline=True)
def _initial_state(model: Any, config: BeamSearchConfig, params: Params, request: DecodeRequest) -> BeamState:
    """Traced once for its shapes and for `_admit_rows`."""
    return initial_beam_state(model, config, params, request, config.length)


def _empty_batch(
    model: Any, config: BeamSearchConfig, params: Params, request: DecodeRequest, active_rows: int
) -> BeamState:
    """A state of `active_rows` rows that are all done: zeros, in the shapes of a request's initial state."""
    group = len(request.limit_B)
    shapes = _initial_state.eval_shape(model, config, params, request)
    blank = jax.tree.map(lambda x: np.zeros((x.shape[0] // group * active_rows, *x.shape[1:]), x.dtype), shapes)
    active = blank.replace(done_B=np.ones(active_rows, bool))
    # Committed to devices if the parameters are: the jit returns committed arrays, and others would compile it again.
    leaf = jax.tree.leaves(params)[0]
    sharding = leaf.sharding if getattr(leaf, "committed", False) else None
    if isinstance(sharding, NamedSharding):
        sharding = decode_state_shardings(active, sharding.mesh)
    return jax.device_put(active, sharding)
