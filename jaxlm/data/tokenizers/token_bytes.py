"""What each id adds to the decoded text, as bytes: the first id of a text may add other bytes than a later one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.data.tokenizers.base import NUM_SPECIALS, Tokenizer
from jaxlm.data.tokenizers.sentencepiece import ESCAPE_CHAR, SPACE_MARK, SentencePieceTokenizer
from jaxlm.data.tokenizers.simple import ByteTokenizer, CharacterTokenizer, WordTokenizer
from jaxlm.data.tokenizers.word_char import WordCharTokenizer
from jaxlm.errors import UserError

OptionalBytes = bytes | None
"""None: an id that adds no text (padding, BOS, EOS, control symbols) or none that is its own (unknown)."""


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of each id at the beginning of a text, and after it.

    `unescaped`: the decoder reads an escape (U+E000), so that no text may hold one.
    """

    initial: Sequence[OptionalBytes]
    rest: Sequence[OptionalBytes]
    decoder_unescapes: bool = False


def get_token_bytes(tokenizer: Tokenizer) -> TokenBytes:
    """How `tokenizer.decode` joins its ids. Raises UserError for a tokenizer of a kind that is not known here."""
    special: list[OptionalBytes] = [None] * NUM_SPECIALS
    if isinstance(tokenizer, ByteTokenizer):
        single = [*special, *(bytes([byte]) for byte in range(256))]
        return TokenBytes(single, single)
    if isinstance(tokenizer, CharacterTokenizer):
        single = [*special, *(_symbol_bytes(symbol) for symbol in tokenizer.symbols)]
        return TokenBytes(single, single)
    if isinstance(tokenizer, WordTokenizer | WordCharTokenizer):
        words = [_symbol_bytes(symbol) for symbol in tokenizer.symbols]
        return TokenBytes([*special, *words], [*special, *(b" " + word for word in words)])
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _sentencepiece_bytes(tokenizer)
    raise UserError(
        f"{type(tokenizer).__name__} does not say what text its ids are: constrained decoding works with byte, "
        "character, word and SentencePiece tokenizers"
    )


def _symbol_bytes(symbol: str) -> bytes:
    return symbol.encode(errors="surrogatepass")


def _sentencepiece_bytes(tokenizer: SentencePieceTokenizer) -> TokenBytes:
    """A piece's U+2581 is a space. What a model drops of the first piece is found by decoding it alone."""
    processor: Any = tokenizer._processor
    first: list[OptionalBytes] = []
    later: list[OptionalBytes] = []
    for index in range(tokenizer.vocab_size):
        piece = processor.id_to_piece(index)
        if (
            index < NUM_SPECIALS
            or processor.is_control(index)
            or processor.is_unknown(index)
            or processor.is_unused(index)
        ):
            first.append(None)
            later.append(None)
        elif processor.is_byte(index):
            first.append(bytes([int(piece[3:-1], 16)]))
            later.append(first[-1])
        else:
            later.append(piece.replace(SPACE_MARK, " ").encode())
            first.append(processor.decode([index]).encode())
    # A model that removes extra spaces drops the spaces of the second piece too, if the first one was nothing else.
    again = processor.piece_to_id(SPACE_MARK)
    if not processor.is_unknown(again) and processor.decode([again, again]) == "":
        first[again] = None
    return TokenBytes(first, later, decoder_unescapes=True)


def escape_bytes() -> bytes:
    """The UTF-8 of the character that SentencePiece texts may not hold."""
    return ESCAPE_CHAR.encode()
