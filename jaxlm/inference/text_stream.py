"""Streaming detokenization: the new text after each token, up to a stop string.

A token may be a part of a character, and the next token may change the text of a word. So a piece of text is shown
when its characters are complete, and only while the text still begins with all that has been shown.
"""

from collections.abc import Sequence

from jaxlm.data.tokenizers.base import REPLACEMENT_CHAR, Tokenizer

MAX_PARTIAL_BYTES = 3
"""Bytes of an incomplete UTF-8 character."""


class TextStream:
    """The text of a growing row of ids, up to the first of the `stop_strings`.

    Attributes:
      text: all that has been shown.
      ended: whether a stop string has been generated.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()):
        self.tokenizer = tokenizer
        self.stop_strings = [stop for stop in stop_strings if stop]
        self.text = ""
        self.ended = False

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """The text of `ids` that has not been shown yet; after the `last` id nothing is held back."""
        if self.ended:
            return ""
        whole = self.tokenizer.decode([list(ids)])[0]
        stops = [begin for begin in map(whole.find, self.stop_strings) if begin >= 0]
        if stops:
            whole = whole[: min(stops)]
            self.ended = True
        elif not last:
            whole = whole[: len(whole) - self._incomplete_suffix(whole)]
        if not whole.startswith(self.text):
            return ""
        piece, self.text = whole[len(self.text) :], whole
        return piece

    def _incomplete_suffix(self, whole: str) -> int:
        """The number of final characters that may still change: of partial characters, or of a partial stop string."""
        parts = min(len(whole) - len(whole.rstrip(REPLACEMENT_CHAR)), MAX_PARTIAL_BYTES)
        starts = [size for stop in self.stop_strings for size in range(1, len(stop)) if whole.endswith(stop[:size])]
        return max([parts, *starts])
