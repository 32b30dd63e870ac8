r"""ARPA files: the exchange format of back-off n-gram models, read and written by SRILM, KenLM, Kaldi and others.

    \data\
    ngram 1=3
    ngram 2=1

    \1-grams:
    -99<TAB><s><TAB>-0.30103          log10 of the probability, the n-gram, log10 of its back-off weight (if any)
    -0.30103<TAB>a<TAB>0
    ...
    \end\

Plain text or gzip. In memory a model is a `jaxlm.ngram.backoff.BackoffTables`, in natural logs.
"""

import gzip
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.files import find_file, read_lines
from jaxlm.data.tokenizers.base import BOS, EOS, PAD, UNK
from jaxlm.errors import UserError
from jaxlm.filesystem import open_atomic
from jaxlm.ngram.backoff import LOG_ZERO, BackoffLevel, BackoffTables, to_levels, to_tables

LN10 = math.log(10.0)

ARPA_LOG10_ZERO = -99.0
"""log10 of a probability of 0, as all tools write it."""

SPECIAL_WORDS = {"<unk>": UNK, "<s>": BOS, "</s>": EOS}

PAD_WORD = "<pad>"


def write_arpa(path: str | Path, tables: Any, words: Sequence[str]) -> None:
    """Write the tables, gzipped if the name ends in .gz; `words[i]` is the word of id i. Padding is left out.

    Raises UserError unless each id has a word of its own without white space.
    """
    path, levels = Path(path), to_levels(tables)
    names = _check_words(words, len(levels[0].word))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path) as raw:
        lines = (text.encode() for text in _format_lines(levels, names))
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream:  # no name, no time: equal models, equal files
                stream.writelines(lines)
        else:
            raw.writelines(lines)


