"""Labeled texts as pairs (text, class); for parallel files and columns see `jaxlm.data.sources.parallel`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jaxlm.data.files import MAX_TEXT_BYTES, OnBadLine, ReadStats, find_file, iter_lines, open_text, too_large
from jaxlm.data.sources.base import FilteredPairs, Pair, Pairs, PairSource, iter_pairs
from jaxlm.errors import UserError

SENTIMENT_LABELS = ("N", "NEU", "P")
"""Negative, neutral, positive."""

XML_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class LabeledLines(FilteredPairs):
    """Lines of a class, a space and a text: `1 a stirring , funny film`. Raises UserError for a line without a text."""

    path: str
    separator: str = " "
    on_bad_line: OnBadLine = "error"
    max_text_bytes: int = MAX_TEXT_BYTES

    def describe(self) -> str:
        return f"{self.path}, text -> class"

    def _read_rows(self, stats: ReadStats) -> Iterator[tuple[str | None, str | None]]:
        file = find_file(self.path)
        for number, line in enumerate(iter_lines(file, self.on_bad_line, stats, self.max_text_bytes), start=1):
            name, separator, text = (line or "").partition(self.separator)
            if separator or not line:
                yield (None, None) if line is None else (text, name)
                continue
            if self.on_bad_line == "error":
                raise UserError(
                    f"{file}, line {number}: {line[:80]!r} is a class without a text, expected {self.separator!r} "
                    "between them. Fix the line, or set on_bad_line='skip'."
                )
            yield None, None

    def _place(self, number: int) -> str:
        return f"{find_file(self.path)}, line {number + 1}"


@dataclass(frozen=True)
class MapLabels(PairSource):
    """A source with its classes renamed: `old_labels[i]` becomes `new_labels[i]`, which may merge classes."""

    pairs: Pairs
    old_labels: tuple[str, ...]
    new_labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.old_labels) != len(self.new_labels) or len(set(self.old_labels)) != len(self.old_labels):
            raise UserError(
                f"{len(self.old_labels)} old_labels {self.old_labels} and {len(self.new_labels)} new_labels "
                f"{self.new_labels}: expected different old labels and a new one for each"
            )

    def describe(self) -> str:
        return f"{self.pairs.describe()} ({', '.join(self.new_labels)})"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        names = dict(zip(self.old_labels, self.new_labels, strict=True))
        for number, (text, label) in enumerate(iter_pairs(self.pairs, stats), start=1):
            if label not in names:
                raise UserError(
                    f"{self.pairs.describe()}: text {number} has the class {label!r}, expected one of "
                    f"{', '.join(self.old_labels)}. Add it to `old_labels`, or fix the file."
                )
            yield text, names[label]


@dataclass(frozen=True)
class RteXml(FilteredPairs):
    """Textual entailment in XML (Dagan et al. 2006): pairs (text TAB hypothesis, label).

    An element is `<pair entailment="YES"><t>text</t><h>hypothesis</h></pair>`.

    Attributes:
      path: the file, compressed or not.
      label_attributes: attributes of a pair that may hold its label; the first that exists counts.
      text_elements: the elements of a pair that are its texts.
    """

    path: str
    label_attributes: tuple[str, ...] = ("entailment", "value")
    text_elements: tuple[str, ...] = ("t", "h")
    max_text_bytes: int = 1 << 20

    def describe(self) -> str:
        return f"{self.path}, {' and '.join(self.text_elements)} -> {' or '.join(self.label_attributes)}"

    def _read_rows(self, stats: ReadStats) -> Iterator[tuple[str, str]]:
        file = find_file(self.path)
        for number, pair in enumerate(_iter_elements(file, "pair", self.max_text_bytes), start=1):
            place = f"{file}, pair {pair.get('id', number)}"
            label = next((pair.get(name) for name in self.label_attributes if pair.get(name)), None)
            if label is None:
                raise UserError(
                    f"{place} has no attribute {' or '.join(self.label_attributes)}: fix the file, or "
                    "`label_attributes`"
                )
            texts = [pair.find(element) for element in self.text_elements]
            if any(text is None for text in texts):
                raise UserError(
                    f"{place} has not all of the elements {', '.join(self.text_elements)}: fix the file, or "
                    "`text_elements`"
                )
            yield "\t".join(" ".join("".join(text.itertext()).split()) for text in texts if text is not None), label


def _iter_elements(file: Path, tag: str, max_bytes: int) -> Iterator[ElementTree.Element]:
    """The elements of this name, one after the other: only one of them is in memory."""
    parser: Any = ElementTree.XMLPullParser(("start", "end"))
    root: Any = None
    pending = 0
    with open_text(file) as stream:
        try:
            while chunk := stream.read(XML_READ_BYTES):
                parser.feed(chunk)
                pending += len(chunk)
                for event, element in parser.read_events():
                    root = element if root is None else root
                    if event == "end" and element.tag == tag:
                        yield element
                        root.clear()
                        pending = 0
                if pending > max_bytes + XML_READ_BYTES:
                    raise UserError(f"{file}: {too_large(f'the text around a <{tag}>', max_bytes)}")
            parser.close()
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise UserError(f"{file} cannot be read as XML ({error}): fetch it again, or fix the line") from None
