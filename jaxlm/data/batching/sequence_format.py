"""The input formats of fine-tuning: a text of one or several parts becomes one row of ids with separators.

single       BOS a EOS          BOS a EOS b EOS                   one text, or a pair: the input of BERT and GPT-1
both_orders  BOS a EOS b EOS  BOS b EOS a EOS                     a pair in both orders
choices      BOS a EOS c1 EOS  BOS a EOS c2 EOS  ...              a context with each of its endings

BOS begins a sequence and EOS ends a part of it, so the ids alone tell the sequence and the part of each token
(`jaxlm.models.finetune_heads`). TABs separate the parts of a text. `collate` adds the last EOS, as to every row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jaxlm.data.tokenizers.base import SpecialIds, Tokenizer
from jaxlm.errors import UserError


@dataclass(frozen=True)
class SequenceFormat:
    """The format of a row.

    Attributes:
      input_format: the sequences that a text becomes, as above.
      num_separators: EOS between two parts (RoBERTa: 2).
      max_length: tokens of a sequence; the longest part is cut at its end until the sequence fits.
    """

    input_format: Literal["single", "both_orders", "choices"] = "single"
    num_separators: int = 1
    max_length: int = 512

    def __post_init__(self) -> None:
        if self.num_separators < 1 or self.max_length < 8:
            raise UserError(
                f"{self.num_separators} separators and sequences of {self.max_length} tokens: expected 1 or more, "
                "and 8 or more"
            )

    def with_max_positions(self, max_positions: int | None) -> "SequenceFormat":
        """The format with sequences of at most `max_positions` tokens."""
        if max_positions is None or self.max_length <= max_positions:
            return self
        return replace(self, max_length=max_positions)

    def encode_rows(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, without the last EOS. Raises UserError for a text with too few parts."""
        parts_of_texts = [text.split("\t") for text in texts]
        ids = iter(tokenizer.encode([part for parts in parts_of_texts for part in parts]))
        rows = zip(parts_of_texts, texts, strict=True)
        return [self._encode_row([next(ids) for _ in parts], text, tokenizer.special) for parts, text in rows]

    def _encode_row(self, parts: list[np.ndarray], text: str, special: SpecialIds) -> np.ndarray:
        if self.input_format == "both_orders" and len(parts) != 2 or self.input_format == "choices" and len(parts) < 3:
            expected = "two" if self.input_format == "both_orders" else "a context and two endings or more"
            raise UserError(f"{text[:80]!r} has {len(parts)} parts between TABs, expected {expected}")
        for part in parts:  # models tell the parts of a row by these ids
            if (is_mark := (part == special.start) | (part == special.eos)).any():
                raise UserError(
                    f"{text[:60]!r} has the special token with the id {part[is_mark][0]} in it, which begins a row or "
                    "ends a part: remove it, and separate the parts of a text by TABs"
                )
        if self.input_format == "single":
            sequences = [parts]
        elif self.input_format == "both_orders":
            sequences = [parts, parts[::-1]]
        else:
            sequences = [[parts[0], ending] for ending in parts[1:]]
        joined = [self._join_parts(sequence, special) for sequence in sequences]
        return np.concatenate(joined)[:-1].astype(np.int32)

    def _join_parts(self, parts: list[np.ndarray], special: SpecialIds) -> np.ndarray:
        room = self.max_length - 2 - self.num_separators * (len(parts) - 1)  # 2: BOS and the last EOS
        parts = list(parts)
        while (excess := sum(map(len, parts)) - room) > 0 and any(map(len, parts)):
            lengths = [len(part) for part in parts]
            longest = int(np.argmax(lengths))
            second = max([*lengths[:longest], *lengths[longest + 1 :], 0])
            # Cut the longest part down to the second longest at most, but by one token at least.
            parts[longest] = parts[longest][: max(lengths[longest] - excess, min(second, lengths[longest] - 1))]
        pieces: list[np.ndarray] = [np.array([special.start])]
        for part in parts:
            pieces += [part, np.full(self.num_separators, special.eos)]
        return np.concatenate(pieces)[: -(self.num_separators - 1) or None]