def _format_lines(levels: Sequence[BackoffLevel], words: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the file. `<s>` always gets the probability 0."""
    yield "\\data\\\n"
    for n, level in enumerate(levels, start=1):
        yield f"ngram {n}={len(level.word) - (n == 1)}\n"
    names: Sequence[str] = words
    for n, level in enumerate(levels, start=1):
        yield f"\n\\{n}-grams:\n"
        if n > 1:
            pairs = zip(level.parent.tolist(), level.word.tolist(), strict=True)
            names = [f"{names[parent]} {words[word]}" for parent, word in pairs]
        logprob = level.logprob.astype(np.float64) / LN10
        logprob[level.logprob < LOG_ZERO + 1e-3] = ARPA_LOG10_ZERO
        numbers = zip(names, logprob.tolist(), (level.backoff.astype(np.float64) / LN10).tolist(), strict=True)
        for row, (name, p, weight) in enumerate(numbers):
            if n > 1 or row != PAD:
                yield f"{p:.9g}\t{name}\t{weight:.9g}\n" if n < len(levels) else f"{p:.9g}\t{name}\n"
    yield "\n\\end\\\n"


def _check_words(words: Sequence[str], vocab: int) -> list[str]:
    if len(words) != vocab:
        raise UserError(f"{len(words)} words for a model of {vocab} ids: give the tokenizer of the model")
    names = list(words)
    for word, index in SPECIAL_WORDS.items():
        names[index] = word
    seen: set[str] = set()
    for index, word in enumerate(names[1:], start=1):
        if not word or re.search(r"[ \t\r\n]", word) or word in seen:
            raise UserError(
                f"id {index} is the word {word!r}: words of an ARPA file are not empty, unique and without white "
                "space. Give write_arpa names for such ids, as in '<space>'."
            )
        seen.add(word)
    return names


def read_arpa(path: str | Path) -> tuple[BackoffTables, tuple[str, ...]]:
    """Return the tables and the words, `words[i]` of id i: padding, `<unk>`, `<s>`, `</s>`, then the file's order.

    `NGram(len(words), len(tables))` takes the tables as its parameters, and `WordTokenizer(words[4:])` gives the ids.
    Raises UserError, with file and line, if the file is not valid.
    """
    file = find_file(path)
    return _ArpaReader(file, enumerate(read_lines(file), start=1)).read()


@dataclass
class _ArpaSection:
    """The n-grams of one order in the order of the file: their ids in one array, natural logs, line numbers."""

    ids: array = field(default_factory=lambda: array("i"))
    logprob: array = field(default_factory=lambda: array("d"))
    backoff: array = field(default_factory=lambda: array("d"))
    line_numbers: array = field(default_factory=lambda: array("q"))


class _ArpaReader:
    """Reads the lines once; `number` and `line` are the current one."""

    def __init__(self, file: Path, lines: Iterable[tuple[int, str]]):
        self.file, self.lines = file, iter(lines)
        self.number, self.line = 0, ""
        self.words = [PAD_WORD, *SPECIAL_WORDS]
        self.word_to_id: dict[str, int] = {}

    def read(self) -> tuple[BackoffTables, tuple[str, ...]]:
        """Read the whole file."""
        while self.next_line() != "\\data\\":
            pass
        sizes = self._read_header()
        sections = [self._read_section(n, size, n == len(sizes)) for n, size in enumerate(sizes, start=1)]
        if self.line != "\\end\\":
            raise self.error(f"{self.line!r}, expected \\end\\")
        return to_tables(self._build_levels(sections, len(self.words))), tuple(self.words)

    def error(self, message: str, line: int | None = None) -> UserError:
        """Return a UserError that names the line."""
        return UserError(f"{self.file}, line {line or self.number}: {message}. Write the file again.")

    def next_line(self) -> str:
        """Read the next line that is not blank."""
        for number, line in self.lines:
            self.number, self.line = number, line.strip(" \t\r")
            if self.line:
                return self.line
        raise self.error("the file ends before \\end\\: it was cut off, or is not an ARPA file")

    def _read_header(self) -> list[int]:
        sizes: list[int] = []
        while match := re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", self.next_line()):
            if int(match[1]) != len(sizes) + 1:
                raise self.error(f"{self.line!r}, expected the count of {len(sizes) + 1}-grams")
            sizes.append(int(match[2]))
        if not sizes:
            raise self.error(f"{self.line!r}, expected 'ngram 1=...'")
        return sizes

    def _read_section(self, n: int, size: int, is_highest: bool) -> _ArpaSection:
        if self.line != f"\\{n}-grams:":
            raise self.error(f"{self.line!r}, expected \\{n}-grams:")
        section, lengths = _ArpaSection(), (n + 1,) if is_highest else (n + 1, n + 2)
        while not self.next_line().startswith("\\"):
            fields = self.line.replace("\t", " ").split(" ")
            if "" in fields:
                fields = [text for text in fields if text]
            if len(fields) not in lengths:
                raise self.error(
                    f"{len(fields)} columns, expected {' or '.join(map(str, lengths))}: a log-probability, {n} "
                    f"word{'s' * (n > 1)}{'' if is_highest else ', and perhaps a back-off weight'}"
                )
            section.ids.extend(self._parse_ids(fields[1 : n + 1]))
            section.logprob.append(self._parse_log10(fields[0], 0.0))
            section.backoff.append(self._parse_log10(fields[-1], math.inf) if len(fields) == n + 2 else 0.0)
            section.line_numbers.append(self.number)
        if len(section.line_numbers) != size:
            raise self.error(f"{len(section.line_numbers)} {n}-grams end here, but the header says {size}")
        return section

    def _parse_ids(self, words: Sequence[str]) -> list[int]:
        if len(words) == 1:
            return [self._add_word(words[0])]
        try:
            return [self.word_to_id[word] for word in words]
        except KeyError as error:
            raise self.error(f"the word {error.args[0]!r} is not among the 1-grams") from None

    def _add_word(self, word: str) -> int:
        if word in self.word_to_id:
            raise self.error(f"the 1-gram {word!r} once more")
        index = SPECIAL_WORDS.get(word, len(self.words))
        self.word_to_id[word] = index
        if index == len(self.words):
            self.words.append(word)
        return index

    def _parse_log10(self, text: str, upper_bound: float) -> float:
        """Convert log10 to the natural log."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not value <= upper_bound or value == math.inf:
            raise self.error(
                f"{text!r}, expected a log10 of {'a probability: 0 or less' if upper_bound == 0 else 'a weight'}"
            )
        return max(value, ARPA_LOG10_ZERO) * LN10

    def _build_levels(self, sections: Sequence[_ArpaSection], vocab: int) -> list[BackoffLevel]:
        """Sort each order by (parent, word); binary search finds the parents in the order below."""
        levels, keys = [], [np.arange(vocab, dtype=np.int64)]
        for n, section in enumerate(sections, start=1):
            ids = np.asarray(section.ids, np.int64).reshape(-1, n)
            parent = ids[:, 0] if n > 1 else np.zeros(len(ids), np.int64)
            for k in range(1, n - 1):
                parent = self._find_rows(keys[k], parent * vocab + ids[:, k], section, ids)
            key = parent * vocab + ids[:, -1]
            order = np.argsort(key, kind="stable")
            key = key[order]
            twice = np.flatnonzero(key[1:] == key[:-1])
            if len(twice):
                first, second = (section.line_numbers[order[twice[0] + i]] for i in (0, 1))
                raise self.error(f"the {n}-gram of line {first} once more", second)
            logprob, backoff = np.asarray(section.logprob)[order], np.asarray(section.backoff)[order]
            if n == 1:  # a row for every id, also for those that the file lacks
                logprob, seen = np.full(vocab, LOG_ZERO), logprob
                backoff, weight = np.zeros(vocab), backoff
                logprob[key], backoff[key], key = seen, weight, keys[0]
            else:
                keys.append(key)
            parent, word = (key // vocab).astype(np.int32), (key % vocab).astype(np.int32)
            levels.append(BackoffLevel(parent, word, logprob, backoff))
        return levels

    def _find_rows(self, keys: np.ndarray, queries: np.ndarray, section: _ArpaSection, ids: np.ndarray) -> np.ndarray:
        row = np.searchsorted(keys, queries)
        lost = np.flatnonzero(keys[np.minimum(row, len(keys) - 1)] != queries) if len(keys) else np.arange(len(queries))
        if len(lost):
            parent = " ".join(self.words[index] for index in ids[lost[0], :-1].tolist())
            raise self.error(f"an n-gram that begins with {parent!r}, which is not among the shorter n-grams",
                             section.line_numbers[lost[0]])  # fmt: skip
        return row
