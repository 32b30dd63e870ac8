"""Reading back a tokenizer that was saved."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxlm.data.files import find_file
from jaxlm.data.tokenizers.base import TOKENIZER_JSON, Tokenizer, content_hash
from jaxlm.data.tokenizers.pretrained import FastTokenizer, PretrainedSentencePiece
from jaxlm.data.tokenizers.sentencepiece import SentencePieceTokenizer
from jaxlm.data.tokenizers.simple import ByteTokenizer, CharacterTokenizer, WordCharTokenizer, WordTokenizer
from jaxlm.errors import UserError

CLASS_OF_KIND = {
    cls.kind: cls for cls in (SentencePieceTokenizer, ByteTokenizer, CharacterTokenizer, WordTokenizer,
                              WordCharTokenizer, FastTokenizer, PretrainedSentencePiece)
}  # fmt: skip

DAMAGE_HINT = "Copy the folder again from its origin, or train a new tokenizer."


@dataclass(frozen=True)
class SavedTokenizer:
    """The configuration of a tokenizer that exists: that of a workdir, of shards, or of a folder of its own."""

    path: str
    vocab_size: int

    def fit(self, texts: Iterable[str] = ()) -> Tokenizer:
        """Load the tokenizer; `texts` are not read. Raises UserError if there is none."""
        return load_saved_tokenizer(self.path)


def load_saved_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in the folder `path/tokenizer` or `path`. Relative paths are looked up as by `find_file`."""
    try:
        return load_tokenizer(find_file(Path(path) / "tokenizer" / TOKENIZER_JSON).parent)
    except UserError as error:
        try:
            return load_tokenizer(find_file(Path(path) / TOKENIZER_JSON).parent)
        except UserError:
            raise error from None


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`. Raises UserError if it is missing, damaged or of unknown kind."""
    folder = Path(folder)
    try:
        description = json.loads((folder / TOKENIZER_JSON).read_bytes())
        kind, expected = description["kind"], description["sha256"]
    except FileNotFoundError as error:
        raise UserError(
            f"there is no tokenizer in {folder}: expected {TOKENIZER_JSON} there, which training writes"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / TOKENIZER_JSON} is damaged ({error!r}). {DAMAGE_HINT}") from error
    if kind not in CLASS_OF_KIND:
        raise UserError(
            f"{folder / TOKENIZER_JSON}: tokenizer kind {kind!r}, expected one of {', '.join(CLASS_OF_KIND)}"
        )
    file = folder / CLASS_OF_KIND[kind].filename
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} is missing, though {TOKENIZER_JSON} names it. {DAMAGE_HINT}") from error
    if (actual := content_hash(kind, content)) != expected:
        raise UserError(f"{file} is damaged: SHA-256 {actual}, expected {expected}. {DAMAGE_HINT}")
    return CLASS_OF_KIND[kind].from_bytes(content)
