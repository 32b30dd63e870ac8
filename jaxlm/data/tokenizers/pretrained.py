"""Tokenizers of published models: their own files, and the ids of their models."""

import base64
import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np

from jaxlm.data.tokenizers.base import SerializableTokenizer, SpecialIds, require_list
from jaxlm.data.tokenizers.sentencepiece import parse_sentencepiece, replace_surrogates
from jaxlm.errors import UserError


@dataclass(frozen=True)
class PretrainedTokenizer:
    """The configuration of a tokenizer that came with a published model: it cannot be trained."""

    vocab_size: int

    def fit(self, texts: Iterable[str] = ()) -> Any:
        """Raises UserError."""
        raise UserError(
            "the tokenizer of a published model cannot be trained: start from the workdir that `import-hf` wrote"
        )


@dataclass(frozen=True)
class FastTokenizer(SerializableTokenizer):
    """The `tokenizer.json` of the library `tokenizers`.

    Attributes:
      tokenizer_json: the content of the file.
      vocab_size: the ids of the model, which may embed more of them than there are pieces.
    """

    tokenizer_json: str
    vocab_size: int
    special: SpecialIds
    kind: ClassVar[str] = "tokenizers"
    filename: ClassVar[str] = "tokenizers.json"

    def __repr__(self) -> str:
        return f"FastTokenizer(vocab_size={self.vocab_size}, sha256={self.fingerprint[:12]})"

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return parse_tokenizer_json(self.tokenizer_json)

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        """The piece of each id, "" for an id that has none."""
        return tuple(self._tokenizer.id_to_token(index) or "" for index in range(self.vocab_size))

    @functools.cached_property
    def control_ids(self) -> frozenset[int]:
        """The ids that are not text: those of `special`, and the added tokens that the file marks as special."""
        added = self._tokenizer.get_added_tokens_decoder().items()
        return self.special.all_ids.union(index for index, token in added if token.special)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        texts = [replace_surrogates(text) for text in require_list(texts)]
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        rows = [np.asarray(encoding.ids, np.int32) for encoding in encodings]
        # Pieces that were added to the tokenizer later may have ids that the model does not embed.
        unknown = self.special.eos if self.special.unk is None else self.special.unk
        return [np.where(ids < self.vocab_size, ids, unknown) for ids in rows]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self._tokenizer.decode_batch(
            [_text_ids(row, self.vocab_size, self.special) for row in rows], skip_special_tokens=True
        )

    def to_bytes(self) -> bytes:
        content = {"vocab_size": self.vocab_size, "special": asdict(self.special), "tokenizer": self.tokenizer_json}
        return json.dumps(content).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        stored = json.loads(content)
        return cls(stored["tokenizer"], stored["vocab_size"], SpecialIds.from_json(stored["special"]))


@dataclass(frozen=True)
class PretrainedSentencePiece(SerializableTokenizer):
    """Published SentencePiece models: one for both sides, or one for the source and one for the target.

    Attributes:
      source_model, target_model: the models; `encode` uses the first, `decode` the second.
      vocab_size: the ids of the model, which may embed more of them than there are pieces.
      vocab: the pieces in the order of their ids if it is not that of the SentencePiece model (Marian), else empty.
        A text may then begin with a language code such as ">>fra<<", which is one piece.
    """

    source_model: bytes
    target_model: bytes
    vocab_size: int
    special: SpecialIds
    vocab: tuple[str, ...] = ()
    kind: ClassVar[str] = "published_pieces"
    filename: ClassVar[str] = "pieces.json"

    def __repr__(self) -> str:
        return f"PretrainedSentencePiece(vocab_size={self.vocab_size}, sha256={self.fingerprint[:12]})"

    @functools.cached_property
    def _processors(self) -> tuple[Any, Any]:
        return parse_sentencepiece(self.source_model), parse_sentencepiece(self.target_model)

    @functools.cached_property
    def _piece_to_id(self) -> dict[str, int]:
        return {piece: index for index, piece in enumerate(self.vocab)}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        texts = [replace_surrogates(text) for text in require_list(texts)]
        if not self.vocab:
            return [np.asarray(ids, np.int32) for ids in self._processors[0].encode(texts)]
        codes, texts = zip(*map(_split_language_code, texts), strict=True) if texts else ((), ())
        lookup, unknown = self._piece_to_id.get, self.special.unk
        rows = zip(codes, self._processors[0].encode(list(texts), out_type=str), strict=True)
        return [np.array([lookup(piece, unknown) for piece in (*code, *pieces)], np.int32) for code, pieces in rows]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        processor = self._processors[1]
        size = len(self.vocab) or processor.get_piece_size()
        ids_by_row = [_text_ids(row, size, self.special) for row in rows]
        if not self.vocab:
            return [processor.decode([i for i in ids if not processor.is_control(i)]) for ids in ids_by_row]
        hidden = {self.special.unk, *(self._piece_to_id.get(piece) for piece in ("</s>", "<pad>"))}
        return [processor.decode_pieces([self.vocab[i] for i in ids if i not in hidden]) for ids in ids_by_row]

    def to_bytes(self) -> bytes:
        models = [base64.b64encode(model).decode() for model in (self.source_model, self.target_model)]
        content = {"source": models[0], "target": models[1], "vocab_size": self.vocab_size}
        return json.dumps({**content, "special": asdict(self.special), "vocabulary": self.vocab}).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        stored = json.loads(content)
        source, target = (base64.b64decode(stored[side]) for side in ("source", "target"))
        special = SpecialIds.from_json(stored["special"])
        return cls(source, target, stored["vocab_size"], special, tuple(stored["vocabulary"]))


def parse_tokenizer_json(content: str) -> Any:
    """The `tokenizers.Tokenizer` of a `tokenizer.json`. Raises UserError if it, or the library, cannot be read."""
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("this tokenizer needs the library `tokenizers`: pip install 'jaxlm[hf]'") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"tokenizer.json cannot be read: {error}") from error
    tokenizer.no_truncation()  # some files truncate and pad every text to one length
    tokenizer.no_padding()
    return tokenizer


def _split_language_code(text: str) -> tuple[tuple[str, ...], str]:
    """((">>fra<<",), "text") of ">>fra<<text", ((), text) of a text without a code."""
    end = text.find("<<") + 2 if text.startswith(">>") else 1
    return ((text[:end],), text[end:]) if end > 1 else ((), text)


def _text_ids(row: Sequence[int], size: int, special: SpecialIds) -> list[int]:
    """The ids of a row below `size` that are text."""
    hidden = special.hidden
    return [int(i) for i in row if 0 <= i < size and int(i) not in hidden]
