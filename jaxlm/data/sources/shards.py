"""Texts that `jaxlm prepare` has encoded: shards of ids, memory-mapped."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.files import ReadStats, find_file
from jaxlm.data.ragged import ConcatArray, Ragged
from jaxlm.data.sources.text import TextSource
from jaxlm.data.storage.columns import DamagedColumn
from jaxlm.data.storage.shards import REBUILD_HINT, SHARD_INDEX, read_index
from jaxlm.data.tokenizers.base import TOKENIZE_BATCH_SIZE, Tokenizer
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.errors import UserError


@dataclass(frozen=True)
class Shards(TextSource):
    """The documents of a folder that `jaxlm prepare` made.

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
        lengths = np.concatenate([np.zeros(1, np.int64), *(column.lengths for column in columns)])
        flat: Any = columns[0].flat if len(columns) == 1 else ConcatArray([column.flat for column in columns])
        column = Ragged(flat, np.cumsum(lengths))
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
