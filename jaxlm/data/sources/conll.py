"""Tagged sentences from files with one word a line: CoNLL-U, and the column files of named entity recognition.

Each reader is a source of pairs (words, tags), both separated by single spaces, with one tag a word. White space inside
a word (some languages write numbers so) becomes "_", which keeps the two sides aligned.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, get_args

from jaxlm.data.files import MAX_TEXT_BYTES, OnBadLine, ReadStats, find_file, iter_lines, too_large
from jaxlm.data.sources.base import FilteredPairs, Pair, Pairs, PairSource, iter_pairs
from jaxlm.errors import UserError

OnBadTag = Literal["error", "repair"]
"""The treatment of an I- tag that continues no span of its class: stop and name it, or make it the B- of a new span."""

CONLLU_COLUMNS = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")

UPOS_TAGS = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM",
    "VERB", "X",
)  # fmt: skip
"""The universal parts of speech (Nivre et al. 2020, table 1)."""

TaggedWord = tuple[int, str, str]
"""(number of the line from 1, form, tag) of a word."""


class _InvalidLine(Exception):
    """The fault of a line, which makes its sentence unusable."""


class TaggedFile(FilteredPairs):
    """Base of the readers here: sentences between blank lines."""

    path: str
    on_bad_line: OnBadLine
    max_text_bytes: int

    def _read_rows(self, stats: ReadStats) -> Iterator[tuple[str | None, str | None]]:
        for rows in self.read_sentences(stats):
            if rows is None:
                yield None, None
            else:
                yield join_tokens(form for _, form, _ in rows), join_tokens(tag for _, _, tag in rows)

    def read_sentences(self, stats: ReadStats) -> Iterator[list[TaggedWord] | None]:
        """The words of each sentence, or None for one that must be left out. Raises UserError."""
        file, valid, size = find_file(self.path), True, 0
        rows: list[TaggedWord] = []
        lines = chain(
            iter_lines(file, self.on_bad_line, stats, self.max_text_bytes), ("",)
        )  # the last sentence may end with the file
        for number, line in enumerate(lines, start=1):
            if line is not None and not line.strip():
                if rows or not valid:
                    yield self._check_tags(rows, str(file)) if valid else None
                rows, valid, size = [], True, 0
                continue
            if (size := size + len(line or "")) > self.max_text_bytes:
                raise UserError(f"{file}, line {number}: {too_large('the sentence', self.max_text_bytes)}")
            try:
                if line is None:
                    raise _InvalidLine("not UTF-8")
                row = self._parse_line(line, len(rows))
                rows += [(number, *row)] if row else []
            except _InvalidLine as error:
                if line is not None and self.on_bad_line == "error":
                    raise UserError(
                        f"{file}, line {number}: {error}. Fix the line, or set on_bad_line='skip' to leave the "
                        "sentence out."
                    ) from None
                valid = False

    def locate(self, index: int, word: int = 0) -> str:
        """File and line of a word; sentence `index` and word are counted from 0 among the sentences that are read."""
        kept = (rows for rows in self.read_sentences(ReadStats()) if rows)
        return f"{find_file(self.path)}, line {next(islice(kept, index, None))[word][0]}"

    def _parse_line(self, line: str, words: int) -> tuple[str, str] | None:
        """Form and tag, or None for other lines; `words` of the sentence are before it. Raises _InvalidLine."""
        raise NotImplementedError

    def _check_tags(self, rows: list[TaggedWord], file: str) -> list[TaggedWord]:
        return rows


@dataclass(frozen=True)
class ConllU(TaggedFile):
    """The syntactic words of a CoNLL-U file (universaldependencies.org/format) and a column (UPOS, XPOS, DEPREL, ...).

    Multi-word tokens ("3-4"), empty nodes ("5.1") and comments are skipped.
    """

    path: str
    column: str = "UPOS"
    on_bad_line: OnBadLine = "error"
    max_text_bytes: int = MAX_TEXT_BYTES

    def __post_init__(self) -> None:
        if self.column not in CONLLU_COLUMNS[2:]:
            raise UserError(
                f"{self.path}: column {self.column!r}: expected one of {', '.join(CONLLU_COLUMNS[2:])}, the names of "
                "the CoNLL-U format"
            )

    def describe(self) -> str:
        return f"{self.path}, words -> {self.column}"

    def _parse_line(self, line: str, words: int) -> tuple[str, str] | None:
        if line.startswith("#"):
            return None
        cells = line.split("\t")
        if len(cells) != len(CONLLU_COLUMNS):
            raise _InvalidLine(f"{len(cells)} columns, expected the {len(CONLLU_COLUMNS)} of CoNLL-U between tabs")
        number, form, tag = cells[0], cells[1], cells[CONLLU_COLUMNS.index(self.column)]
        if re.fullmatch("[0-9]+[-.][0-9]+", number):
            return None
        if not re.fullmatch("[0-9]+", number):
            raise _InvalidLine(f"the id is {number!r}, expected a number, a range as in 3-4 or an empty node as in 5.1")
        if int(number[-9:]) != words + 1 or len(number) > 9:
            raise _InvalidLine(
                f"the id is {number}, expected {words + 1}: ids count the words of a sentence from 1, and a blank line "
                "ends it"
            )
        if not form or not tag:
            raise _InvalidLine(f"word {number} has no {self.column if form else 'form'}")
        if tag == "_" and self.column in ("UPOS", "XPOS"):
            raise _InvalidLine(f"word {number}, {form!r}, has no {self.column} (it is '_'); choose another column")
        return form, tag


@dataclass(frozen=True)
class ColumnFile(TaggedFile):
    """Column files with a word a line, as for named entity recognition: CoNLL-2003, WNUT-17, WikiANN, ...

    Attributes:
      word_column, tag_column: column numbers from 0; negative ones count from the end.
      separator: the text between columns; None is any number of spaces and tabs.
      comment_prefix: lines that begin with it are skipped ("" skips none, as "#" begins many words).
      on_bad_tag: the treatment of a span that begins with I-, where IOB2 has B-.
    """

    path: str
    word_column: int = 0
    tag_column: int = -1
    separator: str | None = "\t"
    comment_prefix: str = ""
    on_bad_line: OnBadLine = "error"
    on_bad_tag: OnBadTag = "error"
    max_text_bytes: int = MAX_TEXT_BYTES

    def __post_init__(self) -> None:
        if self.on_bad_tag not in get_args(OnBadTag):
            raise UserError(f"on_bad_tag is {self.on_bad_tag!r}: expected one of {', '.join(get_args(OnBadTag))}")

    def describe(self) -> str:
        return f"{self.path}, column {self.word_column} -> column {self.tag_column}"

    def _parse_line(self, line: str, words: int) -> tuple[str, str] | None:
        if (self.comment_prefix and line.startswith(self.comment_prefix)) or line.startswith("-DOCSTART-"):
            return None
        cells = line.split(self.separator) if self.separator else re.split("[ \t]+", line.strip(" \t"))
        required = max(number + 1 if number >= 0 else -number for number in (self.word_column, self.tag_column))
        required = max(required, 2)  # in a line of one column, its first and its last cell would be word and tag
        if len(cells) < required:
            raise _InvalidLine(f"{len(cells)} columns, expected at least {required}")
        form, tag = cells[self.word_column], cells[self.tag_column]
        if not form.strip() or not tag.strip():
            raise _InvalidLine(f"the {'tag' if form.strip() else 'word'} is missing")
        return form, tag

    def _check_tags(self, rows: list[TaggedWord], file: str) -> list[TaggedWord]:
        tags = [tag for _, _, tag in rows]
        if self.on_bad_tag == "error" and (place := next(find_invalid_iob2(tags), None)) is not None:
            number, form, tag = rows[place]
            raise UserError(
                f"{file}, line {number}: {form!r} is {tag} after {tags[place - 1] if place else 'O'}: IOB2 begins "
                f"a span with B{tag[1:]}. Fix the file, or set on_bad_tag='repair' to read it so."
            )
        return [(number, form, tag) for (number, form, _), tag in zip(rows, repair_iob2(tags), strict=True)]


def locate_word(pairs: object, sentence: int, word: int) -> str:
    """The place of a word for a message: file and line if the source knows them, else the source and the numbers."""
    if isinstance(pairs, TaggedFile):
        return pairs.locate(sentence, word)
    if isinstance(pairs, FilteredPairs):
        return f"{pairs.locate(sentence)}, word {word + 1}"
    describe = getattr(pairs, "describe", None)
    return f"{describe() if describe else type(pairs).__name__}, sentence {sentence + 1}, word {word + 1}"


def join_tokens(tokens: Iterable[str]) -> str:
    """Tokens with a single space between them, and "_" for white space inside one."""
    return " ".join("_".join(token.split()) or "_" for token in tokens)


def find_invalid_iob2(tags: Sequence[str]) -> Iterator[int]:
    """The places of the I- tags that continue no span of their class."""
    before = ("O", *tags)
    return (i for i, tag in enumerate(tags) if tag.startswith("I-") and before[i] not in (f"B{tag[1:]}", tag))


def repair_iob2(tags: Sequence[str]) -> list[str]:
    """The tags, with B- for an I- that continues no span of its class."""
    repaired = list(tags)
    for place in find_invalid_iob2(tags):
        repaired[place] = f"B{tags[place][1:]}"
    return repaired


@dataclass(frozen=True)
class RepairTags(PairSource):
    """Pairs (words, IOB2 tags) in which an I- tag that continues no span of its class begins one with B-."""

    pairs: Pairs

    def describe(self) -> str:
        return f"{self.pairs.describe()}; IOB2 repaired"

    def read(self, stats: ReadStats) -> Iterator[Pair]:
        for words, text in iter_pairs(self.pairs, stats):
            yield words, " ".join(repair_iob2(text.split()))
