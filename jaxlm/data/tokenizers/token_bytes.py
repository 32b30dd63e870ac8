"""The bytes that each id adds to the decoded text; the first id of a text may add others than a later one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.data.tokenizers.base import NUM_SPECIALS, Tokenizer
from jaxlm.data.tokenizers.sentencepiece import ESCAPE_CHAR, SPACE_MARK, SentencePieceTokenizer
from jaxlm.data.tokenizers.simple import ByteTokenizer, CharacterTokenizer, WordTokenizer
from jaxlm.errors import UserError

OptionalBytes = bytes | None
"""None for an id that adds no text (padding, BOS, EOS, control symbols) or none of its own (unknown)."""


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of each id at the beginning of a text, and those after it.

    decoder_unescapes: the decoder replaces escapes (U+E000), so that no text may contain one.
    """

    initial: Sequence[OptionalBytes]
    rest: Sequence[OptionalBytes]
    decoder_unescapes: bool = False


def get_token_bytes(tokenizer: Tokenizer) -> TokenBytes:
    """The bytes of the ids of a tokenizer that is trained here. Raises UserError for any other."""
    special: list[OptionalBytes] = [None] * NUM_SPECIALS
    if isinstance(tokenizer, ByteTokenizer):
        single = [*special, *(bytes([byte]) for byte in range(256))]
        return TokenBytes(single, single)
    if isinstance(tokenizer, CharacterTokenizer):
        single = [*special, *map(_symbol_bytes, tokenizer.symbols)]
        return TokenBytes(single, single)
    if isinstance(tokenizer, WordTokenizer):
        words = [_symbol_bytes(symbol) for symbol in tokenizer.symbols]
        return TokenBytes([*special, *words], [*special, *(b" " + word for word in words)])
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _sentencepiece_bytes(tokenizer)
    raise UserError(
        f"the text of the ids of a {type(tokenizer).__name__} is not known: constrained decoding works with byte, "
        "character, word and SentencePiece tokenizers"
    )


def _symbol_bytes(symbol: str) -> bytes:
    return symbol.encode(errors="surrogatepass")


def _sentencepiece_bytes(tokenizer: SentencePieceTokenizer) -> TokenBytes:
    """U+2581 in a piece is a space. Decoding a piece alone shows what a model drops at the beginning of a text."""
    processor: Any = tokenizer._processor
    initial: list[OptionalBytes] = []
    rest: list[OptionalBytes] = []
    not_text = (processor.is_control, processor.is_unknown, processor.is_unused)
    for index in range(tokenizer.vocab_size):
        piece = processor.id_to_piece(index)
        if index < NUM_SPECIALS or any(test(index) for test in not_text):
            initial.append(None)
            rest.append(None)
        elif processor.is_byte(index):
            initial.append(bytes([int(piece[3:-1], 16)]))
            rest.append(initial[-1])
        else:
            rest.append(piece.replace(SPACE_MARK, " ").encode())
            initial.append(processor.decode([index]).encode())
    # A model that removes extra spaces drops those of the second piece too, if the first one was nothing else.
    space = processor.piece_to_id(SPACE_MARK)
    if not processor.is_unknown(space) and processor.decode([space, space]) == "":
        initial[space] = None
    return TokenBytes(initial, rest, decoder_unescapes=True)


def escape_bytes() -> bytes:
    """The UTF-8 of the character that SentencePiece texts may not contain."""
    return ESCAPE_CHAR.encode()
