"""Shards of ids, the output of `jaxlm prepare`: built by several processes, resumed if a run was killed.

index.json     the source, the tokenizer's fingerprint, a record for each shard, the totals
tokenizer/     the tokenizer of the ids
00000.*        shard 00000: a stored column of documents, and its record in 00000.json

Only the bytes of the documents decide where a shard ends, so neither the number of processes nor an interruption
changes a byte of the result. A shard is done when its record exists, which is written last. It is kept if the record
is of the same text and its files have the bytes that were written.
"""

import concurrent.futures
import hashlib
import itertools
import json
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypedDict

from jaxlm.data.storage.token_cache import StoredColumn, encode_texts, update_digest, write_columns
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.errors import UserError
from jaxlm.filesystem import lock_folder, write_atomic
from jaxlm.json_files import read_json

SHARD_INDEX = "index.json"
SHARD_VERSION = 2
REBUILD_HINT = "Repeat the `jaxlm prepare` command that made it: it keeps the shards that are whole."
SHARD_BYTES = 64 << 20


class ShardIndex(TypedDict):
    """The content of `index.json`."""

    version: int
    source: str
    tokenizer: str
    sums: dict[str, int]
    shards: list[dict]


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
        index = read_json(file, ShardIndex, "the index cannot be used")
        if index["version"] == SHARD_VERSION:
            records = [ShardRecord.from_json(entry) for entry in index["shards"]]
            if not records or index["sums"] != total_counts(records):
                raise ValueError("its sums are not those of its shards")
            return records, index["tokenizer"]
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}). {REBUILD_HINT}") from error
    raise UserError(f"{file} has version {index['version']}, expected {SHARD_VERSION}. {REBUILD_HINT}")


def total_counts(records: list[ShardRecord]) -> dict[str, int]:
    """Documents, tokens, unknown tokens and bytes of all shards."""
    fields = {"documents": "rows", "tokens": "ids", "unknown": "unknown", "bytes": "bytes"}
    return {name: sum(getattr(record, field) for record in records) for name, field in fields.items()}


@dataclass(frozen=True)
class ShardInput:
    """The documents of one shard, and the digest by which it is recognized."""

    name: str
    texts: list[str]
    digest: str
    bytes: int


def build_shards(
    documents: Iterable[str],
    folder: Path,
    tokenizer: Tokenizer,
    source: str = "",
    processes: int = 1,
    shard_bytes: int = SHARD_BYTES,
    on_shard: Callable[[ShardRecord, bool], None] = lambda record, kept: None,
) -> dict[str, Any]:
    """Make the shards in `folder`. Returns the totals of index.json, and the numbers of "shards" and "kept".

    `on_shard(record, kept)` is called for each shard in order. Raises UserError without a document, if the
    folder holds shards of another tokenizer or source, or if another process works in it.
    """
    with lock_folder(folder):
        open_or_create_folder(folder, tokenizer, source)
        records, num_kept = [], 0
        for record, kept in _iter_records(split_into_shards(documents, shard_bytes), folder, tokenizer, processes):
            records.append(record)
            num_kept += kept
            on_shard(record, kept)
        if not records:
            raise UserError(f"{source or 'the corpus'} has no document: there is nothing to prepare")
        totals: dict[str, Any] = total_counts(records)
        index = {"version": SHARD_VERSION, "source": source, "tokenizer": tokenizer.fingerprint, "sums": totals}
        write_atomic(
            folder / SHARD_INDEX, json.dumps(index | {"shards": [vars(record) for record in records]}, indent=1)
        )
        names = {record.name for record in records}
        for file in folder.glob("[0-9]*"):  # of another corpus, or of other sizes of shards
            if file.name.partition(".")[0] not in names:
                file.unlink()
    return totals | {"shards": len(records), "kept": num_kept}


def open_or_create_folder(folder: Path, tokenizer: Tokenizer, source: str) -> None:
    """Save the tokenizer in the folder; remove the unfinished files of a killed run."""
    try:
        old_source = read_json(folder / SHARD_INDEX, ShardIndex)["source"]
    except UserError:  # there is no index, or it is made again
        old_source = source
    if old_source != source:
        raise UserError(
            f"{folder} holds shards of {old_source}, not of {source}: choose another --out, or remove that folder"
        )
    path = folder / "tokenizer"
    if not path.is_dir():
        tokenizer.save(path)
    elif load_tokenizer(path).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{folder} holds shards of another tokenizer ({load_tokenizer(path)!r}; expected {tokenizer!r}): choose "
            "another --out, or remove that folder"
        )
    for part in folder.glob(".*.part"):
        part.unlink()


