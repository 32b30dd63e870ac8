"""Per-token flags for pre-training (is text, starts a word, ends a sentence), and the ids of the mask or the sentinels.

They are two columns of the batches that mask text, in addition to those of `jaxlm.data.batching.collate`:

| column   | a row is                                                                              |
|----------|---------------------------------------------------------------------------------------|
| "piece"  | one number for each id of the vocabulary: the sum of its flags, or 0                   |
| "symbol" | the ids that replace masked text, one row: the mask, or the sentinels in their order   |
"""

from collections.abc import Sequence

import numpy as np

from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.pretrained import FastTokenizer
from jaxlm.data.tokenizers.token_bytes import get_token_bytes
from jaxlm.errors import UserError

IS_TEXT, STARTS_WORD, ENDS_SENTENCE = 1, 2, 4

SENTENCE_PUNCTUATION = (b".", b"!", b"?", "。".encode(), "！".encode(), "？".encode(), "؟".encode(), "।".encode())

WORD_START_MARKS = ("\u2581", "\u0120", "\u010a")
"""The first character of a word in published vocabularies: SentencePiece's space, a byte-level space or line break."""


def token_flag_columns(tokenizer: Tokenizer, symbols: Sequence[str]) -> dict[str, Ragged]:
    """The columns "piece" and "symbol"; the symbol "" is the unknown id, for vocabularies without a mask token."""
    columns = mask_token_column(tokenizer, symbols)
    flags_V = np.zeros(tokenizer.vocab_size, np.uint8)
    # A piece starts a word by its space, or in a published vocabulary by its mark or if it lacks WordPiece's "##".
    if isinstance(tokenizer, FastTokenizer):
        is_word_piece = any(piece.startswith("##") for piece in tokenizer.pieces)
        for index, piece in enumerate(tokenizer.pieces):
            if piece and index not in tokenizer.control_ids:
                starts_word = not piece.startswith("##") if is_word_piece else piece.startswith(WORD_START_MARKS)
                flags_V[index] = _flags(starts_word, piece.encode())
    else:
        for index, text in enumerate(get_token_bytes(tokenizer).rest):
            if text:
                flags_V[index] = _flags(text[:1].isspace(), text.rstrip())
    flags_V[columns["symbol"].flat] = 0
    return {"piece": Ragged(flags_V, np.arange(len(flags_V) + 1)), **columns}


def mask_token_column(tokenizer: Tokenizer, symbols: Sequence[str]) -> dict[str, Ragged]:
    """The column "symbol" alone."""
    return {"symbol": Ragged.from_rows([[mask_token_id(tokenizer, symbol) for symbol in symbols]])}


def mask_token_id(tokenizer: Tokenizer, symbol: str) -> int:
    """The id of a symbol such as "[MASK]", without a space before it. Raises UserError if it has none of its own."""
    if not symbol and tokenizer.special.unk is not None:
        return tokenizer.special.unk
    ids = tokenizer.encode([symbol])[0].tolist()
    is_one_token = len(ids) in (1, 2) and ids[-1] not in tokenizer.special.all_ids
    pieces = tokenizer.pieces if isinstance(tokenizer, FastTokenizer) else None
    if not is_one_token or symbol != (pieces[ids[-1]] if pieces else tokenizer.decode([ids[-1:]])[0].strip()):
        raise UserError(
            f"the tokenizer has no id for {symbol!r}: it encodes it as {len(ids)}. Train it with the symbol, as in "
            f"SentencePiece(user_defined_symbols=({symbol!r},)) or `jaxlm prepare --user-defined-symbol {symbol!r}`, "
            "or mask with the unknown id (the empty symbol)"
        )
    return ids[-1]


def _flags(starts_word: bool, text: bytes) -> int:
    return IS_TEXT + STARTS_WORD * starts_word + ENDS_SENTENCE * text.endswith(SENTENCE_PUNCTUATION)
