"""SentencePiece subwords (Kudo and Richardson 2018): unigram (Kudo 2018) or byte pair encoding (Sennrich et al. 2016).

By default nothing is lost: no normalization, spaces kept, unseen characters encoded as bytes. SentencePiece itself
writes a space as U+2581 and learns nothing from a text with U+2585, so `encode` replaces them by escapes (U+E000 and
another character), which `decode` undoes.
"""

import functools
import io
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from jaxlm.data.tokenizers.base import BOS, EOS, PAD, REPLACEMENT_CHAR, UNK, TrainedTokenizer, require_list
from jaxlm.errors import UserError

SPACE_MARK, UNKNOWN_MARK, ESCAPE_CHAR = "\u2581", "\u2585", "\ue000"

ESCAPES = {ESCAPE_CHAR: "\ue000\ue000", SPACE_MARK: "\ue000\ue001", UNKNOWN_MARK: "\ue000\ue002"}

UNESCAPES = {escaped: character for character, escaped in ESCAPES.items()}

MAX_SENTENCE_BYTES = 1 << 20  # SentencePiece leaves longer ones out of training; its own default is 4,192

LOG_FATAL_ONLY = 3  # the log level of SentencePiece: errors still arrive as exceptions

VOCAB_TOO_LARGE_PATTERN = re.compile(r"size too high \((\d+)\).*<= (\d+)")

VOCAB_TOO_SMALL_PATTERN = re.compile(r"smaller than required_chars\. (\d+) vs (\d+)")


@dataclass(frozen=True)
class SentencePiece:
    """The configuration of a SentencePiece model. Training uses one thread, so that it gives the same bytes each time.

    Attributes:
      vocab_size: number of ids: pieces, 4 special ids and, with `byte_fallback`, 256 bytes.
      character_coverage: the fraction of the characters of the corpus that are pieces.
      normalization: a SentencePiece rule such as "nmt_nfkc". All but "identity" change the text, as does
        `remove_extra_whitespaces`.
      user_defined_symbols: pieces that must exist, such as ("\\n",).
      sample_size: maximum number of texts to train on; `seed` draws them from a larger corpus.
    """

    vocab_size: int = 8000
    model_type: Literal["unigram", "bpe"] = "unigram"
    byte_fallback: bool = True
    character_coverage: float = 0.9995
    normalization: str = "identity"
    remove_extra_whitespaces: bool = False
    user_defined_symbols: tuple[str, ...] = ()
    sample_size: int = 1_000_000
    seed: int = 0

    def fit(self, texts: Iterable[str]) -> "SentencePieceTokenizer":
        """Train the model. Raises UserError if there is no text, or if it cannot give `vocab_size` pieces."""
        import sentencepiece

        sentences = [_escape(text) for text in sample_texts(texts, self.sample_size, self.seed)]
        if not sentences:
            raise UserError("there is no text to learn subwords from: the corpus is empty or blank")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences), model_writer=model,
                vocab_size=self.vocab_size, model_type=self.model_type, byte_fallback=self.byte_fallback,
                character_coverage=self.character_coverage, normalization_rule_name=self.normalization,
                remove_extra_whitespaces=self.remove_extra_whitespaces, num_threads=1,
                user_defined_symbols=list(self.user_defined_symbols), max_sentence_length=MAX_SENTENCE_BYTES,
                pad_id=PAD, unk_id=UNK, bos_id=BOS, eos_id=EOS, unk_surface=REPLACEMENT_CHAR,
                minloglevel=LOG_FATAL_ONLY,
            )  # fmt: skip
        except RuntimeError as error:
            problem = f"SentencePiece could not learn from this text: {error}"
            if match := VOCAB_TOO_LARGE_PATTERN.search(str(error)):
                problem = (
                    f"asked for a SentencePiece vocabulary of {match[1]} pieces, and this text gives at most "
                    f"{match[2]}: set vocab_size={match[2]} or less, or fit on more text"
                )
            elif match := VOCAB_TOO_SMALL_PATTERN.search(str(error)):
                problem = (
                    f"asked for a SentencePiece vocabulary of {match[1]} pieces, and this text needs at least "
                    f"{match[2]} (its characters, special ids and bytes): set vocab_size={match[2]} or more, or a "
                    "lower coverage"
                )
            raise UserError(problem) from error
        return SentencePieceTokenizer(model.getvalue())


@dataclass(frozen=True)
class SentencePieceTokenizer(TrainedTokenizer):
    """A trained model: the bytes of `spm.model`, which any SentencePiece reads."""

    model: bytes
    kind: ClassVar[str] = "sentencepiece"
    filename: ClassVar[str] = "spm.model"

    def __repr__(self) -> str:
        return f"SentencePieceTokenizer(vocab_size={self.vocab_size}, sha256={self.fingerprint[:12]})"

    @property
    def vocab_size(self) -> int:
        return self._processor.get_piece_size()

    @functools.cached_property
    def _processor(self) -> Any:
        return parse_sentencepiece(self.model)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        escaped = [_escape(text) for text in require_list(texts)]
        return self._processor.encode(escaped, return_type="numpy")

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        size, dropped = self.vocab_size, (PAD, BOS, EOS)
        kept = [[int(i) if 0 <= i < size else UNK for i in row if i not in dropped] for row in rows]
        return [_unescape(text) for text in self._processor.decode(kept)] if kept else []

    def to_bytes(self) -> bytes:
        return self.model

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        return cls(content)


def parse_sentencepiece(model: bytes) -> Any:
    """The SentencePieceProcessor of a model file. Raises UserError if the bytes are not one."""
    import sentencepiece

    if not model:
        raise UserError("not a SentencePiece model: it is empty")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        ids = list(range(processor.get_piece_size()))
        processor.decode(ids), processor.id_to_piece(ids)  # pieces that are not UTF-8 show here
    except (RuntimeError, UnicodeDecodeError) as error:
        raise UserError(f"not a SentencePiece model: {error}") from error
    return processor


def sample_texts(texts: Iterable[str], count: int, seed: int) -> list[str]:
    """At most `count` of the texts that are not blank, uniformly drawn (reservoir sampling, Vitter's algorithm R)."""
    chosen: list[str] = []
    draw = random.Random(seed).random
    for seen, text in enumerate((text for text in texts if text.strip()), start=1):
        if len(chosen) < count:
            chosen.append(text)
        elif (slot := int(draw() * seen)) < count:
            chosen[slot] = text
    return chosen


def _escape(text: str) -> str:
    """Escape the characters that SentencePiece uses itself, and replace lone surrogates."""
    for character, escaped in ESCAPES.items():  # the escape itself first
        if character in text:
            text = text.replace(character, escaped)
    return replace_surrogates(text)


def replace_surrogates(text: str) -> str:
    """The text with '?' for lone surrogates, which UTF-8 cannot encode."""
    return text.encode(errors="replace").decode()


def _unescape(text: str) -> str:
    return re.sub("|".join(UNESCAPES), lambda match: UNESCAPES[match[0]], text) if ESCAPE_CHAR in text else text
