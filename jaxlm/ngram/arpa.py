r"""ARPA files: the exchange format of back-off n-gram models, read and written by SRILM, KenLM, Kaldi and others.

    \data\
    ngram 1=3
    ngram 2=1

    \1-grams:
    -99<TAB><s><TAB>-0.30103          log10 of the probability, the n-gram, log10 of its back-off weight (if any)
    -0.30103<TAB>a<TAB>0
    ...
    \end\

Plain text or gzip. In memory a model is a `jaxlm.ngram.counts.BackoffTables`, in natural logs.
"""

import gzip
import math
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.files import find_file, read_lines
from jaxlm.data.tokenizers.base import BOS, EOS, PAD, UNK
from jaxlm.errors import UserError
from jaxlm.filesystem import open_atomic
from jaxlm.ngram.counts import LOG_ZERO, BackoffLevel, BackoffTables, to_levels, to_tables

LN10 = math.log(10.0)

ARPA_LOG10_ZERO = -99.0
"""log10 of a probability of 0, as all tools write it."""

SPECIAL_WORDS = {"<unk>": UNK, "<s>": BOS, "</s>": EOS}

UNKNOWN_NAMES = ("<unk>", "<UNK>")

MAX_ORDER = 64
"""The longest n-grams that are read."""


def write_arpa(path: str | Path, tables: Any, words: Sequence[str]) -> None:
    """Write the tables, gzipped if the name ends in .gz; `words[i]` is the word of id i. Padding is left out.

    Raises UserError unless each id has a word of its own without white space.
    """
    path, levels = Path(path), to_levels(tables)
    vocab = len(levels[0].word)
    if len(words) != vocab:
        raise UserError(f"{len(words)} words for a model of {vocab} ids: give the tokenizer of the model")
    names = list(words)
    for word, index in SPECIAL_WORDS.items():
        names[index] = word
    seen = {UNKNOWN_NAMES[1]}
    for index, word in enumerate(names[1:], start=1):
        if not word or re.search(r"[ \t\r\n\0]", word) or word in seen:
            raise UserError(
                f"id {index} is the word {word!r}: words of an ARPA file are not empty, unique and without white "
                "space. Give write_arpa names for such ids, as in '<space>'."
            )
        seen.add(word)
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


def read_arpa(path: str | Path) -> tuple[BackoffTables, tuple[str, ...]]:
    """Return the tables and the words, `words[i]` of id i: padding, `<unk>`, `<s>`, `</s>`, then the file's order.

    `NGram(len(words), len(tables))` takes the tables as its parameters, and `WordTokenizer(words[4:])` gives the ids.
    As KenLM, it takes `<UNK>` for `<unk>`, and a back-off weight of 0 in the highest order. Raises UserError, with file
    and line, if the file is not valid.
    """
    return _ArpaReader(find_file(path)).read()


