"""What the ids of a tokenizer are good for: which are text, begin a word or end a sentence, and which hide text.

Two columns say it to the batches that hide text, beside those of `jaxlm.data.collate`:

| column   | a row is                                                                                        |
|----------|-------------------------------------------------------------------------------------------------|
| "piece"  | one number for each id of the vocabulary: the sum of TEXT, BEGINS and ENDS that hold, or 0        |
| "symbol" | the ids that stand for hidden text, one row: the mask, or the sentinels in their order            |
"""

from collections.abc import Sequence

import numpy as np

from jaxlm.data.published import FastTokenizer
from jaxlm.data.ragged import Ragged
from jaxlm.data.surface import surfaces
from jaxlm.data.vocabulary import SPECIALS, UNK, Tokenizer
from jaxlm.errors import UserError

TEXT, BEGINS, ENDS = 1, 2, 4
SENTENCE_ENDS = (b".", b"!", b"?", "。".encode(), "！".encode(), "？".encode(), "؟".encode(), "।".encode())
WORD_MARKS = ("\u2581", "\u0120", "\u010a")
"""What begins a word in published vocabularies: SentencePiece's space, a byte-level space or line break."""


def piece_columns(tokenizer: Tokenizer, symbols: Sequence[str]) -> dict[str, Ragged]:
    """Columns "piece" and "symbol". The symbol "" is the unknown id, for vocabularies that have no other to spare.

    Raises UserError for a symbol that the tokenizer does not write as one id of its own.
    """
    columns, kinds = symbol_column(tokenizer, symbols), _kinds(tokenizer)
    kinds[columns["symbol"].flat] = 0
    return {"piece": Ragged(kinds, np.arange(len(kinds) + 1)), **columns}


def symbol_column(tokenizer: Tokenizer, symbols: Sequence[str]) -> dict[str, Ragged]:
    """Column "symbol" alone."""
    return {"symbol": Ragged.of([[symbol_id(tokenizer, symbol) for symbol in symbols]])}


def symbol_id(tokenizer: Tokenizer, symbol: str) -> int:
    """The id of a symbol such as "[MASK]"; some tokenizers put a space's id before it, which is not its own."""
    if not symbol:
        return UNK
    ids = tokenizer.encode([symbol])[0].tolist()
    if len(ids) not in (1, 2) or ids[-1] < SPECIALS or _shown(tokenizer, ids[-1]) != symbol:
        raise UserError(
            f"the tokenizer has no id for {symbol!r}: it writes it as {len(ids)}. Learn it with the symbol, as in "
            f"SentencePiece(symbols=({symbol!r},)) or `jaxlm prepare --symbol {symbol!r}`, or hide text under the "
            "unknown id (the empty symbol)"
        )
    return ids[-1]


def _shown(tokenizer: Tokenizer, index: int) -> str:
    if isinstance(tokenizer, FastTokenizer):
        return tokenizer.pieces[index - SPECIALS]
    return tokenizer.decode([[index]])[0].strip()


def _kinds(tokenizer: Tokenizer) -> np.ndarray:
    if isinstance(tokenizer, FastTokenizer):
        return _published(tokenizer)
    kinds = np.zeros(tokenizer.size, np.uint8)
    for index, text in enumerate(surfaces(tokenizer).later):
        if text:
            kinds[index] = TEXT + BEGINS * text[:1].isspace() + ENDS * text.rstrip().endswith(SENTENCE_ENDS)
    return kinds


def _published(tokenizer: FastTokenizer) -> np.ndarray:
    """By the marks of the pieces: "##" goes on (WordPiece), else a mark begins a word."""
    kinds = np.zeros(tokenizer.size, np.uint8)
    marked = any(piece.startswith("##") for piece in tokenizer.pieces)
    for index, piece in enumerate(tokenizer.pieces, start=SPECIALS):
        begins = not piece.startswith("##") if marked else piece.startswith(WORD_MARKS)
        if piece and index - SPECIALS not in tokenizer.special:
            kinds[index] = TEXT + BEGINS * begins + ENDS * piece.encode().endswith(SENTENCE_ENDS)
    return kinds
