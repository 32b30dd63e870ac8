"""Texts with a class each, as pairs (text, class); parallel files and tab-separated columns are read as such already.

Also the tags and opinions of the built-in corpus.

Pairs of a text and a hypothesis in XML, as in the challenges on textual entailment (Dagan et al. 2006).
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from jaxlm.data.files import GZIP_MAGIC, OnBadLine, ReadStats, find_file, iter_lines
from jaxlm.data.sources.base import Pair, Pairs, PairSource, filter_pairs, iter_pairs
from jaxlm.errors import UserError

SENTIMENT_LABELS = ("N", "NEU", "P")
"""Blame, neither, praise."""


@dataclass(frozen=True)
class LabeledLines(PairSource):
    """A text a line after its class and a space: `1 a stirring , funny film`. Raises UserError for a line without."""

    path: str
    separator: str = " "
    on_bad_line: OnBadLine = "error"

    def describe(self) -> str:
        return f"{self.path}, text -> class"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        return filter_pairs(self._read_lines(stats), stats, False, self.describe())

    def _read_lines(self, stats: ReadStats) -> Iterator[tuple[str | None, str | None]]:
        file = find_file(self.path)
        for number, line in enumerate(iter_lines(file, self.on_bad_line, stats), start=1):
            name, found, text = (line or "").partition(self.separator)
            if found or not line:
                yield (None, None) if line is None else (text, name)
                continue
            if self.on_bad_line == "error":
                raise UserError(
                    f"{file}, line {number}: {line[:80]!r} is a class without a text, expected {self.separator!r} "
                    "between them. Mend the line, or set on_bad_line='skip'."
                )
            yield None, None


@dataclass(frozen=True)
class MapLabels(PairSource):
    """Another source's classes under other names: `codes[i]` becomes `names[i]`. Raises UserError for an unknown code.

    Two codes may have the same name, which joins the classes.
    """

    pairs: Pairs
    old_labels: tuple[str, ...]
    new_labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.old_labels) != len(self.new_labels) or len(set(self.old_labels)) != len(self.old_labels):
            raise UserError(
                f"{len(self.old_labels)} codes {self.old_labels} and {len(self.new_labels)} names {self.new_labels}: "
                "expected different codes and a name for each"
            )

    def describe(self) -> str:
        return f"{self.pairs.describe()} ({', '.join(self.new_labels)})"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        names = dict(zip(self.old_labels, self.new_labels, strict=True))
        for number, (text, code) in enumerate(iter_pairs(self.pairs, stats), start=1):
            if code not in names:
                raise UserError(
                    f"{self.pairs.describe()}: text {number} has the class {code!r}, expected one of "
                    f"{', '.join(self.old_labels)}. Add it to `old_labels`, or mend the file."
                )
            yield text, names[code]


@dataclass(frozen=True)
class RteXml(PairSource):
    """`<pair entailment="YES"><t>text</t><h>hypothesis</h></pair>`: (text TAB hypothesis, YES).

    Attributes:
      path: the file, gzipped or not.
      label: attributes of a pair that its label may stand in; the first that is there counts.
      parts: the elements of a pair that are its texts.
    """

    path: str
    label_attributes: tuple[str, ...] = ("entailment", "value")
    text_elements: tuple[str, ...] = ("t", "h")

    def describe(self) -> str:
        return f"{self.path}, {' and '.join(self.text_elements)} -> {' or '.join(self.label_attributes)}"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        return filter_pairs(self._read_pairs(), stats, False, self.describe())

    def _read_pairs(self) -> Iterator[tuple[str, str]]:
        file = find_file(self.path)
        for number, pair in enumerate(_parse_xml(file).iter("pair"), start=1):
            place = f"{file}, pair {pair.get('id', number)}"
            label = next((pair.get(name) for name in self.label_attributes if pair.get(name)), None)
            if label is None:
                raise UserError(
                    f"{place} has no attribute {' or '.join(self.label_attributes)}: fix the file, or "
                    "`label_attributes`"
                )
            texts = [pair.find(part) for part in self.text_elements]
            if any(text is None for text in texts):
                raise UserError(
                    f"{place} has not all of the elements {', '.join(self.text_elements)}: fix the file, or "
                    "`text_elements`"
                )
            yield "\t".join(" ".join("".join(text.itertext()).split()) for text in texts if text is not None), label


def _parse_xml(file: Path) -> ElementTree.Element:
    with file.open("rb") as stream:
        packed = stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    try:
        with gzip.open(file) if packed else file.open("rb") as stream:
            return ElementTree.parse(stream).getroot()
    except (ElementTree.ParseError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{file} cannot be read as XML ({error}): fetch it again, or mend the place") from None