def split_into_shards(documents: Iterable[str], shard_bytes: int) -> Iterator[ShardInput]:
    """The documents in order; a shard ends with the document that brings it to `shard_bytes`."""
    number, texts, size, digest = 0, [], 0, hashlib.blake2b(digest_size=16)
    for text in documents:
        size += update_digest(digest, text)
        texts.append(text)
        if size >= shard_bytes:
            yield ShardInput(f"{number:05}", texts, digest.hexdigest(), size)
            number, texts, size, digest = number + 1, [], 0, hashlib.blake2b(digest_size=16)
    if texts:
        yield ShardInput(f"{number:05}", texts, digest.hexdigest(), size)


def _iter_records(
    shards: Iterator[ShardInput], folder: Path, tokenizer: Tokenizer, processes: int
) -> Iterator[tuple[ShardRecord, bool]]:
    """The record of every shard in order, and whether it was kept."""
    checked = ((shard, reusable_record(shard, folder, tokenizer)) for shard in shards)
    here = partial(write_shard, folder=folder, tokenizer=tokenizer)
    return map_in_order(here if processes == 1 else _write_in_worker, checked, processes, str(folder))


def map_in_order(
    function: Callable[[Any], Any], items: Iterable[tuple[Any, Any]], processes: int, folder: str = ""
) -> Iterator[tuple[Any, bool]]:
    """(result, True) of every (item, result that exists), and (function(item), False) of every (item, None), in order.

    `processes` processes call the function, this one if there is one; at most `processes + 2` items are in memory.
    `folder` has a tokenizer for `_worker_state`. Raises UserError if one of them is killed.
    """
    if processes == 1:
        yield from ((function(item), False) if result is None else (result, True) for item, result in items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _init_worker, (folder,)) as pool:
        pending: deque[tuple[Future | None, Any]] = deque()
        try:
            for item, result in items:
                pending.append((pool.submit(function, item) if result is None else None, result))
                while len(pending) > processes + 1:
                    yield _resolve(*pending.popleft())
            yield from itertools.starmap(_resolve, pending)
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                "a process that made shards was killed, perhaps for want of memory: repeat the command with fewer "
                "--num-workers or a smaller --shard-mb; finished shards are kept"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _resolve(future: "Future | None", result: Any) -> tuple[Any, bool]:
    return (result, True) if future is None else (future.result(), False)


def reusable_record(shard: ShardInput, folder: Path, tokenizer: Tokenizer) -> ShardRecord | None:
    """The record of a shard that exists, undamaged and of this text. Without one the index is outdated and removed."""
    try:
        entry = read_json(folder / f"{shard.name}.json")
        record = ShardRecord.from_json(entry)
        same = record.text_digest == shard.digest and entry["tokenizer"] == tokenizer.fingerprint
        if same and record.is_intact(folder):
            return record
    except (UserError, OSError, ValueError, KeyError, TypeError):
        pass
    (folder / SHARD_INDEX).unlink(missing_ok=True)
    return None


def write_shard(shard: ShardInput, folder: Path, tokenizer: Tokenizer) -> ShardRecord:
    """Encode the documents and write their files, then their record."""
    column = encode_texts(shard.texts, tokenizer)
    (stored,) = write_columns(folder, [{shard.name: column}])
    unknown = int(tokenizer.special.is_unknown(column.flat).sum())
    record = ShardRecord(**vars(stored), unknown=unknown, bytes=shard.bytes, text_digest=shard.digest)
    entry = asdict(record) | {"tokenizer": tokenizer.fingerprint}
    write_atomic(folder / f"{record.name}.json", json.dumps(entry))
    return record


_worker_state: list[tuple[Path, Tokenizer]] = []
"""Of a process that makes shards: the folder, and the tokenizer, loaded once."""


def _init_worker(folder: str) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if folder:
        _worker_state.append((Path(folder), load_tokenizer(Path(folder) / "tokenizer")))


def _exit_with_parent() -> None:
    """End with the process that started this one, however it ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this process was started by it
    wait([parent.sentinel])
    os._exit(1)


def _write_in_worker(shard: ShardInput) -> ShardRecord:
    return write_shard(shard, *_worker_state[0])
