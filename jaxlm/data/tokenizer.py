"""Tokenizers: the configurations (`.fit(texts)` makes a tokenizer), and reading a saved one back."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxlm.data.published import FastTokenizer, Published, PublishedPieces
from jaxlm.data.sentencepiece import SentencePiece, SentencePieceTokenizer
from jaxlm.data.spelling import SpelledWords, SpelledWordTokenizer
from jaxlm.data.symbols import Bytes, ByteTokenizer, Characters, CharacterTokenizer, Words, WordTokenizer
from jaxlm.data.text import find
from jaxlm.data.vocabulary import BOS, DESCRIPTION, EOS, PAD, SPECIALS, UNK, Tokenizer, content_hash
from jaxlm.errors import UserError

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "SPECIALS",
    "UNK",
    "Bytes",
    "Characters",
    "Published",
    "SentencePiece",
    "SpelledWords",
    "Stored",
    "Tokenizer",
    "Words",
    "load_tokenizer",
]

LEARNT = (SentencePieceTokenizer, ByteTokenizer, CharacterTokenizer, WordTokenizer, SpelledWordTokenizer)
STORED = (*LEARNT, FastTokenizer, PublishedPieces)
KINDS = {kind.kind: kind for kind in STORED}
CURE = "Copy the folder again from where it was made, or train anew."


@dataclass(frozen=True)
class Stored:
    """The tokenizer of a workdir or of shards, or one that lies in a folder by itself: there is nothing to learn."""

    path: str
    size: int

    def fit(self, texts: Iterable[str] = ()) -> Tokenizer:
        """`texts` are not looked at. Raises UserError where there is no tokenizer."""
        return stored_tokenizer(self.path)


def stored_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that lies in the folder `path`, or in `tokenizer` there. Relative paths as in `find`."""
    inner = Path(path) / "tokenizer" / DESCRIPTION
    try:
        return load_tokenizer(find(inner).parent)
    except UserError as error:
        try:
            return load_tokenizer(find(Path(path) / DESCRIPTION).parent)
        except UserError:
            raise error from None


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`. Raises UserError if it is missing, damaged or of another kind."""
    folder = Path(folder)
    try:
        description = json.loads((folder / DESCRIPTION).read_bytes())
        kind, expected = description["kind"], description["sha256"]
    except FileNotFoundError as error:
        raise UserError(
            f"there is no tokenizer in {folder}: expected {DESCRIPTION} there, which training writes"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / DESCRIPTION} is damaged ({error!r}). {CURE}") from error
    if kind not in KINDS:
        raise UserError(f"{folder / DESCRIPTION}: tokenizer kind {kind!r}, expected one of {', '.join(KINDS)}")
    file = folder / KINDS[kind].file
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} is missing, though {DESCRIPTION} names it. {CURE}") from error
    if (found := content_hash(kind, content)) != expected:
        raise UserError(f"{file} is damaged: SHA-256 {found}, expected {expected}. {CURE}")
    return KINDS[kind].from_content(content)
