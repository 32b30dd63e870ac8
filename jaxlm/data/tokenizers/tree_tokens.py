"""The tokenizer of trees: subwords of the sentence, and symbols with a vocabulary of their own, which no text gives."""

import base64
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from jaxlm.data.tokenizers.base import NUM_SPECIALS, Side, TrainedTokenizer, encode_words, parse_content
from jaxlm.data.tokenizers.sentencepiece import SentencePiece, SentencePieceTokenizer
from jaxlm.data.tokenizers.simple import WordTokenizer, most_frequent_symbols
from jaxlm.errors import UserError


@dataclass(frozen=True)
class TreeTokens:
    """The configuration of subwords and symbols.

    Attributes:
      vocab_size: number of target ids: the symbols of the training trees, leaves first, and 4 special ids.
      words: the subwords of the sentences.
      mark_words: add `words.vocab_size` to the id of the first subword of each word (`EncoderDecoder.aligned`).
    """

    vocab_size: int
    words: SentencePiece = SentencePiece(4000, "bpe")
    mark_words: bool = True

    def fit(self, texts: Iterable[str]) -> "TreeTokenizer":
        """Train on sentences and their symbols in turn. Raises UserError unless there are `vocab_size` - 4 symbols."""
        texts = list(texts)
        counts = Counter(symbol for line in texts[1::2] for symbol in line.split())
        symbols = tuple(sorted(most_frequent_symbols(counts, None), key=lambda symbol: (symbol[0] in "()", symbol)))
        if (size := len(symbols) + NUM_SPECIALS) != self.vocab_size:
            raise UserError(
                f"the training trees have {len(symbols)} symbols, the tokenizer has room for "
                f"{self.vocab_size - NUM_SPECIALS}: set vocab_size = {size} in the tokenizer and vocab in the model"
            )
        return TreeTokenizer(symbols, self.words.fit(texts[0::2]), self.mark_words)


@dataclass(frozen=True)
class TreeTokenizer(WordTokenizer):
    """`encode` reads sentences, `decode` writes symbols; `side` gives the tokenizer of each."""

    pieces: SentencePieceTokenizer
    mark_words: bool
    kind: ClassVar[str] = "trees"
    filename: ClassVar[str] = "trees.json"

    def side(self, name: Side) -> Any:
        return _WordPieces(self.pieces, self.mark_words) if name == "source" else WordTokenizer(self.symbols)

    @property
    def num_leaves(self) -> int:
        """The number of symbols of words, whose ids follow the special ids."""
        return sum(symbol[0] not in "()" for symbol in self.symbols)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self.side("source").encode(texts)

    def to_bytes(self) -> bytes:
        return json.dumps([self.symbols, base64.b64encode(self.pieces.model).decode(), self.mark_words]).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        symbols, model, mark_words = parse_content(content, cls.filename, tuple[list[str], str, bool])
        return cls(tuple(symbols), SentencePieceTokenizer(base64.b64decode(model)), mark_words)


@dataclass(frozen=True)
class _WordPieces(TrainedTokenizer):
    """Subwords of words between white space; with `mark_words` the id of the first one is above all plain ids."""

    pieces: SentencePieceTokenizer
    mark_words: bool

    @property
    def vocab_size(self) -> int:
        return self.pieces.vocab_size

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        rows, mark, nothing = [text.split() for text in texts], self.mark_words * self.vocab_size, np.zeros(0, np.int32)
        words = list(dict.fromkeys(word for row in rows for word in row))
        ids_of = dict(zip(words, encode_words(self.pieces, words), strict=True))
        ids_of = {word: np.append(ids[:1] + mark, ids[1:]).astype(np.int32) for word, ids in ids_of.items()}
        return [np.concatenate([nothing, *(ids_of[word] for word in row)]) for row in rows]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self.pieces.decode([(np.asarray(row, np.int64) % self.vocab_size).tolist() for row in rows])
