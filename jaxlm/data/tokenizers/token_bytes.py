"""The bytes that each id adds to the decoded text; the first id of a text may add others than a later one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.data.tokenizers.base import NUM_SPECIALS, Tokenizer
from jaxlm.data.tokenizers.pretrained import FastTokenizer
from jaxlm.data.tokenizers.sentencepiece import SPACE_MARK, SentencePieceTokenizer
from jaxlm.data.tokenizers.simple import ByteTokenizer, CharacterTokenizer, WordTokenizer
from jaxlm.errors import UserError


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of each id at the beginning of a text, and those after it; None for an id without text of its own."""

    initial: Sequence[bytes | None]
    rest: Sequence[bytes | None]
    decoder_unescapes: bool = False  # the decoder replaces escapes (U+E000), so that no text may contain one


def get_token_bytes(tokenizer: Tokenizer) -> TokenBytes:
    """The bytes of the ids of a tokenizer that is trained here, or of a published byte-level one.

    Raises UserError for any other.
    """
    special: list[bytes | None] = [None] * NUM_SPECIALS
    if isinstance(tokenizer, ByteTokenizer):
        single = [*special, *(bytes([byte]) for byte in range(256))]
        return TokenBytes(single, single)
    if isinstance(tokenizer, (CharacterTokenizer, WordTokenizer)):
        symbols = [symbol.encode(errors="surrogatepass") for symbol in tokenizer.symbols]
        space = b" " if isinstance(tokenizer, WordTokenizer) else b""
        return TokenBytes([*special, *symbols], [*special, *(space + symbol for symbol in symbols)])
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _sentencepiece_bytes(tokenizer)
    if isinstance(tokenizer, FastTokenizer):
        decoder = json.loads(tokenizer.tokenizer_json).get("decoder") or {}
        if decoder.get("type") == "ByteLevel":
            return _byte_level_bytes(tokenizer)
    raise UserError(
        f"the text of the ids of a {type(tokenizer).__name__} is not known: constrained decoding works with byte, "
        "character, word and SentencePiece tokenizers that are trained here, and with published byte-level ones"
    )


def _byte_level_bytes(tokenizer: FastTokenizer) -> TokenBytes:
    """Each character of a piece encodes a byte; an added token has its own text, and none if it is special."""
    printable = [*range(ord("!"), 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
    added, text = tokenizer._tokenizer.get_added_tokens_decoder(), list[bytes | None]()
    for index, piece in enumerate(tokenizer.pieces):
        if not piece or index in tokenizer.control_ids:
            text.append(None)
        elif index in added or not set(piece) <= byte_of.keys():
            text.append(piece.encode())
        else:
            text.append(bytes(byte_of[character] for character in piece))
    return TokenBytes(text, text)


def _sentencepiece_bytes(tokenizer: SentencePieceTokenizer) -> TokenBytes:
    """U+2581 in a piece is a space. Decoding a piece alone shows what a model drops at the beginning of a text."""
    processor: Any = tokenizer._processor
    initial: list[bytes | None] = []
    rest: list[bytes | None] = []
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
