"""Log-probabilities of whole answers: one a row, or two to the same prompt, which then are neighboring rows."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.objectives.log_probs import token_log_probs
from jaxlm.types import Array, ArrayOrNone, Batch, Params

PAIR_SIDES = ("chosen", "rejected")
"""The two answers of a pair, in the order of axis A."""


@struct.dataclass
class AnswerLogProbs:
    """Of the A = 1 or 2 answers of each row: the sum over its tokens in nats, and their number, EOS counted.

    row_nll_B: mean -log p of all tokens of the first answer's row, the prompt too; None unless it was asked for.
    """

    total_BA: Array
    count_BA: Array
    row_nll_B: ArrayOrNone = None

    @property
    def mean_BA(self) -> Array:
        """Log-probability per token; 0 for a row without an answer."""
        return self.total_BA / jnp.maximum(self.count_BA, 1.0)


def stack_answers(batch: Batch) -> Batch:
    """Return the batch with the other answer of row b as row 2 b + 1: both stay on the device of the row."""
    if batch.other is None:
        return batch
    first = replace(batch, other=None)
    pairs = jax.tree.map(lambda a, b: jnp.stack([a, b], 1), first, with_other_answer(batch))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pairs)  # (B, 2, ...) -> (2 B, ...)


def with_other_answer(batch: Batch) -> Batch:
    """Return the batch of the other answers alone; all else, such as a source, is that of the rows."""
    fields = {name: value for name, value in vars(batch.other).items() if value is not None}
    return replace(batch, **fields, other=None)


def answer_log_probs(
    model: Any, params: Params, batch: Batch, key: Array | None = None, whole_rows: bool = False
) -> AnswerLogProbs:
    """Return the log-probabilities of the answers of a batch, differentiable; dropout only with a key.

    whole_rows: also compute `row_nll_B`, which needs the log-probabilities of the prompts.
    """

    def features(module: Any, rows: Batch) -> Array:
        return module.extend(rows.target_BT, module.start(rows, 0), rows.target_valid_BT)[0]

    rows, rngs = stack_answers(batch), None if key is None else {"dropout": key}
    features_RTD = model.apply({"params": params}, rows, method=features, rngs=rngs)
    readout, mask_RT = partial(model.apply, {"params": params}, method="readout"), rows.label_valid_BT
    scored_RT = rows.target_valid_BT if whole_rows else mask_RT
    log_prob_RT = token_log_probs(readout, features_RTD, rows.label_BT, scored_RT)
    shape = len(batch.target_BT), -1
    total_BA = jnp.where(mask_RT, log_prob_RT, 0.0).sum(1).reshape(shape)
    count_BA = mask_RT.sum(1, dtype=jnp.float32).reshape(shape)
    if not whole_rows:
        return AnswerLogProbs(total_BA, count_BA)
    nll_RA = -log_prob_RT.sum(1) / jnp.maximum(rows.target_valid_BT.sum(1), 1)
    return AnswerLogProbs(total_BA, count_BA, nll_RA.reshape(shape)[:, 0])
