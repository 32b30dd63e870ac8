"""Pairs of a text and a hypothesis in XML, as in the challenges on textual entailment (Dagan et al. 2006)."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from jaxlm.data.pairs import Pair, PairSource, kept_pairs
from jaxlm.data.text import GZIP_MAGIC, BadLines, find
from jaxlm.errors import UserError


@dataclass(frozen=True)
class PairsXml(PairSource):
    """`<pair entailment="YES"><t>text</t><h>hypothesis</h></pair>`: (text TAB hypothesis, YES).

    Attributes:
      path: the file, gzipped or not.
      label: attributes of a pair that its label may stand in; the first that is there counts.
      parts: the elements of a pair that are its texts.
    """

    path: str
    label: tuple[str, ...] = ("entailment", "value")
    parts: tuple[str, ...] = ("t", "h")

    def describe(self) -> str:
        return f"{self.path}, {' and '.join(self.parts)} -> {' or '.join(self.label)}"

    def read(self, bad: BadLines) -> Iterator[Pair]:
        return kept_pairs(self._pairs(), bad, False, self.describe())

    def _pairs(self) -> Iterator[tuple[str, str]]:
        file = find(self.path)
        for number, pair in enumerate(_root(file).iter("pair"), start=1):
            place = f"{file}, pair {pair.get('id', number)}"
            label = next((pair.get(name) for name in self.label if pair.get(name)), None)
            if label is None:
                raise UserError(f"{place} has no attribute {' or '.join(self.label)}: mend the file, or `label`")
            texts = [pair.find(part) for part in self.parts]
            if any(text is None for text in texts):
                raise UserError(
                    f"{place} has not all of the elements {', '.join(self.parts)}: mend the file, or `parts`"
                )
            yield "\t".join(" ".join("".join(text.itertext()).split()) for text in texts if text is not None), label


def _root(file: Path) -> ElementTree.Element:
    with file.open("rb") as stream:
        packed = stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    try:
        with gzip.open(file) if packed else file.open("rb") as stream:
            return ElementTree.parse(stream).getroot()
    except (ElementTree.ParseError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{file} cannot be read as XML ({error}): fetch it again, or mend the place") from None
