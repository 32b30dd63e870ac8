"""Tokenizers of published models: their own files, and the ids of their models."""

import base64
import contextlib
import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, NotRequired, Self, TypedDict

import numpy as np

from jaxlm.data.tokenizers.base import SerializableTokenizer, Side, SpecialIds, parse_content, require_list
from jaxlm.data.tokenizers.sentencepiece import ESCAPE_CHAR, SPACE_MARK, parse_sentencepiece, replace_surrogates
from jaxlm.errors import UserError
from jaxlm.json_files import check_type

MAX_VOCAB_SIZE = 1 << 24


class _Stored(TypedDict):
    vocab_size: int
    special: dict


class _StoredPieces(_Stored):
    source: str
    target: str
    vocabulary: list[str]
    target_vocabulary: NotRequired[list[str]]
    added_tokens: NotRequired[list[dict[str, str | int | bool]]]
    prepend: NotRequired[str]


def _checked_size(vocab_size: int) -> int:
    if not 0 < vocab_size <= MAX_VOCAB_SIZE:
        raise UserError(f"a vocabulary of {vocab_size} ids: expected 1 to {MAX_VOCAB_SIZE:,}")
    return vocab_size


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
        """Raises UserError for a token that the model does not embed, if the vocabulary has no unknown id."""
        texts = [replace_surrogates(text) for text in require_list(texts)]
        with _library_errors("cannot encode a text"):
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        rows = [np.asarray(encoding.ids, np.int32) for encoding in encodings]
        for row, ids in enumerate(rows):
            if len(beyond := np.flatnonzero(ids >= self.vocab_size)):  # tokens that were added to the tokenizer later
                index = int(ids[beyond[0]])
                if (unknown := self.special.unk) is None:
                    _check_embedded(self._tokenizer.id_to_token(index), index, self.vocab_size, texts[row])
                ids[beyond] = unknown or 0
        return rows

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        ids = [_text_ids(row, self.vocab_size, self.special) for row in rows]
        with _library_errors("cannot decode ids"):
            return self._tokenizer.decode_batch(ids, skip_special_tokens=True)

    def to_bytes(self) -> bytes:
        content = {"vocab_size": self.vocab_size, "special": asdict(self.special), "tokenizer": self.tokenizer_json}
        return json.dumps(content).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        stored = parse_content(content, cls.filename, _Stored)
        check_type(stored.get("tokenizer"), str, "tokenizer")
        return cls(stored["tokenizer"], _checked_size(stored["vocab_size"]), SpecialIds.from_json(stored["special"]))


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text itself, with the space to its left or right if it strips that.

    Attributes:
      special: whether `decode` drops it.
    """

    content: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class PretrainedSentencePiece(SerializableTokenizer):
    """Published SentencePiece models: one for both sides, or one for the source and one for the target.

    Attributes:
      source_model, target_model: the models; `encode` uses the first, `decode` the second. See `side`.
      vocab_size: the ids of the model, which may embed more of them than there are pieces.
      vocab: the pieces in the order of their ids if it is not that of the SentencePiece model (Marian), else empty.
        A text may then begin with a language code such as ">>fra<<", which is one piece.
      target_vocab: the same for the target, if it has other ids than the source.
      added_tokens: the tokens that SentencePiece does not find in a text: end marks, sentinels.
      prepend_scheme: which part of a text, between its added tokens, gets a space before it if it has none: "first"
        or "always" (Llama). "": SentencePiece itself prepends one to each part.
    """

    source_model: bytes
    target_model: bytes
    vocab_size: int
    special: SpecialIds
    vocab: tuple[str, ...] = ()
    target_vocab: tuple[str, ...] = ()
    added_tokens: tuple[AddedToken, ...] = ()
    prepend_scheme: Literal["", "first", "always"] = ""
    kind: ClassVar[str] = "published_pieces"
    filename: ClassVar[str] = "pieces.json"

    def __repr__(self) -> str:
        return f"PretrainedSentencePiece(vocab_size={self.vocab_size}, sha256={self.fingerprint[:12]})"

    def side(self, name: Side) -> Self:
        return self._sides[name]

    @functools.cached_property
    def _sides(self) -> dict[Side, Self]:
        if self.source_model == self.target_model and not self.target_vocab:
            return {"source": self, "target": self}
        target = replace(self, source_model=self.target_model, vocab=self.target_vocab or self.vocab, target_vocab=())
        return {"source": replace(self, target_model=self.source_model, target_vocab=()), "target": target}

    @functools.cached_property
    def _processors(self) -> tuple[Any, Any]:
        return parse_sentencepiece(self.source_model), parse_sentencepiece(self.target_model)

    @functools.cached_property
    def _piece_to_id(self) -> dict[str, int]:
        return {piece: index for index, piece in enumerate(self.vocab)}

    @functools.cached_property
    def _token_pattern(self) -> re.Pattern | None:
        """One group for each token; of tokens with the same beginning, `read_tokenizer` puts the longest first."""
        patterns = (r"\s*" * t.lstrip + f"({re.escape(t.content)})" + r"\s*" * t.rstrip for t in self.added_tokens)
        return re.compile("|".join(patterns)) if self.added_tokens else None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        parts_of_texts = [self._split_tokens(replace_surrogates(text)) for text in require_list(texts)]
        encoded = iter(self._encode_pieces([part for parts in parts_of_texts for part in parts if type(part) is str]))
        return [
            np.concatenate([next(encoded) if type(part) is str else np.array([part], np.int32) for part in parts])
            for parts in parts_of_texts
        ]

    def _split_tokens(self, text: str) -> list[str | int]:
        """The ids of the added tokens of a text, and the text between them."""
        parts: list[str | int] = []
        end = 0
        for match in self._token_pattern.finditer(text) if self._token_pattern else ():
            token = self.added_tokens[(match.lastindex or 0) - 1]
            _check_embedded(token.content, token.id, self.vocab_size, text)
            parts += [self._with_space(text[end : match.start()], end == 0), token.id]
            end = match.end()
        return [*parts, self._with_space(text[end:], end == 0)]

    def _with_space(self, part: str, is_first: bool) -> str:
        prepend = self.prepend_scheme == "always" or (self.prepend_scheme == "first" and is_first)
        return " " + part if prepend and part and not part.startswith((" ", SPACE_MARK)) else part

    def _encode_pieces(self, texts: list[str]) -> list[np.ndarray]:
        processor = self._processors[0]
        if not self.vocab:
            # SentencePiece prepends its space to a character that no piece has, and both are cut off again.
            before = ESCAPE_CHAR if self.prepend_scheme else ""
            skipped = len(processor.encode(before))
            return [np.asarray(ids[skipped:], np.int32) for ids in processor.encode([before + text for text in texts])]
        split = [_split_language_code(text) for text in texts]
        lookup, unknown = self._piece_to_id.get, self._piece_to_id.get("<unk>", self.special.unk)
        pieces_of_texts = processor.encode([text for _, text in split], out_type=str)
        return [
            np.array([lookup(piece, unknown) for piece in (*code, *pieces)], np.int32)
            for (code, _), pieces in zip(split, pieces_of_texts, strict=True)
        ]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        processor, vocab = self._processors[1], self.target_vocab or self.vocab
        size = len(vocab) or processor.get_piece_size()
        if vocab:
            ids_by_row = [_text_ids(row, size, self.special) for row in rows]
            pieces_by_row = ([self._shown_pieces[i] for i in ids if i in self._shown_pieces] for ids in ids_by_row)
            return [processor.decode_pieces(pieces).strip() for pieces in pieces_by_row]
        shown = {token.id: replace_surrogates(token.content) for token in self.added_tokens if not token.special}
        texts = []
        for row in rows:
            ids = _text_ids(row, max([size, *(index + 1 for index in shown)]), self.special)
            ids = [
                i for i in ids if i in shown or not (i >= size or processor.is_control(i) or processor.is_unknown(i))
            ]
            pieces: Any = [shown.get(i) or processor.id_to_piece(i) for i in ids] if shown.keys() & set(ids) else ids
            texts.append(processor.decode(pieces))
        return texts

    @functools.cached_property
    def _shown_pieces(self) -> dict[int, str]:
        """The pieces that `decode` shows, without halves of surrogate pairs, which SentencePiece does not take."""
        hidden, pieces = ("</s>", "<pad>", "<unk>"), enumerate(self.target_vocab or self.vocab)
        return {i: replace_surrogates(p) for i, p in pieces if p not in hidden and i != (self.special.unk or 0)}

    def to_bytes(self) -> bytes:
        models = [base64.b64encode(model).decode() for model in (self.source_model, self.target_model)]
        content = {"source": models[0], "target": models[1], "vocab_size": self.vocab_size}
        content |= {"special": asdict(self.special), "vocabulary": self.vocab, "target_vocabulary": self.target_vocab}
        content |= {"added_tokens": [asdict(token) for token in self.added_tokens], "prepend": self.prepend_scheme}
        return json.dumps(content).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        stored = parse_content(content, cls.filename, _StoredPieces)
        source, target = (base64.b64decode(stored[side]) for side in ("source", "target"))
        size, special = _checked_size(stored["vocab_size"]), SpecialIds.from_json(stored["special"])
        vocabs = tuple(stored["vocabulary"]), tuple(stored.get("target_vocabulary", ()))
        added = tuple(AddedToken(**token) for token in stored.get("added_tokens", ()))
        return cls(source, target, size, special, *vocabs, added, stored.get("prepend", ""))


def parse_tokenizer_json(content: str) -> Any:
    """The `tokenizers.Tokenizer` of a `tokenizer.json`. Raises UserError if it, or the library, cannot be read."""
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("this tokenizer needs the library `tokenizers`: pip install 'jaxlm[hf]'") from error
    with _library_errors("cannot be read"):
        tokenizer = tokenizers.Tokenizer.from_str(content)
    tokenizer.no_truncation()  # some files truncate and pad every text to one length
    tokenizer.no_padding()
    if hasattr(tokenizer.model, "dropout"):  # of BPE: some files draw the pieces of a text at random
        tokenizer.model.dropout = None
    return tokenizer


@contextlib.contextmanager
def _library_errors(fault: str) -> Iterator[None]:
    """Errors of the library `tokenizers`, panics of its Rust code included, as UserError."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"tokenizer.json {fault}: {error}") from error


def _check_embedded(token: str, index: int, vocab_size: int, text: str) -> None:
    """Raises UserError for a token that was added to the tokenizer and not to the model."""
    if index >= vocab_size:
        raise UserError(
            f"the text {text[:60]!r} has the token {token!r} with the id {index}, and the model embeds the ids below "
            f"{vocab_size}: remove it from the text, or import a model that was trained with it"
        )


def _split_language_code(text: str) -> tuple[tuple[str, ...], str]:
    """((">>fra<<",), "text") of ">>fra<<text", ((), text) of a text without a code."""
    end = text.find("<<") + 2 if text.startswith(">>") else 1
    return ((text[:end],), text[end:]) if end > 1 else ((), text)


def _text_ids(row: Sequence[int], size: int, special: SpecialIds) -> list[int]:
    """The ids of a row below `size` that are text."""
    hidden = special.hidden
    return [int(i) for i in row if 0 <= i < size and int(i) not in hidden]
