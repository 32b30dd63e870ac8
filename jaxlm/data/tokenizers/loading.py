"""Tokenizers that are not trained: those of published models, and those that were saved."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from jaxlm.data.files import find_file
from jaxlm.data.tokenizers.base import TOKENIZER_JSON, Tokenizer, content_hash
from jaxlm.data.tokenizers.pretrained import FastTokenizer, PretrainedSentencePiece
from jaxlm.data.tokenizers.sentencepiece import SentencePieceTokenizer
from jaxlm.data.tokenizers.simple import ByteTokenizer, CharacterTokenizer, WordCharTokenizer, WordTokenizer
from jaxlm.data.tokenizers.tree_tokens import TreeTokenizer
from jaxlm.errors import UserError
from jaxlm.filesystem import read_bounded
from jaxlm.json_files import read_json

CLASS_OF_KIND = {
    cls.kind: cls for cls in (SentencePieceTokenizer, ByteTokenizer, CharacterTokenizer, WordTokenizer,
                              WordCharTokenizer, TreeTokenizer, FastTokenizer, PretrainedSentencePiece)
}  # fmt: skip

MAX_TOKENIZER_BYTES = 1 << 28

DAMAGE_HINT = "Copy the folder again from its origin, or train a new tokenizer."


@dataclass(frozen=True)
class PretrainedTokenizer:
    """The configuration of a tokenizer that came with a published model: it cannot be trained."""

    vocab_size: int

    def fit(self, texts: Iterable[str] = ()) -> Any:
        """Raises UserError."""
        raise UserError(
            "the tokenizer of a published model cannot be trained: start from the workdir that `import-hf` wrote"
        )


class Description(TypedDict):
    """The content of `tokenizer.json`."""

    kind: str
    sha256: str


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
    if not (folder / TOKENIZER_JSON).is_file():
        raise UserError(f"there is no tokenizer in {folder}: expected {TOKENIZER_JSON} there, which training writes")
    try:
        description = read_json(folder / TOKENIZER_JSON, Description, "the file cannot be used")
    except (OSError, UserError) as error:
        raise UserError(f"{folder / TOKENIZER_JSON} is damaged ({error}). {DAMAGE_HINT}") from error
    kind, expected = description["kind"], description["sha256"]
    if kind not in CLASS_OF_KIND:
        raise UserError(
            f"{folder / TOKENIZER_JSON}: tokenizer kind {kind!r}, expected one of {', '.join(CLASS_OF_KIND)}"
        )
    file = folder / CLASS_OF_KIND[kind].filename
    if not file.exists():
        raise UserError(f"{file} is missing, though {TOKENIZER_JSON} names it. {DAMAGE_HINT}")
    content = read_bounded(file, MAX_TOKENIZER_BYTES)
    if (actual := content_hash(kind, content)) != expected:
        raise UserError(f"{file} is damaged: SHA-256 {actual}, expected {expected}. {DAMAGE_HINT}")
    try:
        return CLASS_OF_KIND[kind].from_bytes(content)
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{file} is not what such a tokenizer writes ({error}). {DAMAGE_HINT}") from error
