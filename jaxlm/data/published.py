"""Tokenizers of published models: their own file, under the ids of `jaxlm.models.renumbered` (theirs + 4)."""

import base64
import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from jaxlm.data.vocabulary import SPECIALS, UNK, StoredTokenizer, require_list
from jaxlm.errors import UserError


@dataclass(frozen=True)
class Published:
    """The tokenizer that came with a model: there is nothing to learn."""

    size: int

    def fit(self, texts: Iterable[str] = ()) -> Any:
        """Raises UserError."""
        raise UserError("the tokenizer of a published model is not learnt: use the workdir that `import-hf` made")


@dataclass(frozen=True)
class FastTokenizer(StoredTokenizer):
    """`tokenizer.json` of the `tokenizers` library. `ids`: of the model, which may embed more than there are pieces."""

    model: str
    ids: int
    kind: ClassVar[str] = "tokenizers"
    file: ClassVar[str] = "tokenizers.json"

    def __repr__(self) -> str:
        return f"FastTokenizer(size={self.size}, sha256={self.fingerprint[:12]})"

    @property
    def size(self) -> int:
        return self.ids + SPECIALS

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            raise UserError("this tokenizer needs the library `tokenizers`: pip install 'jaxlm[hf]'") from error
        try:
            found = tokenizers.Tokenizer.from_str(self.model)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"tokenizer.json cannot be read: {error}") from error
        found.no_truncation()  # some files cut and fill up every text to one length
        found.no_padding()
        return found

    def id_of(self, piece: str) -> int | None:
        """Its id in the model, or None."""
        return self._tokenizer.token_to_id(piece)

    @property
    def pieces_size(self) -> int:
        """One more than the highest id of its pieces, those apart that were added to them later."""
        return max(self._tokenizer.get_vocab(with_added_tokens=False).values(), default=-1) + 1

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        """The piece of each of its own ids, "" for an id that has none."""
        return tuple(self._tokenizer.id_to_token(index) or "" for index in range(self.ids))

    @functools.cached_property
    def special(self) -> frozenset[int]:
        """Its own ids that are no text."""
        return frozenset(index for index, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        found = self._tokenizer.encode_batch([_plain(text) for text in require_list(texts)], add_special_tokens=False)
        rows = [np.asarray(one.ids, np.int32) for one in found]
        return [np.where(ids < self.ids, ids + SPECIALS, UNK) for ids in rows]  # pieces may be added to a model's own

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self._tokenizer.decode_batch([_theirs(row, self.ids) for row in rows], skip_special_tokens=True)

    def content(self) -> bytes:
        return json.dumps({"ids": self.ids, "tokenizer": self.model}).encode()

    @classmethod
    def from_content(cls, content: bytes) -> Self:
        stored = json.loads(content)
        return cls(stored["tokenizer"], stored["ids"])


@dataclass(frozen=True)
class PublishedPieces(StoredTokenizer):
    """SentencePiece models as they were published: one for both sides, or one for the source and one for the target.

    Attributes:
      source, target: the models; `encode` goes by the first, `decode` by the second.
      ids: of the model, which may embed more than there are pieces.
      vocabulary: the pieces in the order of their ids, where it is not the model's own (Marian), else empty.
      unknown: the id of what is no piece.
    """

    source: bytes
    target: bytes
    ids: int
    vocabulary: tuple[str, ...] = ()
    unknown: int = 0
    kind: ClassVar[str] = "published_pieces"
    file: ClassVar[str] = "pieces.json"

    def __repr__(self) -> str:
        return f"PublishedPieces(size={self.size}, sha256={self.fingerprint[:12]})"

    @property
    def size(self) -> int:
        return self.ids + SPECIALS

    @functools.cached_property
    def _processors(self) -> tuple[Any, Any]:
        import sentencepiece

        try:
            source, target = (sentencepiece.SentencePieceProcessor(model_proto=x) for x in (self.source, self.target))
        except RuntimeError as error:
            raise UserError(f"not a SentencePiece model: {error}") from error
        return source, target

    @property
    def pieces_size(self) -> int:
        """Pieces that have an id."""
        return len(self.vocabulary) or max(one.get_piece_size() for one in self._processors)

    @functools.cached_property
    def _id_of(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.vocabulary)}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        texts, processor = [_plain(text) for text in require_list(texts)], self._processors[0]
        if not self.vocabulary:
            return [np.asarray(ids, np.int32) + SPECIALS for ids in processor.encode(texts)]
        rows = processor.encode(texts, out_type=str)
        unknown = UNK - SPECIALS
        return [np.array([self._id_of.get(p, unknown) for p in row], np.int32) + SPECIALS for row in rows]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        processor, found = self._processors[1], []
        for row in rows:
            ids = _theirs(row, len(self.vocabulary) or processor.get_piece_size())
            if self.vocabulary:
                special = {self.unknown, *(i for i in ids if self.vocabulary[i] in ("</s>", "<pad>"))}
                found.append(processor.decode_pieces([self.vocabulary[i] for i in ids if i not in special]))
            else:
                found.append(processor.decode([i for i in ids if not processor.is_control(i)]))
        return found

    def content(self) -> bytes:
        models = [base64.b64encode(model).decode() for model in (self.source, self.target)]
        entries = {"source": models[0], "target": models[1], "ids": self.ids, "unknown": self.unknown}
        return json.dumps({**entries, "vocabulary": self.vocabulary}).encode()

    @classmethod
    def from_content(cls, content: bytes) -> Self:
        stored = json.loads(content)
        source, target = (base64.b64decode(stored[side]) for side in ("source", "target"))
        return cls(source, target, stored["ids"], tuple(stored["vocabulary"]), stored["unknown"])


def _plain(text: str) -> str:
    """Half surrogates, which UTF-8 has not, become '?'."""
    return text.encode(errors="replace").decode()


def _theirs(row: Sequence[int], ids: int) -> list[int]:
    return [int(i) - SPECIALS for i in row if SPECIALS <= i < ids + SPECIALS]