class _ArpaReader:
    """Reads the lines once; `number` and `line` are the current one."""

    def __init__(self, file: Path):
        self.file, self.lines = file, enumerate(read_lines(file), start=1)
        self.number, self.line = 0, ""
        self.words = ["<pad>", *SPECIAL_WORDS]
        self.word_to_id: dict[str, int] = {}
        self.keys: list[np.ndarray] = []  # of each order that was read: the n-grams as parent * vocab + word, sorted

    def read(self) -> tuple[BackoffTables, tuple[str, ...]]:
        """Read the whole file."""
        while self.next_line() != "\\data\\":
            pass
        sizes: list[int] = []
        while match := re.fullmatch(r"ngram[ \t]+([0-9]{1,9})[ \t]*=[ \t]*([0-9]{1,18})", self.next_line()):
            if int(match[1]) != len(sizes) + 1:
                raise self.error(f"{self.line!r}, expected the count of {len(sizes) + 1}-grams")
            if len(sizes) == MAX_ORDER:
                raise self.error(f"{self.line!r}, and n-grams of at most {MAX_ORDER} words are read", cure="")
            sizes.append(int(match[2]))
        if not sizes:
            raise self.error(f"{self.line[:80]!r}, expected 'ngram 1=...'")
        levels = [self._read_level(n, size, n == len(sizes)) for n, size in enumerate(sizes, start=1)]
        if self.line != "\\end\\":
            raise self.error(f"{self.line[:80]!r}, expected \\end\\")
        return to_tables(levels), tuple(self.words)

    def error(self, message: str, line: int | None = None, cure: str = " Write the file again.") -> UserError:
        """Return a UserError that names the line."""
        return UserError(f"{self.file}, line {line or self.number}: {message}.{cure}")

    def next_line(self) -> str:
        """Read the next line that is not blank."""
        for number, line in self.lines:
            self.number, self.line = number, line.strip(" \t\r")
            if self.line:
                return self.line
        raise self.error("the file ends before \\end\\: it was cut off, or is not an ARPA file")

    def _read_level(self, n: int, size: int, is_highest: bool) -> BackoffLevel:
        """Read the n-grams of one order, and sort them by (parent, word)."""
        if self.line != f"\\{n}-grams:":
            raise self.error(f"{self.line[:80]!r}, expected \\{n}-grams:")
        ids, logprob, backoff, line_numbers = array("i"), array("d"), array("d"), array("q")
        lengths = n + 1, n + 2
        while not self.next_line().startswith("\\"):
            fields = self.line.replace("\t", " ").split(" ")
            if "" in fields:
                fields = [text for text in fields if text]
            if len(fields) not in lengths:
                raise self.error(
                    f"{len(fields)} columns, expected {n + 1} or {n + 2}: a log-probability, {n} word{'s' * (n > 1)}, "
                    "and perhaps a back-off weight"
                )
            ids.extend([self._add_word(fields[1])] if n == 1 else self._parse_ids(fields[1 : n + 1]))
            logprob.append(self._parse_log10(fields[0], 0.0))
            backoff.append(self._parse_log10(fields[-1], math.inf) if len(fields) == n + 2 else 0.0)
            line_numbers.append(self.number)
        if is_highest and any(backoff):
            row = np.flatnonzero(backoff)[0]
            message = f"a back-off weight of {backoff[row] / LN10:.9g}: no n-gram of the highest order has one but 0"
            raise self.error(message, line_numbers[row])
        if len(line_numbers) != size:
            raise self.error(f"{len(line_numbers)} {n}-grams end here, but the header says {size}")
        keys = self._find_keys(np.asarray(ids, np.int64).reshape(-1, n), line_numbers)
        order = np.argsort(keys, kind="stable")
        keys, vocab = keys[order], len(self.words)
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            first, second = (line_numbers[order[twice[0] + i]] for i in (0, 1))
            raise self.error(f"the {n}-gram of line {first} once more", second)
        row = keys if n == 1 else np.arange(len(keys))  # order 1 has a row for every id, also for those not in the file
        self.keys.append(np.arange(vocab, dtype=np.int64) if n == 1 else keys)
        logs, weights = np.full(len(self.keys[-1]), LOG_ZERO), np.zeros(len(self.keys[-1]))
        logs[row], weights[row] = np.asarray(logprob)[order], np.asarray(backoff)[order]
        parent, word = np.divmod(self.keys[-1], vocab)
        return BackoffLevel(parent.astype(np.int32), word.astype(np.int32), logs, weights)

    def _parse_ids(self, words: Sequence[str]) -> list[int]:
        try:
            return [self.word_to_id[word] for word in words]
        except KeyError as error:
            raise self.error(f"the word {error.args[0]!r} is not among the 1-grams") from None

    def _add_word(self, word: str) -> int:
        if word in self.word_to_id:
            raise self.error(f"the 1-gram {word!r} once more")
        names = UNKNOWN_NAMES if word in UNKNOWN_NAMES else (word,)
        index = SPECIAL_WORDS.get(names[0], len(self.words))
        self.word_to_id |= dict.fromkeys(names, index)
        if index == len(self.words):
            self.words.append(word)
        return index

    def _parse_log10(self, text: str, upper_bound: float) -> float:
        """Convert log10 to the natural log."""
        try:
            value = float(text) if "_" not in text else math.nan  # Python reads 1_0 as 10
        except ValueError:
            value = math.nan
        if not value <= upper_bound or value == math.inf:
            raise self.error(
                f"{text[:80]!r}, expected a log10 of {'a probability: 0 or less' if upper_bound == 0 else 'a weight'}"
            )
        return max(value, ARPA_LOG10_ZERO) * LN10

    def _find_keys(self, ids: np.ndarray, line_numbers: Sequence[int]) -> np.ndarray:
        """Return parent * vocab + word of each n-gram; binary search finds its parent in the order below."""
        key = ids[:, 0]
        for k in range(1, ids.shape[1]):
            if k > 1:
                row = np.searchsorted(self.keys[k - 1], key)
                known = np.append(self.keys[k - 1], -1)
                lost = np.flatnonzero(known[row] != key)
                if len(lost):
                    parent = " ".join(self.words[index] for index in ids[lost[0], :-1].tolist())
                    message = f"an n-gram that begins with {parent!r}, which is not among the shorter n-grams"
                    raise self.error(message, line_numbers[lost[0]])
                key = row
            key = key * len(self.words) + ids[:, k]
        return key
