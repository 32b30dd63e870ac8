"""Tokens that may not be said: masks set to -inf after normalisation, without renormalising what is left.

Beam search, greedy search and sampling share them. `step_B` counts the tokens generated so far (the prompt is no part
of it), `history_BKT` holds those tokens, and all masks hold together: a forced id that is also banned leaves nothing.
"""

import functools
from dataclasses import dataclass

import jax.numpy as jnp
from flax import struct

from jaxlm.errors import UserError
from jaxlm.types import Array


@dataclass(frozen=True)
class Constraints:
    """What no hypothesis of any row may do.

    banned: ids that are never said.
    min_length: no stop id before this length (in generated tokens, the stop id included).
    no_repeat_ngram: n > 0 means that no n generated tokens in a row occur twice; 0 means no such rule.
    """

    banned: tuple[int, ...] = ()
    min_length: int = 0
    no_repeat_ngram: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.banned, tuple) or any(token < 0 for token in self.banned):
            raise UserError(f"banned={self.banned!r} must be a tuple of ids >= 0, as in banned=(1,)")
        for name in ("min_length", "no_repeat_ngram"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must be 0 (off) or more")


@struct.dataclass
class Forced:
    """What each row must say first: token_BF where valid_BF, F being the longest prefix. It counts as generated."""

    token_BF: Array
    valid_BF: Array


def log_softmax_parts(logits_BKV: Array, temperature: float = 1.0) -> tuple[Array, Array]:
    """Float32 logits (divided by the temperature) and their log-sum-exp_BK1: the difference is log_softmax.

    The two are kept apart so that XLA need not store the difference for a large vocabulary.
    """
    logits_BKV = logits_BKV.astype(jnp.float32)
    if temperature != 1.0:
        logits_BKV = logits_BKV / temperature
    peak_BK1 = jnp.max(logits_BKV, axis=-1, keepdims=True)
    total_BK1 = jnp.sum(jnp.exp(logits_BKV - peak_BK1), axis=-1, keepdims=True)
    return logits_BKV, jnp.log(total_BK1) + peak_BK1


def is_one_of(token: Array, ids: tuple[int, ...]) -> Array:
    """True where a token (any shape) is one of a few ids."""
    found = jnp.zeros(token.shape, bool)
    for each in ids:
        found = found | (token == each)
    return found


def forbid(
    logprob_BKV: Array,
    history_BKT: Array,
    step_B: Array,
    constraints: Constraints,
    stop: tuple[int, ...],
    forced: Forced | None = None,
    must_stop_B: Array | None = None,
) -> Array:
    """Step scores_BKV with -inf on the ids that may not be said as generated token number `step_B` (from 0).

    A row of `must_stop_B` may say nothing but a stop id, and the minimum length does not bind it.
    """
    size = logprob_BKV.shape[-1]
    id_11V = jnp.arange(size)[None, None, :]
    masks = [is_one_of(id_11V, constraints.banned)] if constraints.banned else []
    if constraints.min_length > 1 and stop:
        early_B11 = (step_B + 1 < constraints.min_length)[:, None, None]
        if must_stop_B is not None:
            early_B11 = early_B11 & ~must_stop_B[:, None, None]
        masks.append(early_B11 & is_one_of(id_11V, stop))
    if constraints.no_repeat_ngram:
        masks.append(_repeats(history_BKT, step_B, constraints.no_repeat_ngram, size))
    if forced is not None:
        masks.append(_strays(forced, step_B, size))
    if must_stop_B is not None:
        masks.append(must_stop_B[:, None, None] & ~is_one_of(id_11V, stop))
    return jnp.where(functools.reduce(jnp.logical_or, masks), -jnp.inf, logprob_BKV) if masks else logprob_BKV


def _strays(forced: Forced, step_B: Array, size: int) -> Array:
    """True_B1V on the ids that leave the forced prefix."""
    columns = forced.token_BF.shape[1]
    column_B1 = jnp.minimum(step_B, columns - 1)[:, None]
    token_B = jnp.take_along_axis(jnp.asarray(forced.token_BF), column_B1, axis=1, mode="clip")[:, 0]
    valid_B = jnp.take_along_axis(jnp.asarray(forced.valid_BF), column_B1, axis=1, mode="clip")[:, 0]
    binding_B = valid_B & (step_B < columns)
    other_BV = token_B[:, None] != jnp.arange(size)[None, :]
    return (binding_B[:, None] & other_BV)[:, None, :]


def _repeats(history_BKT: Array, step_B: Array, order: int, size: int) -> Array:
    """True_BKV on the ids that would repeat `order` tokens in a row, given that `step_B` tokens were generated."""
    batch, slots, length = history_BKT.shape
    step_B11 = step_B[:, None, None]
    matches_BKT = jnp.ones((batch, slots, length), bool) & (jnp.arange(length)[None, None, :] < step_B11)
    for back in range(1, order):
        recent_BK1 = jnp.take_along_axis(history_BKT, jnp.maximum(step_B11 - back, 0), axis=2, mode="clip")
        before_BKT = jnp.pad(history_BKT, ((0, 0), (0, 0), (back, 0)), constant_values=-1)[:, :, :length]
        matches_BKT = matches_BKT & (before_BKT == recent_BK1)
    matches_BKT = matches_BKT & (step_B11 >= order - 1)
    row_B11, slot_1K1 = jnp.arange(batch)[:, None, None], jnp.arange(slots)[None, :, None]
    return jnp.zeros((batch, slots, size), bool).at[row_B11, slot_1K1, history_BKT].max(matches_BKT, mode="drop")
