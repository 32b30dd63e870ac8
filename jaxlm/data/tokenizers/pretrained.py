"""Tokenizers of published models: their own file, under the ids of `jaxlm.models.special_ids` (theirs + 4)."""

import base64
import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from jaxlm.data.tokenizers.base import NUM_SPECIALS, UNK, SerializableTokenizer, require_list
from jaxlm.errors import UserError


@dataclass(frozen=True)
class PretrainedTokenizer:
    """The tokenizer that came with a model: there is nothing to learn."""

    vocab_size: int

    def fit(self, texts: Iterable[str] = ()) -> Any:
        """Raises UserError."""
        raise UserError("the tokenizer of a published model is not learnt: use the workdir that `import-hf` made")


@dataclass(frozen=True)
class FastTokenizer(SerializableTokenizer):
    """`tokenizer.json` of the `tokenizers` library. `ids`: of the model, which may embed more than there are pieces."""

    tokenizer_json: str
    model_vocab_size: int
    kind: ClassVar[str] = "tokenizers"
    filename: ClassVar[str] = "tokenizers.json"

    def __repr__(self) -> str:
        return f"FastTokenizer(vocab_size={self.vocab_size}, sha256={self.fingerprint[:12]})"

    @property
    def vocab_size(self) -> int:
        return self.model_vocab_size + NUM_SPECIALS

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            raise UserError("this tokenizer needs the library `tokenizers`: pip install 'jaxlm[hf]'") from error
        try:
            found = tokenizers.Tokenizer.from_str(self.tokenizer_json)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"tokenizer.json cannot be read: {error}") from error
        found.no_truncation()  # some files cut and fill up every text to one length
        found.no_padding()
        return found

    def token_to_id(self, piece: str) -> int | None:
        """Its id in the model, or None."""
        return self._tokenizer.token_to_id(piece)

    @property
    def num_pieces(self) -> int:
        """One more than the highest id of its pieces, those apart that were added to them later."""
        return max(self._tokenizer.get_vocab(with_added_tokens=False).values(), default=-1) + 1

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        """The piece of each of its own ids, "" for an id that has none."""
        return tuple(self._tokenizer.id_to_token(index) or "" for index in range(self.model_vocab_size))

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Its own ids that are no text."""
        return frozenset(index for index, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        found = self._tokenizer.encode_batch(
            [_replace_surrogates(text) for text in require_list(texts)], add_special_tokens=False
        )
        rows = [np.asarray(one.ids, np.int32) for one in found]
        return [
            np.where(ids < self.model_vocab_size, ids + NUM_SPECIALS, UNK) for ids in rows
        ]  # pieces may be added to a model's own

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self._tokenizer.decode_batch(
            [_to_model_ids(row, self.model_vocab_size) for row in rows], skip_special_tokens=True
        )

    def to_bytes(self) -> bytes:
        return json.dumps({"ids": self.model_vocab_size, "tokenizer": self.tokenizer_json}).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        stored = json.loads(content)
        return cls(stored["tokenizer"], stored["ids"])


@dataclass(frozen=True)
class PretrainedSentencePiece(SerializableTokenizer):
    """SentencePiece models as they were published: one for both sides, or one for the source and one for the target.

    Attributes:
      source, target: the models; `encode` goes by the first, `decode` by the second.
      ids: of the model, which may embed more than there are pieces.
      vocabulary: the pieces in the order of their ids, where it is not the model's own (Marian), else empty.
      unknown: the id of what is no piece.
    """

    source_model: bytes
    target_model: bytes
    model_vocab_size: int
    vocab: tuple[str, ...] = ()
    unk_id: int = 0
    kind: ClassVar[str] = "published_pieces"
    filename: ClassVar[str] = "pieces.json"

    def __repr__(self) -> str:
        return f"PretrainedSentencePiece(vocab_size={self.vocab_size}, sha256={self.fingerprint[:12]})"

    @property
    def vocab_size(self) -> int:
        return self.model_vocab_size + NUM_SPECIALS

    @functools.cached_property
    def _processors(self) -> tuple[Any, Any]:
        import sentencepiece

        try:
            source, target = (
                sentencepiece.SentencePieceProcessor(model_proto=x) for x in (self.source_model, self.target_model)
            )
        except RuntimeError as error:
            raise UserError(f"not a SentencePiece model: {error}") from error
        return source, target

    @property
    def num_pieces(self) -> int:
        """Pieces that have an id."""
        return len(self.vocab) or max(one.get_piece_size() for one in self._processors)

    @functools.cached_property
    def _piece_to_id(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.vocab)}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        texts, processor = [_replace_surrogates(text) for text in require_list(texts)], self._processors[0]
        if not self.vocab:
            return [np.asarray(ids, np.int32) + NUM_SPECIALS for ids in processor.encode(texts)]
        rows = processor.encode(texts, out_type=str)
        unknown = UNK - NUM_SPECIALS
        return [np.array([self._piece_to_id.get(p, unknown) for p in row], np.int32) + NUM_SPECIALS for row in rows]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        processor, found = self._processors[1], []
        for row in rows:
            ids = _to_model_ids(row, len(self.vocab) or processor.get_piece_size())
            if self.vocab:
                special = {self.unk_id, *(i for i in ids if self.vocab[i] in ("</s>", "<pad>"))}
                found.append(processor.decode_pieces([self.vocab[i] for i in ids if i not in special]))
            else:
                found.append(processor.decode([i for i in ids if not processor.is_control(i)]))
        return found

    def to_bytes(self) -> bytes:
        models = [base64.b64encode(model).decode() for model in (self.source_model, self.target_model)]
        entries = {"source": models[0], "target": models[1], "ids": self.model_vocab_size, "unknown": self.unk_id}
        return json.dumps({**entries, "vocabulary": self.vocab}).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        stored = json.loads(content)
        source, target = (base64.b64decode(stored[side]) for side in ("source", "target"))
        return cls(source, target, stored["ids"], tuple(stored["vocabulary"]), stored["unknown"])


def _replace_surrogates(text: str) -> str:
    """Half surrogates, which UTF-8 has not, become '?'."""
    return text.encode(errors="replace").decode()


def _to_model_ids(row: Sequence[int], ids: int) -> list[int]:
    return [int(i) - NUM_SPECIALS for i in row if NUM_SPECIALS <= i < ids + NUM_SPECIALS]
