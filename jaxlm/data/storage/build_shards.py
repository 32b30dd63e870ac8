"""Documents into shards of ids, by several processes. A run that was killed goes on: what is whole is kept.

The documents are cut into shards by their bytes alone, so that neither the number of processes nor an interruption
changes a byte of what is written. A shard counts as done when its record is there, which is written last; it is kept
if its text is that of its record and its files have the bytes that were written.
"""

import concurrent.futures
import hashlib
import io
import json
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.storage.shards import (
    SHARD_INDEX,
    ShardRecord,
    id_dtype,
    parse_shard_record,
    read_source_name,
    write_index,
    write_with_checksum,
)
from jaxlm.data.tokenizers.base import TOKENIZE_BATCH_SIZE, UNK, Tokenizer
from jaxlm.data.tokenizers.loading import load_tokenizer
from jaxlm.errors import UserError
from jaxlm.filesystem import lock_folder

SHARD_BYTES = 64 << 20


@dataclass(frozen=True)
class ShardInput:
    """The documents of one shard, and the digest by which it is known again."""

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
    """Make the shards in `folder`; the sums over all of them, as index.json has them, and "shards" and "kept".

    `on_shard(record, kept)` is told of each shard in its turn. Raises UserError where there is no document, where the
    folder holds shards of another tokenizer or source, and where another process is at work in it.
    """
    with lock_folder(folder):
        _open_or_create_folder(folder, tokenizer, source)
        records, kept = [], 0
        for record, was_there in _iter_records(split_into_shards(documents, shard_bytes), folder, tokenizer, processes):
            records.append(record)
            kept += was_there
            on_shard(record, was_there)
        if not records:
            raise UserError(f"{source or 'the corpus'} has no document: there is nothing to prepare")
        found = write_index(folder, records, tokenizer, source)
        names = {record.name for record in records}
        for file in folder.glob("[0-9]*"):  # of another corpus, or of other sizes of shards
            if file.name.partition(".")[0] not in names:
                file.unlink()
    return found | {"shards": len(records), "kept": kept}


def _open_or_create_folder(folder: Path, tokenizer: Tokenizer, source: str) -> None:
    """Put the tokenizer into the folder; what a killed run left half written goes."""
    if (there := read_source_name(folder)) not in (None, source):
        raise UserError(
            f"{folder} holds shards of {there}, not of {source}: choose another --out, or remove that folder"
        )
    place = folder / "tokenizer"
    if place.is_dir() and load_tokenizer(place).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{folder} holds shards of another tokenizer ({load_tokenizer(place)!r}; asked for {tokenizer!r}): choose "
            "another --out, or remove that folder"
        )
    tokenizer.save(place)
    for part in folder.glob(".*.part"):
        part.unlink()


def split_into_shards(documents: Iterable[str], shard_bytes: int) -> Iterator[ShardInput]:
    """The documents in order, each portion closed by the document that brings it to `shard_bytes`."""
    number, texts, size, digest = 0, [], 0, hashlib.blake2b(digest_size=16)
    for text in documents:
        content = text.encode(errors="replace")
        digest.update(len(content).to_bytes(8, "little") + content)
        texts.append(text)
        size += len(content)
        if size >= shard_bytes:
            yield ShardInput(f"{number:05}", texts, digest.hexdigest(), size)
            number, texts, size, digest = number + 1, [], 0, hashlib.blake2b(digest_size=16)
    if texts:
        yield ShardInput(f"{number:05}", texts, digest.hexdigest(), size)


def _iter_records(
    shards: Iterator[ShardInput], folder: Path, tokenizer: Tokenizer, processes: int
) -> Iterator[tuple[ShardRecord, bool]]:
    """The record of every portion in order, and whether it was there already."""
    sorted_out = ((portion, _reusable_record(portion, folder, tokenizer)) for portion in shards)
    if processes == 1:
        for portion, kept in sorted_out:
            yield (kept, True) if kept else (write_shard(portion, folder, tokenizer), False)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _init_worker, (str(folder),)) as pool:
        waiting: deque[tuple[Future | ShardRecord, bool]] = deque()
        try:
            for portion, kept in sorted_out:
                waiting.append((kept, True) if kept else (pool.submit(_write_in_worker, portion), False))
                while len(waiting) > processes + 1:
                    yield _resolve(*waiting.popleft())
            while waiting:
                yield _resolve(*waiting.popleft())
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                "a process that made shards was killed, perhaps for want of memory: give the command again with fewer "
                "--num-workers or a smaller --shard-mb; finished shards are kept"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _resolve(future_or_record: "Future | ShardRecord", kept: bool) -> tuple[ShardRecord, bool]:
    return (future_or_record if isinstance(future_or_record, ShardRecord) else future_or_record.result()), kept


def _reusable_record(shard: ShardInput, folder: Path, tokenizer: Tokenizer) -> ShardRecord | None:
    """The record of a shard that is there, whole, and of this text; without one, the index is of yesterday."""
    record = _read_valid_record(shard, folder, tokenizer)
    if record is None:
        (folder / SHARD_INDEX).unlink(missing_ok=True)
    return record


def _read_valid_record(shard: ShardInput, folder: Path, tokenizer: Tokenizer) -> ShardRecord | None:
    try:
        entry = json.loads((folder / f"{shard.name}.json").read_text(encoding="utf-8"))
        record = parse_shard_record(entry)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = record.text_digest == shard.digest and entry.get("tokenizer") == tokenizer.fingerprint
    return record if same and record.is_intact(folder) else None


def write_shard(shard: ShardInput, folder: Path, tokenizer: Tokenizer) -> ShardRecord:
    """Encode and write; the record comes last."""
    dtype, blocks, sizes, unknown = id_dtype(tokenizer), [], [], 0
    for first in range(0, len(shard.texts), TOKENIZE_BATCH_SIZE):
        rows = tokenizer.encode(shard.texts[first : first + TOKENIZE_BATCH_SIZE])
        flat = np.concatenate(rows)
        unknown += int((flat == UNK).sum())
        blocks.append(flat.astype(dtype))
        sizes += [len(row) for row in rows]
    ends, ids = np.cumsum(sizes, dtype=np.int64), np.concatenate(blocks)
    record = ShardRecord(shard.name, len(ends), len(ids), unknown, shard.bytes, shard.digest, (0, 0))
    file, ends_file = record.files(folder)
    packed = io.BytesIO()
    np.save(packed, ends)
    record = replace(
        record, crc32=(write_with_checksum(file, ids.tobytes()), write_with_checksum(ends_file, packed.getvalue()))
    )
    entry = asdict(record) | {"tokenizer": tokenizer.fingerprint}
    write_with_checksum(folder / f"{record.name}.json", json.dumps(entry).encode())
    return record


_worker_state: list[tuple[Path, Tokenizer]] = []
"""Of a process that makes shards: the folder, and the tokenizer, loaded once."""


def _init_worker(folder: str) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker_state.append((Path(folder), load_tokenizer(Path(folder) / "tokenizer")))


def _exit_with_parent() -> None:
    """End with the process that began this one, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this one was begun by it
    wait([parent.sentinel])
    os._exit(1)


def _write_in_worker(shard: ShardInput) -> ShardRecord:
    return write_shard(shard, *_worker_state[0])
