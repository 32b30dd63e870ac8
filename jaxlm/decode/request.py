"""The request that all searches take: the prompts and limits of a batch, and the static settings of the search."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import struct

from jaxlm.decode.grammar import TokenGrammar
from jaxlm.decode.logit_masks import ForcedPrefix
from jaxlm.errors import UserError
from jaxlm.types import ArrayOrNone, Batch, SequenceModel


@struct.dataclass
class DecodeRequest:
    """The inputs of a search, as arrays with one row a prompt.

    Attributes:
      batch: the input of the model's `start`, such as the source.
      prompt_BP, prompt_valid_BP: the tokens before the continuation, at least BOS, padded on either side. They are not
        part of the result.
      limit_B: the maximum number of generated tokens of each row, the stop id included. Limits above
        `DecodeConfig.length` are cut to it; a row with limit 0 stays empty.
      forced_prefix: the first tokens of each continuation.
      grammar: a constraint, from `jaxlm.decode.grammar` or `jaxlm.decode.copy_constraint`.
      seed, line_B: the address of the sampling noise, a seed and one line number a row (default: the row number). Beam
        search ignores them.
    """

    batch: Batch
    prompt_BP: ArrayOrNone
    prompt_valid_BP: ArrayOrNone
    limit_B: ArrayOrNone
    forced_prefix: ForcedPrefix | None = None
    grammar: TokenGrammar | None = None
    seed: ArrayOrNone = 0
    line_B: ArrayOrNone = None

    def check_shapes(self, *, several_limits: bool = False) -> None:
        """Raises UserError if shapes do not match. With `several_limits` a prompt may have more than one limit."""
        prompt, valid, limit = (x.shape for x in (self.prompt_BP, self.prompt_valid_BP, self.limit_B))
        if len(prompt) != 2 or prompt[1] < 1:
            raise UserError(f"prompt_BP has shape {prompt}, expected [B, P] with P >= 1: start it with BOS")
        if valid != prompt:
            raise UserError(f"prompt_valid_BP has shape {valid}, expected that of prompt_BP: {prompt}")
        several = several_limits and len(limit) == 1 and 0 < prompt[0] <= limit[0] and limit[0] % prompt[0] == 0
        if limit != prompt[:1] and not several:
            raise UserError(f"limit_B has shape {limit}, expected {prompt[:1]}: one limit a row")

    def check_positions(self, model: Any, length: int) -> None:
        """Raises UserError if a row may read more tokens than the model has positions. Tokens count, not padding.

        length: the room for generated tokens. Arrays are looked at only if their shapes leave a doubt.
        """
        source_valid_BS, prompt = self.batch.source_valid_BS, self.prompt_BP.shape[1]
        source = 0 if source_valid_BS is None else source_valid_BS.shape[1]
        if not isinstance(model, SequenceModel) or (limit := model.max_target_tokens(source)) is None:
            return
        if prompt - 1 + length <= limit or isinstance(self.prompt_valid_BP, jax.core.Tracer):
            return
        source_B = 0 if source_valid_BS is None else np.asarray(source_valid_BS).sum(1)
        limit_B = np.minimum(np.asarray(self.limit_B).reshape(prompt_rows := len(self.prompt_BP), -1).max(1), length)
        tokens_B = np.where(limit_B > 0, np.asarray(self.prompt_valid_BP).sum(1) + limit_B - 1, 0)
        over_B = np.broadcast_to(tokens_B - model.max_target_tokens(source_B), prompt_rows)
        if (over_B > 0).any():
            row = int(over_B.argmax())
            raise UserError(
                f"row {row}: room for {tokens_B[row]} target tokens, but learned positions reach "
                f"{tokens_B[row] - over_B[row]}: lower the length limit (of `generate`, --max-tokens), shorten the "
                "prompt, or train with a larger model.max_length"
            )


@dataclass(frozen=True)
class DecodeConfig:
    """The static settings of every search: the room for generated tokens, and the ids that end a continuation.

    Each new value compiles a new program. The limits of the rows (`DecodeRequest.limit_B`) may be smaller.
    """

    length: int
    stop: tuple[int, ...] = (3,)

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UserError(
                f"length={self.length} must be at least 1: it is the room for generated tokens, limit_B the limits"
            )
        if not isinstance(self.stop, tuple):
            raise UserError(f"stop={self.stop!r} must be a tuple of ids, as in stop=(3,)")
