"""The index of a folder of shards, the output of `jaxlm prepare`: each shard is a stored column of documents.

index.json     the source, the tokenizer's fingerprint, a record for each shard, the totals
tokenizer/     the tokenizer of the ids
00000.json     the record of shard 00000, written when the shard is whole
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxlm.data.storage.columns import StoredColumn
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.errors import UserError
from jaxlm.filesystem import write_atomic

SHARD_INDEX = "index.json"

SHARD_VERSION = 2

REBUILD_HINT = "Repeat the `jaxlm prepare` command that made it: it keeps the shards that are whole."


@dataclass(frozen=True)
class ShardRecord(StoredColumn):
    """The record of one shard.

    Attributes:
      unknown: tokens that are the unknown id.
      bytes: of the documents as UTF-8.
      text_digest: of the documents, to recognize them.
    """

    unknown: int
    bytes: int
    text_digest: str


def read_index(folder: Path) -> tuple[list[ShardRecord], str]:
    """The shards and the fingerprint of their tokenizer. Raises UserError if the index is damaged."""
    file = folder / SHARD_INDEX
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        if index["version"] != SHARD_VERSION:
            raise UserError(f"{file} has version {index['version']}, expected {SHARD_VERSION}. {REBUILD_HINT}")
        records = [ShardRecord.from_json(entry) for entry in index["shards"]]
        if not records or index["sums"] != total_counts(records):
            raise ValueError("its sums are not those of its shards")
        return records, str(index["tokenizer"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}). {REBUILD_HINT}") from error


def write_index(folder: Path, records: list[ShardRecord], tokenizer: Tokenizer, source: str) -> dict[str, int]:
    """Write index.json; returns the totals."""
    index: dict[str, Any] = {"version": SHARD_VERSION, "source": source, "tokenizer": tokenizer.fingerprint}
    index |= {"sums": total_counts(records), "shards": [asdict(record) for record in records]}
    write_atomic(folder / SHARD_INDEX, json.dumps(index, indent=1))
    return index["sums"]


def read_source_name(folder: Path) -> str | None:
    """The source of the shards of a folder; None without a readable index."""
    try:
        return str(json.loads((folder / SHARD_INDEX).read_bytes())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def total_counts(records: list[ShardRecord]) -> dict[str, int]:
    """Documents, tokens, unknown tokens and bytes of all shards."""
    fields = {"documents": "rows", "tokens": "ids", "unknown": "unknown", "bytes": "bytes"}
    return {name: sum(getattr(record, field) for record in records) for name, field in fields.items()}
