"""What a tokenizer is: the special ids, what it can do, and how it lies on disk.

Text has no ids of its own below 4: `encode` adds no special id, and `decode` drops padding, BOS and EOS.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from jaxlm.filesystem import write_atomic

PAD, UNK, BOS, EOS = 0, 1, 2, 3

NUM_SPECIALS = 4

REPLACEMENT_CHAR = "\ufffd"

TOKENIZER_JSON = "tokenizer.json"

TOKENIZE_BATCH_SIZE = 4096
"""Lines that the tokenizer gets at once: a call a line costs more than the encoding itself."""


class Tokenizer(Protocol):
    """Text to ids and back; made by `.fit` of a configuration, or by `load_tokenizer`."""

    @property
    def vocab_size(self) -> int:
        """The number of ids, the four special ones included."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the content: equal for tokenizers that encode alike."""
        ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array of ids for each text, without special ids (but UNK where a symbol is unknown)."""
        ...

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """One text for each row of ids; PAD, BOS and EOS are dropped, an id out of range counts as UNK."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the tokenizer into `folder`, which is made if need be."""
        ...


class SerializableTokenizer:
    """Saving and fingerprint of a tokenizer whose content is one string of bytes."""

    kind: ClassVar[str]
    filename: ClassVar[str]  # the name of the file that holds the content

    @property
    def vocab_size(self) -> int:
        raise NotImplementedError

    def to_bytes(self) -> bytes:
        """All that the tokenizer has learnt."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """SHA-256 of kind and content."""
        return content_hash(self.kind, self.to_bytes())

    def save(self, folder: Path) -> None:
        """Writes the content, then `tokenizer.json` that names and hashes it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        description = {"kind": self.kind, "size": self.vocab_size, "file": self.filename, "sha256": self.fingerprint}
        write_atomic(folder / self.filename, self.to_bytes())
        write_atomic(folder / TOKENIZER_JSON, json.dumps(description, indent=1) + "\n")


def content_hash(kind: str, content: bytes) -> str:
    """SHA-256 (hexadecimal) of a tokenizer's kind and content."""
    return hashlib.sha256(kind.encode() + b"\n" + content).hexdigest()


def require_list(texts: Sequence[str]) -> Sequence[str]:
    """Refuses one bare string, which would be read letter by letter."""
    if isinstance(texts, str):
        raise TypeError("encode takes a list of texts, not one text: write encode([text])")
    return texts
