"""What the ids of a tokenizer are good for: which are text, begin a word or end a sentence, and which hide text.

Two columns say it to the batches that hide text, beside those of `jaxlm.data.batching.collate`:

| column   | a row is                                                                                        |
|----------|-------------------------------------------------------------------------------------------------|
| "piece"  | one number for each id of the vocabulary: the sum of TEXT, BEGINS and ENDS that hold, or 0        |
| "symbol" | the ids that stand for hidden text, one row: the mask, or the sentinels in their order            |
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
"""What begins a word in published vocabularies: SentencePiece's space, a byte-level space or line break."""


def token_flag_columns(tokenizer: Tokenizer, symbols: Sequence[str]) -> dict[str, Ragged]:
    """Columns "piece" and "symbol". The symbol "" is the unknown id, for vocabularies that have no other to spare.

    Raises UserError for a symbol that the tokenizer does not write as one id of its own.
    """
    columns, kinds = mask_token_column(tokenizer, symbols), _token_flags(tokenizer)
    kinds[columns["symbol"].flat] = 0
    return {"piece": Ragged(kinds, np.arange(len(kinds) + 1)), **columns}


def mask_token_column(tokenizer: Tokenizer, symbols: Sequence[str]) -> dict[str, Ragged]:
    """Column "symbol" alone."""
    return {"symbol": Ragged.from_rows([[mask_token_id(tokenizer, symbol) for symbol in symbols]])}


def mask_token_id(tokenizer: Tokenizer, symbol: str) -> int:
    """The id of a symbol such as "[MASK]"; some tokenizers put a space's id before it, which is not its own."""
    if not symbol and tokenizer.special.unk is not None:
        return tokenizer.special.unk
    ids = tokenizer.encode([symbol])[0].tolist()
    if len(ids) not in (1, 2) or ids[-1] in tokenizer.special.all_ids or _piece_of_id(tokenizer, ids[-1]) != symbol:
        raise UserError(
            f"the tokenizer has no id for {symbol!r}: it writes it as {len(ids)}. Learn it with the symbol, as in "
            f"SentencePiece(user_defined_symbols=({symbol!r},)) or `jaxlm prepare --user-defined-symbol "
            f"{symbol!r}`, or hide text under the "
            "unknown id (the empty symbol)"
        )
    return ids[-1]


def _piece_of_id(tokenizer: Tokenizer, index: int) -> str:
    if isinstance(tokenizer, FastTokenizer):
        return tokenizer.pieces[index]
    return tokenizer.decode([[index]])[0].strip()


def _token_flags(tokenizer: Tokenizer) -> np.ndarray:
    if isinstance(tokenizer, FastTokenizer):
        return _fast_token_flags(tokenizer)
    kinds = np.zeros(tokenizer.vocab_size, np.uint8)
    for index, text in enumerate(get_token_bytes(tokenizer).rest):
        if text:
            kinds[index] = (
                IS_TEXT
                + STARTS_WORD * text[:1].isspace()
                + ENDS_SENTENCE * text.rstrip().endswith(SENTENCE_PUNCTUATION)
            )
    return kinds


def _fast_token_flags(tokenizer: FastTokenizer) -> np.ndarray:
    """By the marks of the pieces: "##" goes on (WordPiece), else a mark begins a word."""
    kinds = np.zeros(tokenizer.vocab_size, np.uint8)
    marked = any(piece.startswith("##") for piece in tokenizer.pieces)
    for index, piece in enumerate(tokenizer.pieces):
        begins = not piece.startswith("##") if marked else piece.startswith(WORD_START_MARKS)
        if piece and index not in tokenizer.control_ids:
            kinds[index] = (
                IS_TEXT + STARTS_WORD * begins + ENDS_SENTENCE * piece.encode().endswith(SENTENCE_PUNCTUATION)
            )
    return kinds
