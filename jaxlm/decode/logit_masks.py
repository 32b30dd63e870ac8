"""Masks of forbidden tokens: -inf in the step scores, without renormalization.

Beam search, greedy search and sampling share them. `step_B` counts the tokens generated so far, without the prompt, and
`history_BKT` holds them. All masks apply together: a forced id that is also suppressed leaves no token.
"""

import functools
from dataclasses import dataclass

import jax.numpy as jnp
from flax import struct

from jaxlm.errors import UserError
from jaxlm.types import Array


@dataclass(frozen=True)
class LogitMasks:
    """The masks that are the same for all rows.

    suppress_tokens: ids that are never generated.
    min_length: the length before which no stop id is allowed (generated tokens, the stop id included).
    no_repeat_ngram_size: n > 0 forbids that n generated tokens in a row occur twice; 0 is off.
    first_tokens: the ids of which one is the first generated token; (): any.
    suppress_first_tokens: ids that are never the first generated token.
    bad_words: sequences of ids that are never generated.
    """

    suppress_tokens: tuple[int, ...] = ()
    min_length: int = 0
    no_repeat_ngram_size: int = 0
    first_tokens: tuple[int, ...] = ()
    suppress_first_tokens: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for name in ("suppress_tokens", "first_tokens", "suppress_first_tokens"):
            if not isinstance(ids := getattr(self, name), tuple) or any(token < 0 for token in ids):
                raise UserError(f"{name}={ids!r} must be a tuple of ids >= 0, as in {name}=(1,)")
        for name in ("min_length", "no_repeat_ngram_size"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must be 0 (off) or more")


@struct.dataclass
class ForcedPrefix:
    """The first tokens of each row: token_BF where valid_BF, F being the longest prefix. They count as generated."""

    token_BF: Array
    valid_BF: Array


def log_softmax_parts(logits_BKV: Array, temperature: float = 1.0) -> tuple[Array, Array]:
    """Return float32 logits / temperature and their log-sum-exp_BK1; XLA need not store the difference, log_softmax."""
    logits_BKV = logits_BKV.astype(jnp.float32)
    if temperature != 1.0:
        logits_BKV = logits_BKV / temperature
    peak_BK1 = jnp.max(logits_BKV, axis=-1, keepdims=True)
    total_BK1 = jnp.sum(jnp.exp(logits_BKV - peak_BK1), axis=-1, keepdims=True)
    return logits_BKV, jnp.log(total_BK1) + peak_BK1


def is_in_ids(token: Array, ids: tuple[int, ...]) -> Array:
    """Return whether each token (any shape) is one of a few ids."""
    return functools.reduce(jnp.logical_or, [token == index for index in ids], jnp.zeros(token.shape, bool))


def apply_logit_masks(
    logprob_BKV: Array,
    history_BKT: Array,
    step_B: Array,
    logit_masks: LogitMasks,
    stop: tuple[int, ...],
    forced_prefix: ForcedPrefix | None = None,
    must_stop_B: Array | None = None,
) -> Array:
    """Set the step scores_BKV of the ids that are forbidden as generated token number `step_B` (from 0) to -inf.

    A row of `must_stop_B` may only generate a stop id, and the minimum length does not apply to it.
    """
    size = logprob_BKV.shape[-1]
    id_11V = jnp.arange(size)[None, None, :]
    masks = [is_in_ids(id_11V, logit_masks.suppress_tokens)] if logit_masks.suppress_tokens else []
    if logit_masks.first_tokens or logit_masks.suppress_first_tokens:
        wrong_11V = is_in_ids(id_11V, logit_masks.suppress_first_tokens)
        if logit_masks.first_tokens:
            wrong_11V = wrong_11V | ~is_in_ids(id_11V, logit_masks.first_tokens)
        masks.append((step_B == 0)[:, None, None] & wrong_11V)
    if logit_masks.min_length > 1 and stop:
        early_B11 = (step_B + 1 < logit_masks.min_length)[:, None, None]
        if must_stop_B is not None:
            early_B11 = early_B11 & ~must_stop_B[:, None, None]
        masks.append(early_B11 & is_in_ids(id_11V, stop))
    if logit_masks.no_repeat_ngram_size:
        masks.append(_repeated_ngrams(history_BKT, step_B, logit_masks.no_repeat_ngram_size, size))
    masks += [_completes_word(history_BKT, step_B, word, size) for word in logit_masks.bad_words]
    if forced_prefix is not None:
        masks.append(_off_prefix(forced_prefix, step_B, size))
    if must_stop_B is not None:
        masks.append(must_stop_B[:, None, None] & ~is_in_ids(id_11V, stop))
    return jnp.where(functools.reduce(jnp.logical_or, masks), -jnp.inf, logprob_BKV) if masks else logprob_BKV


def _off_prefix(forced_prefix: ForcedPrefix, step_B: Array, size: int) -> Array:
    """True_B1V on the ids that differ from the forced prefix."""
    columns = forced_prefix.token_BF.shape[1]
    column_B1 = jnp.minimum(step_B, columns - 1)[:, None]
    token_B1, valid_B1 = (
        jnp.take_along_axis(jnp.asarray(x_BF), column_B1, axis=1, mode="clip")
        for x_BF in (forced_prefix.token_BF, forced_prefix.valid_BF)
    )
    binding_B1 = valid_B1 & (step_B < columns)[:, None]
    return (binding_B1 & (token_B1 != jnp.arange(size)[None, :]))[:, None, :]


def _completes_word(history_BKT: Array, step_B: Array, word: tuple[int, ...], size: int) -> Array:
    """True_BKV on the last id of a word if the ids before it have just been generated."""
    *before, last = word
    step_B11 = step_B[:, None, None]
    matches_BK1 = jnp.broadcast_to(step_B11 >= len(before), (*history_BKT.shape[:2], 1))
    for back, token in enumerate(reversed(before), start=1):
        recent_BK1 = jnp.take_along_axis(history_BKT, jnp.maximum(step_B11 - back, 0), axis=2, mode="clip")
        matches_BK1 = matches_BK1 & (recent_BK1 == token)
    return matches_BK1 & (jnp.arange(size)[None, None, :] == last)


def _repeated_ngrams(history_BKT: Array, step_B: Array, order: int, size: int) -> Array:
    """True_BKV on the ids that would repeat an n-gram of `order` generated tokens."""
    batch, slots, length = history_BKT.shape
    step_B11 = step_B[:, None, None]
    # True on position t if the order - 1 tokens before it equal the last order - 1 tokens
    matches_BKT = jnp.ones((batch, slots, length), bool) & (jnp.arange(length)[None, None, :] < step_B11)
    for back in range(1, order):
        recent_BK1 = jnp.take_along_axis(history_BKT, jnp.maximum(step_B11 - back, 0), axis=2, mode="clip")
        before_BKT = jnp.pad(history_BKT, ((0, 0), (0, 0), (back, 0)), constant_values=-1)[:, :, :length]
        matches_BKT = matches_BKT & (before_BKT == recent_BK1)
    matches_BKT = matches_BKT & (step_B11 >= order - 1)
    row_B11, slot_1K1 = jnp.arange(batch)[:, None, None], jnp.arange(slots)[None, :, None]
    return jnp.zeros((batch, slots, size), bool).at[row_B11, slot_1K1, history_BKT].max(matches_BKT, mode="drop")
