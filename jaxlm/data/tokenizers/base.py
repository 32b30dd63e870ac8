"""The tokenizer protocol, the special ids of a tokenizer, and its files.

The tokenizers that are trained here use the special ids 0 to 3, a published tokenizer keeps the ids of its model.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np

from jaxlm.errors import UserError
from jaxlm.filesystem import create_folder, write_atomic
from jaxlm.json_files import check_type

Side = Literal["source", "target"]

PAD, UNK, BOS, EOS = 0, 1, 2, 3

NUM_SPECIALS = 4

REPLACEMENT_CHAR = "\ufffd"

TOKENIZER_JSON = "tokenizer.json"

TOKENIZE_BATCH_SIZE = 4096
"""Lines per call of `encode`: one call per line costs more than the encoding itself."""


@dataclass(frozen=True)
class SpecialIds:
    """The ids of a vocabulary that are not text; None for one that the vocabulary lacks.

    Attributes:
      pad: padding. Batches are filled with 0 in any case: their masks mark the padding.
      unk: unknown text.
      bos: the id that begins a text by the rules of the vocabulary.
      eos: the id that batches put after a text, or after each part of one.
      start: the id that a model reads before the first token of a text: BOS, or for a published model its
        `decoder_start_token_id`, its [CLS], or its EOS if it has no BOS.
      end_ids: the ids that end a generated text.
      suppress: the ids that decoding never generates.
    """

    pad: int | None = PAD
    unk: int | None = UNK
    bos: int | None = BOS
    eos: int = EOS
    start: int = BOS
    end_ids: tuple[int, ...] = (EOS,)
    suppress: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The ids that `dataclasses.asdict` wrote. Raises UserError for others."""
        for field in dataclasses.fields(cls):
            check_type(fields.get(field.name), field.type, f"special.{field.name}")
        return cls(**fields | {name: tuple(fields[name]) for name in ("end_ids", "suppress")})

    @property
    def hidden(self) -> frozenset[int]:
        """The ids that `decode` drops: all but the unknown one."""
        ids = {self.pad, self.bos, self.eos, self.start, *self.end_ids}
        return frozenset(index for index in ids if index is not None)

    @property
    def all_ids(self) -> frozenset[int]:
        """The ids that are not text."""
        return self.hidden if self.unk is None else self.hidden | {self.unk}

    @property
    def never_predicted(self) -> tuple[int, ...]:
        """The ids that cannot follow a token: padding, and the one that is read before a text."""
        return tuple(sorted(index for index in {self.pad, self.start} if index is not None))

    def is_unknown(self, ids: np.ndarray) -> np.ndarray:
        """True where an id is the unknown one; False everywhere if the vocabulary has none."""
        return np.asarray(ids) == (-1 if self.unk is None else self.unk)


OWN_SPECIAL_IDS = SpecialIds()
"""The special ids of the tokenizers that are trained here."""


class Tokenizer(Protocol):
    """Text to ids and back; made by `fit` of a configuration, or by `load_tokenizer`."""

    @property
    def special(self) -> SpecialIds:
        """The ids that are not text."""
        ...

    @property
    def vocab_size(self) -> int:
        """The number of ids, special ids included."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content: equal for tokenizers that encode alike."""
        ...

    def side(self, name: Side) -> "Tokenizer":
        """The tokenizer of one side of pairs: the same one, unless the sides have different pieces.

        Of such a tokenizer itself, `encode` is that of the source and `decode` that of the target.
        """
        ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return an int32 array of ids for each text, without special ids except UNK for unknown symbols."""
        ...

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return a text for each row of ids. PAD, BOS and EOS are dropped, an id out of range counts as UNK."""
        ...

    def save(self, folder: Path) -> None:
        """Write the tokenizer as `folder`, whole or not at all; a folder that exists is replaced."""
        ...


class SerializableTokenizer:
    """Base of the tokenizers whose content is one string of bytes: fingerprint and saving.

    Attributes:
      kind: the name of the class in `tokenizer.json`.
      filename: the name of the file that holds the content.
    """

    kind: ClassVar[str]
    filename: ClassVar[str]

    def side(self, name: Side) -> Self:
        """See `Tokenizer`."""
        return self

    def to_bytes(self) -> bytes:
        """The whole content."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        return content_hash(self.kind, self.to_bytes())

    def save(self, folder: Path) -> None:
        description = {"kind": self.kind, "file": self.filename, "sha256": self.fingerprint}
        with create_folder(folder, replace=True) as partial:
            write_atomic(partial / self.filename, self.to_bytes())
            write_atomic(partial / TOKENIZER_JSON, json.dumps(description, indent=1) + "\n")


class TrainedTokenizer(SerializableTokenizer):
    """Base of the tokenizers that are trained here, with the special ids 0 to 3."""

    special: ClassVar[SpecialIds] = OWN_SPECIAL_IDS


def content_hash(kind: str, content: bytes) -> str:
    """SHA-256 (hexadecimal) of the kind and the content of a tokenizer."""
    return hashlib.sha256(kind.encode() + b"\n" + content).hexdigest()


def parse_content(content: bytes, place: str, annotation: Any) -> Any:
    """The JSON that a tokenizer wrote, of this type; a vocabulary may hold half a surrogate pair."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not the JSON of a tokenizer ({str(error)[:80]})") from None
    check_type(value, annotation, place)
    return value


def require_list(texts: Sequence[str]) -> Sequence[str]:
    """Return `texts`. Raises TypeError for one string, whose characters would be taken for texts."""
    if isinstance(texts, str):
        raise TypeError("encode takes a list of texts, not one text: write encode([text])")
    return texts


def encode_words(tokenizer: Tokenizer, words: Sequence[str]) -> list[np.ndarray]:
    """The ids of each word as it stands inside a text, where a space is before it.

    A tokenizer that needs that space in the word (bytes, characters, the byte-level pieces of GPT-2 and RoBERTa) gets
    it; the result is that of Transformers' `is_split_into_words` with `add_prefix_space`.
    """
    first, second, spaced, text = (ids.tolist() for ids in tokenizer.encode(["a", "b", " b", "a b"]))
    if text == [*first, *second]:
        return tokenizer.encode(words)
    if text == [*first, *spaced]:
        return tokenizer.encode([f" {word}" for word in words])
    rows = tokenizer.encode([f"a {word}" for word in words])
    return [row[len(first) :] for row in rows]
