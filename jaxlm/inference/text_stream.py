"""The text of a growing row of ids that continues a prompt."""

import os
from collections.abc import Sequence

from jaxlm.data.tokenizers.base import REPLACEMENT_CHAR, Tokenizer

MAX_PARTIAL_BYTES = 3
"""Bytes of an incomplete UTF-8 character."""


class ContinuationDecoder:
    """Decoding of ids that continue a prompt: what they add to its text, of which their first word may begin with a
    space. An empty prompt is the beginning of a text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]):
        self.tokenizer, self.prompt_ids = tokenizer, list(prompt_ids)
        self.prompt_text = tokenizer.decode([self.prompt_ids])[0]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text that each row adds. Where its ids change the text of the prompt, all from there on."""
        texts = self.tokenizer.decode([[*self.prompt_ids, *row] for row in rows])
        return [text[len(os.path.commonprefix([self.prompt_text, text])) :] for text in texts]


class TextStream:
    """Streaming detokenization of a growing row of ids: its text after each token, up to the first stop string.

    A token may be a part of a character, and the next token may change the text of a word. So a piece of text is shown
    when its characters are complete, and only while the text still begins with all that has been shown.

    Attributes:
      text: all that has been shown.
      ended: whether a stop string has been generated.
    """

    def __init__(self, decoder: Tokenizer | ContinuationDecoder, stop_strings: Sequence[str] = ()):
        self.decoder = decoder
        self.stop_strings = [stop for stop in stop_strings if stop]
        self.text = ""
        self.ended = False

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """The text of `ids` that has not been shown yet; after the `last` id nothing is held back."""
        if self.ended:
            return ""
        whole = self.decoder.decode([list(ids)])[0]
        stops = [begin for begin in map(whole.find, self.stop_strings) if begin >= 0]
        if stops:
            whole = whole[: min(stops)]
            self.ended = True
        elif not last:
            parts = min(len(whole) - len(whole.rstrip(REPLACEMENT_CHAR)), MAX_PARTIAL_BYTES)
            starts = [size for stop in self.stop_strings for size in range(1, len(stop)) if whole.endswith(stop[:size])]
            whole = whole[: len(whole) - max([parts, *starts])]
        if not whole.startswith(self.text):
            return ""
        piece, self.text = whole[len(self.text) :], whole
        return piece
