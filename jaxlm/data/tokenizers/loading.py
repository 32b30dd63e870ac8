"""Tokenizers: the configurations (`.fit(texts)` makes a tokenizer), and reading a saved one back."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxlm.data.files import find_file
from jaxlm.data.tokenizers.base import BOS, EOS, NUM_SPECIALS, PAD, TOKENIZER_JSON, UNK, Tokenizer, content_hash
from jaxlm.data.tokenizers.pretrained import FastTokenizer, PretrainedSentencePiece, PretrainedTokenizer
from jaxlm.data.tokenizers.sentencepiece import SentencePiece, SentencePieceTokenizer
from jaxlm.data.tokenizers.simple import Bytes, ByteTokenizer, Characters, CharacterTokenizer, Words, WordTokenizer
from jaxlm.data.tokenizers.word_char import WordCharTokenizer, WordsWithChars
from jaxlm.errors import UserError

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "NUM_SPECIALS",
    "UNK",
    "Bytes",
    "Characters",
    "PretrainedTokenizer",
    "SentencePiece",
    "WordsWithChars",
    "SavedTokenizer",
    "Tokenizer",
    "Words",
    "load_tokenizer",
]

TRAINED_TOKENIZER_CLASSES = (
    SentencePieceTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    WordTokenizer,
    WordCharTokenizer,
)

TOKENIZER_CLASSES = (*TRAINED_TOKENIZER_CLASSES, FastTokenizer, PretrainedSentencePiece)

TOKENIZER_CLASS_BY_KIND = {kind.kind: kind for kind in TOKENIZER_CLASSES}

DAMAGED_TOKENIZER_HINT = "Copy the folder again from where it was made, or train anew."


@dataclass(frozen=True)
class SavedTokenizer:
    """The tokenizer of a workdir or of shards, or one that lies in a folder by itself: there is nothing to learn."""

    path: str
    vocab_size: int

    def fit(self, texts: Iterable[str] = ()) -> Tokenizer:
        """`texts` are not looked at. Raises UserError where there is no tokenizer."""
        return load_saved_tokenizer(self.path)


def load_saved_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that lies in the folder `path`, or in `tokenizer` there. Relative paths as in `find`."""
    inner = Path(path) / "tokenizer" / TOKENIZER_JSON
    try:
        return load_tokenizer(find_file(inner).parent)
    except UserError as error:
        try:
            return load_tokenizer(find_file(Path(path) / TOKENIZER_JSON).parent)
        except UserError:
            raise error from None


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`. Raises UserError if it is missing, damaged or of another kind."""
    folder = Path(folder)
    try:
        description = json.loads((folder / TOKENIZER_JSON).read_bytes())
        kind, expected = description["kind"], description["sha256"]
    except FileNotFoundError as error:
        raise UserError(
            f"there is no tokenizer in {folder}: expected {TOKENIZER_JSON} there, which training writes"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / TOKENIZER_JSON} is damaged ({error!r}). {DAMAGED_TOKENIZER_HINT}") from error
    if kind not in TOKENIZER_CLASS_BY_KIND:
        raise UserError(
            f"{folder / TOKENIZER_JSON}: tokenizer kind {kind!r}, expected one of {', '.join(TOKENIZER_CLASS_BY_KIND)}"
        )
    file = folder / TOKENIZER_CLASS_BY_KIND[kind].filename
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} is missing, though {TOKENIZER_JSON} names it. {DAMAGED_TOKENIZER_HINT}") from error
    if (found := content_hash(kind, content)) != expected:
        raise UserError(f"{file} is damaged: SHA-256 {found}, expected {expected}. {DAMAGED_TOKENIZER_HINT}")
    return TOKENIZER_CLASS_BY_KIND[kind].from_bytes(content)
