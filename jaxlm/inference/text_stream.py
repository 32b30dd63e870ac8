"""Text as it comes: what more there is to show after each token, and where it has to stop.

A token may be a part of a character, and a tokenizer may write a word otherwise once it knows the next one. So a piece
of text is shown when its characters are whole and as long as what was shown before stays a beginning of the text.
"""

from collections.abc import Sequence

from jaxlm.data.tokenizers.base import REPLACEMENT_CHAR, Tokenizer

MAX_PARTIAL_BYTES = 3
"""Bytes of a character that may be there before the last one comes."""


class TextStream:
    """The text of a growing row of ids. `stops`: strings that end it and are not shown.

    `ended` is True once a stop string has come; `text` is all that was shown.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()):
        self.tokenizer, self.stop_strings = tokenizer, [stop for stop in stop_strings if stop]
        self.text, self.ended = "", False

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """The text of `ids` that was not shown yet; `last`: no more ids will come, nothing is held back."""
        if self.ended:
            return ""
        whole = self.tokenizer.decode([list(ids)])[0]
        found = [at for at in (whole.find(stop) for stop in self.stop_strings) if at >= 0]
        if found:
            whole, self.ended = whole[: min(found)], True
        elif not last:
            whole = whole[: len(whole) - self._incomplete_suffix(whole)]
        if not whole.startswith(self.text):
            return ""
        piece, self.text = whole[len(self.text) :], whole
        return piece

    def _incomplete_suffix(self, whole: str) -> int:
        """Characters at the end that may still change: parts of a character, or the beginning of a stop string."""
        parts = min(len(whole) - len(whole.rstrip(REPLACEMENT_CHAR)), MAX_PARTIAL_BYTES)
        starts = [size for stop in self.stop_strings for size in range(1, len(stop)) if whole.endswith(stop[:size])]
        return max([parts, *starts])
