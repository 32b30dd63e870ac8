"""The cache of encoded corpora: a text becomes ids once, in a folder of memory-mapped columns.

columns.json   the fingerprint of text, tokenizer and recipe, and the records of the columns
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

from jaxlm.data.ragged import Columns, Ragged, concat_columns
from jaxlm.data.storage.columns import DamagedColumn, StoredColumn, id_dtype, update_digest, write_columns
from jaxlm.data.tokenizers.base import TOKENIZE_BATCH_SIZE, Tokenizer
from jaxlm.errors import UserError
from jaxlm.filesystem import create_folder, write_atomic
from jaxlm.json_files import read_json

COLUMNS_FILE = "columns.json"


class ColumnsIndex(TypedDict):
    """The content of `columns.json`."""

    fingerprint: str
    columns: list[dict]


def encode_pairs(pairs: Iterable[tuple[str, str]], tokenizer: Tokenizer, folder: Path | None = None) -> Columns:
    """Columns "source" and "target": the ids of every pair, without special ids; see `cached_columns`."""

    def encode(block: list[tuple[str, str]]) -> Columns:
        source, target = map(list, zip(*block, strict=True))
        rows = {"source": tokenizer.side("source").encode(source), "target": tokenizer.side("target").encode(target)}
        return {name: Ragged.from_rows(rows[name], id_dtype(tokenizer)) for name in rows}

    return cached_columns(pairs, encode, tokenizer.fingerprint, folder)


def encode_texts(texts: Iterable[str], tokenizer: Tokenizer, folder: Path | None = None) -> Ragged:
    """The ids of every text, without special ids; see `cached_columns`."""

    def encode(block: list[str]) -> Columns:
        return {"target": Ragged.from_rows(tokenizer.encode(block), id_dtype(tokenizer))}

    return cached_columns(texts, encode, tokenizer.fingerprint, folder)["target"]


def cached_columns(
    rows: Iterable[Any],
    encode: Callable[[list[Any]], Columns],
    recipe: str,
    folder: Path | None = None,
    block_size: int | None = None,
) -> Columns:
    """The columns that `encode` makes of the rows (texts, pairs of texts, or frozen records), block by block.

    With a `folder` they are kept there and memory-mapped. A folder that was made of the same text by the same
    `recipe` (the tokenizer and all else that decides the ids) is opened if it is undamaged, and made again otherwise.
    It appears by a rename at the end, so an unfinished one is never read. Raises UserError without rows.
    """
    block_size = block_size or TOKENIZE_BATCH_SIZE
    if folder is None:
        return concat_columns(map(encode, _blocks(rows, block_size)))
    if (folder / COLUMNS_FILE).is_file():
        digest = _new_digest(recipe)
        for _ in _blocks(rows, block_size, digest):  # reading is ten times as fast as encoding
            pass
        if columns := _open_cached(folder, digest.hexdigest()):
            return columns
    digest = _new_digest(recipe)
    with create_folder(folder, replace=True) as partial:
        records = write_columns(partial, map(encode, _blocks(rows, block_size, digest)))
        index = {"fingerprint": digest.hexdigest(), "columns": [asdict(record) for record in records]}
        write_atomic(partial / COLUMNS_FILE, json.dumps(index, indent=1))
    return {record.name: record.open(folder) for record in records}


def _open_cached(folder: Path, fingerprint: str) -> Columns | None:
    """The columns of a folder with this fingerprint, or None if it has another one or is damaged."""
    try:
        index = read_json(folder / COLUMNS_FILE, ColumnsIndex)
        records = [StoredColumn.from_json(entry) for entry in index["columns"]]
        if index["fingerprint"] != fingerprint or not all(record.is_intact(folder) for record in records):
            return None
        return {record.name: record.open(folder) for record in records}
    except (OSError, UserError, ValueError, KeyError, TypeError, DamagedColumn):
        return None


def _blocks(rows: Iterable[Any], block_size: int, digest: "hashlib._Hash | None" = None) -> Iterator[list]:
    """The rows in lists, added to the digest. Raises UserError without rows."""
    stream, empty = iter(rows), True
    while block := list(islice(stream, block_size)):
        empty = False
        if digest is not None:
            for row in block:
                texts = row if isinstance(row, tuple) else (row if isinstance(row, str) else repr(row),)
                for text in texts:
                    update_digest(digest, text)
        yield block
    if empty:
        describe = getattr(rows, "describe", lambda: type(rows).__name__)
        raise UserError(f"the data set is empty: {describe()} gave no text; check its path, its columns and its filter")


def _new_digest(recipe: str) -> "hashlib._Hash":
    """A digest of the text itself, not of the names of its files."""
    return hashlib.sha256(f"columns 1 {recipe}\n".encode())
