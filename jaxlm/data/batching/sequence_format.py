"""How a text of one part or of several becomes one row of ids for a model that reads the marks between them.

single       BOS a EOS          BOS a EOS b EOS                   one text, or a pair: what BERT and GPT-1 read
both_orders  BOS a EOS b EOS  BOS b EOS a EOS                     a pair in both orders
choices      BOS a EOS c1 EOS  BOS a EOS c2 EOS  ...              a context with each of its endings

BOS begins a sequence and EOS ends a part of it, so the ids alone say which part of which sequence a token belongs to
(`jaxlm.models.finetune_heads`). The parts of a text stand between TABs. The last EOS is that of every row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jaxlm.data.tokenizers.base import SpecialIds, Tokenizer
from jaxlm.errors import UserError


@dataclass(frozen=True)
class SequenceFormat:
    """Rows with marks.

    Attributes:
      input_format: which sequences a text becomes, as above.
      num_separators: EOS between two parts (RoBERTa: 2).
      max_length: tokens of a sequence; the longest of its parts is cut at its end until it fits.
    """

    input_format: Literal["single", "both_orders", "choices"] = "single"
    num_separators: int = 1
    max_length: int = 512

    def __post_init__(self) -> None:
        if self.num_separators < 1 or self.max_length < 8:
            raise UserError(
                f"{self.num_separators} separators and sequences of {self.max_length} tokens: expected 1 or more, "
                "and 8 or "
                "more"
            )

    def with_max_positions(self, max_positions: int | None, num_sequences: int) -> "SequenceFormat":
        """The same for rows of so many positions at most, and so many sequences."""
        if max_positions is None or self.max_length <= max_positions // num_sequences:
            return self
        return replace(self, max_length=max_positions // num_sequences)

    def encode_rows(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, without the last EOS. Raises UserError for a text with too few parts."""
        parts = [text.split("\t") for text in texts]
        ids = iter(tokenizer.encode([part for text in parts for part in text]))
        return [
            self._encode_row([next(ids) for _ in some], text, tokenizer.special)
            for some, text in zip(parts, texts, strict=True)
        ]

    def _encode_row(self, parts: list[np.ndarray], text: str, special: SpecialIds) -> np.ndarray:
        if self.input_format == "both_orders" and len(parts) != 2 or self.input_format == "choices" and len(parts) < 3:
            wanted = "two" if self.input_format == "both_orders" else "a context and two endings or more"
            raise UserError(f"{text[:80]!r} has {len(parts)} parts between TABs, expected {wanted}")
        if self.input_format == "single":
            sequences = [parts]
        elif self.input_format == "both_orders":
            sequences = [parts, parts[::-1]]
        else:
            sequences = [[parts[0], ending] for ending in parts[1:]]
        joined = [self._join_parts(sequence, special) for sequence in sequences]
        return np.concatenate(joined)[:-1].astype(np.int32)

    def _join_parts(self, parts: list[np.ndarray], special: SpecialIds) -> np.ndarray:
        room = self.max_length - 2 - self.num_separators * (len(parts) - 1)
        parts = list(parts)
        while (spare := sum(map(len, parts)) - room) > 0 and any(map(len, parts)):
            lengths = [len(part) for part in parts]
            longest = int(np.argmax(lengths))
            second = max([*lengths[:longest], *lengths[longest + 1 :], 0])
            parts[longest] = parts[longest][: max(lengths[longest] - spare, min(second, lengths[longest] - 1))]
        pieces: list[np.ndarray] = [np.array([special.start])]
        for part in parts:
            pieces += [part, np.full(self.num_separators, special.eos)]
        return np.concatenate(pieces)[: -(self.num_separators - 1) or None]
