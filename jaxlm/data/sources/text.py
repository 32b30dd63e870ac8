"""Texts for language models: lines of a file, a file as one long text, documents of several files, or shards of ids."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from jaxlm.data.files import MAX_TEXT_BYTES, OnBadLine, ReadStats, find_file, iter_lines, read_lines, too_large
from jaxlm.data.ragged import Ragged
from jaxlm.data.sources.base import Source, WithStats
from jaxlm.data.sources.parallel import JsonLines
from jaxlm.data.storage.shards import REBUILD_HINT, SHARD_INDEX, read_index
from jaxlm.data.storage.token_cache import DamagedColumn, encode_texts
from jaxlm.data.tokenizers.base import TOKENIZE_BATCH_SIZE, Tokenizer
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.errors import UserError

MAX_WHOLE_TEXT_BYTES = 4 << 30


class TextSource(Source[str]):
    """Base of the sources of texts."""

    def encode(self, tokenizer: Tokenizer, stats: ReadStats | None = None, folder: Path | None = None) -> Ragged:
        """The ids of each text: memory-mapped, and encoded only once, if a `folder` is given to keep them."""
        return encode_texts(WithStats(self, ReadStats() if stats is None else stats), tokenizer, folder)


@dataclass(frozen=True)
class TextFile(TextSource):
    """A UTF-8 file, plain or compressed.

    Attributes:
      unit: a text is a "line" (blank ones too), or the "whole" file with LF as line ends.
      max_text_bytes: limit of a text; None: 64 MB for a line, 4 GB for a whole file.
      start_fraction, end_fraction: the part of the whole file, in characters: (0, 0.9) is the first nine tenths.
    """

    path: str
    unit: Literal["line", "whole"] = "line"
    start_fraction: float = 0.0
    end_fraction: float = 1.0
    on_bad_line: OnBadLine = "error"
    max_text_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.start_fraction < self.end_fraction <= 1.0:
            raise UserError(
                f"{self.path}: the part from {self.start_fraction} to {self.end_fraction}: expected 0 <= "
                "start_fraction < end_fraction <= 1"
            )
        if self.unit == "line" and (self.start_fraction, self.end_fraction) != (0.0, 1.0):
            raise UserError(f"{self.path}: a part of a file is cut from unit='whole', not from lines")

    def describe(self) -> str:
        is_part = (self.start_fraction, self.end_fraction) != (0.0, 1.0)
        part = f", {self.start_fraction:.0%} to {self.end_fraction:.0%}" if is_part else ""
        return f"{self.path}{part}, {'a text a line' if self.unit == 'line' else 'one text'}"

    def read(self, stats: ReadStats) -> Iterator[str]:
        limit = self.max_text_bytes or (MAX_TEXT_BYTES if self.unit == "line" else MAX_WHOLE_TEXT_BYTES)
        lines = read_lines(self.path, self.on_bad_line, stats, limit)
        if self.unit == "line":
            yield from lines
            return
        parts, size = [], 0
        for line in lines:
            parts.append(line + "\n")
            if (size := size + len(parts[-1])) > limit:
                raise UserError(f"{find_file(self.path)}: {too_large('the text', limit)}")
        text = "".join(parts)
        text = text[round(len(text) * self.start_fraction) : round(len(text) * self.end_fraction)]
        if not text:
            raise UserError(
                f"{find_file(self.path)}: nothing is left of it between {self.start_fraction:.0%} and "
                f"{self.end_fraction:.0%}"
            )
        yield text


DocumentUnit = Literal["line", "block", "heading", "json"]


@dataclass(frozen=True)
class Documents(TextSource):
    """The documents of several UTF-8 files, one file after the other; blank ones are left out.

    Attributes:
      unit: a document is a "line", the "block" of lines between blank ones, the lines from one "heading" to the next
        one, or the `field` of a line of "json". A document ends with its file.
      heading: a regular expression for the beginning of a heading.
      field: a key, or a path such as `meta.text` into nested objects.
      line_separator: the text between the lines of a document.
    """

    paths: tuple[str, ...]
    unit: DocumentUnit = "line"
    heading: str = ""
    field: str = "text"
    line_separator: str = "\n"
    on_bad_line: OnBadLine = "error"
    max_text_bytes: int = MAX_TEXT_BYTES

    def __post_init__(self) -> None:
        if not self.paths:
            raise UserError("documents without a file: expected one path at least")
        if self.unit not in get_args(DocumentUnit) or (self.unit == "heading") != bool(self.heading):
            raise UserError(
                f"unit {self.unit!r} with heading {self.heading!r}: expected one of "
                f"{', '.join(get_args(DocumentUnit))}, and a heading only with 'heading'"
            )
        try:
            re.compile(self.heading)
        except re.error as error:
            raise UserError(f"heading {self.heading!r} is not a regular expression: {error}") from None

    def describe(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{self.paths[0]}{more}, a document a {self.unit}"

    def read(self, stats: ReadStats) -> Iterator[str]:
        for path in self.paths:
            if self.unit == "json":
                records = JsonLines(path, self.field, self.field, self.on_bad_line, max_text_bytes=self.max_text_bytes)
                yield from (text for text, _ in records.read(stats))
                continue
            for lines in self._split_documents(path, stats):
                text = self.line_separator.join(lines)
                if text.strip():
                    stats.kept += 1
                    yield text
                else:
                    stats.blank += 1

    def _split_documents(self, path: str, stats: ReadStats) -> Iterator[list[str]]:
        """The lines of each document."""
        group: list[str] = []
        size = 0
        begins = re.compile(self.heading).match
        for number, line in enumerate(iter_lines(path, self.on_bad_line, stats, self.max_text_bytes), start=1):
            if line is None:
                stats.skipped += 1
                continue
            blank = not line.strip()
            if self.unit == "line":
                yield [line]
                continue
            if blank or (self.unit == "heading" and begins(line)):
                if group and not (blank and self.unit == "heading"):
                    yield group
                    group, size = [], 0
                group += [] if blank else [line]
            else:
                group.append(line)
            if (size := size + len(line)) > self.max_text_bytes:
                raise UserError(f"{path}, line {number}: {too_large('the document', self.max_text_bytes)}")
        if group:
            yield group


@dataclass(frozen=True)
class Shards(TextSource):
    """The documents of a folder that `jaxlm prepare` made: shards of ids, memory-mapped.

    Attributes:
      max_document_tokens: longer documents are cut into pieces of this length, for batches whose rows are documents.
        None: no document is cut.
    """

    path: str
    max_document_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_document_tokens is not None and self.max_document_tokens < 1:
            raise UserError(f"max_document_tokens = {self.max_document_tokens}: expected 1 token at least, or None")

    def describe(self) -> str:
        pieces = f", in pieces of {self.max_document_tokens:,} tokens" if self.max_document_tokens else ""
        return f"{self.path}, shards{pieces}"

    @property
    def folder(self) -> Path:
        """The folder of the shards. Raises UserError with every place that was searched."""
        return find_file(Path(self.path) / SHARD_INDEX).parent

    def check(self) -> ReadStats:
        """Read every byte once. Raises UserError for a shard that is not as it was written."""
        records, _ = read_index(self.folder)
        for record in records:
            if not record.is_intact(self.folder):
                raise UserError(
                    f"shard {record.name} of {self.folder} is damaged: its bytes are not those written. {REBUILD_HINT}"
                )
        return ReadStats(kept=sum(record.rows for record in records))

    def encode(self, tokenizer: Tokenizer, stats: ReadStats | None = None, folder: Path | None = None) -> Ragged:
        """The ids of each document, memory-mapped. Raises UserError for another tokenizer and for damaged files."""
        records, fingerprint = read_index(self.folder)
        if fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"the shards in {self.folder} are ids of the tokenizer {fingerprint[:12]}, and this run has "
                f"{tokenizer.fingerprint[:12]}: use theirs (tokenizer=SavedTokenizer({self.path!r}, size)), or "
                "prepare them with `jaxlm prepare --tokenizer WORKDIR`"
            )
        try:
            columns = [record.open(self.folder) for record in records]
        except DamagedColumn as error:
            raise UserError(f"shard {error}. {REBUILD_HINT}") from error
        column = Ragged.concat(columns) if len(columns) > 1 else columns[0]
        stats = ReadStats() if stats is None else stats
        stats.kept += len(column)
        if self.max_document_tokens is None:
            return column
        stats.split += int((column.lengths > self.max_document_tokens).sum())
        return column.split_long(self.max_document_tokens)

    def read(self, stats: ReadStats) -> Iterator[str]:
        tokenizer = load_tokenizer(self.folder / "tokenizer")
        column = self.encode(tokenizer, stats)
        for first in range(0, len(column), TOKENIZE_BATCH_SIZE):
            rows = range(first, min(first + TOKENIZE_BATCH_SIZE, len(column)))
            yield from tokenizer.decode([column[row].tolist() for row in rows])
