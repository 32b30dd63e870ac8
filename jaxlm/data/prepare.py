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

from jaxlm.data.ragged import BLOCK
from jaxlm.data.shards import INDEX, Record, id_type, read_record, source_of, write_index, write_whole
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.data.vocabulary import UNK, Tokenizer
from jaxlm.disk import alone
from jaxlm.errors import UserError

SHARD_BYTES = 64 << 20


@dataclass(frozen=True)
class Portion:
    """The documents of one shard, and the digest by which it is known again."""

    name: str
    texts: list[str]
    digest: str
    bytes: int


def prepare(
    documents: Iterable[str],
    folder: Path,
    tokenizer: Tokenizer,
    source: str = "",
    processes: int = 1,
    shard_bytes: int = SHARD_BYTES,
    done: Callable[[Record, bool], None] = lambda record, kept: None,
) -> dict[str, Any]:
    """Make the shards in `folder`; the sums over all of them, as index.json has them, and "shards" and "kept".

    `done(record, kept)` is told of each shard in its turn. Raises UserError where there is no document, where the
    folder holds shards of another tokenizer or source, and where another process is at work in it.
    """
    with alone(folder):
        _claim(folder, tokenizer, source)
        records, kept = [], 0
        for record, was_there in _made(portions(documents, shard_bytes), folder, tokenizer, processes):
            records.append(record)
            kept += was_there
            done(record, was_there)
        if not records:
            raise UserError(f"{source or 'the corpus'} has no document: there is nothing to prepare")
        found = write_index(folder, records, tokenizer, source)
        names = {record.name for record in records}
        for file in folder.glob("[0-9]*"):  # of another corpus, or of other sizes of shards
            if file.name.partition(".")[0] not in names:
                file.unlink()
    return found | {"shards": len(records), "kept": kept}


def _claim(folder: Path, tokenizer: Tokenizer, source: str) -> None:
    """Put the tokenizer into the folder; what a killed run left half written goes."""
    if (there := source_of(folder)) not in (None, source):
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


def portions(documents: Iterable[str], shard_bytes: int) -> Iterator[Portion]:
    """The documents in order, each portion closed by the document that brings it to `shard_bytes`."""
    number, texts, size, digest = 0, [], 0, hashlib.blake2b(digest_size=16)
    for text in documents:
        content = text.encode(errors="replace")
        digest.update(len(content).to_bytes(8, "little") + content)
        texts.append(text)
        size += len(content)
        if size >= shard_bytes:
            yield Portion(f"{number:05}", texts, digest.hexdigest(), size)
            number, texts, size, digest = number + 1, [], 0, hashlib.blake2b(digest_size=16)
    if texts:
        yield Portion(f"{number:05}", texts, digest.hexdigest(), size)


def _made(some: Iterator[Portion], folder: Path, tokenizer: Tokenizer, processes: int) -> Iterator[tuple[Record, bool]]:
    """The record of every portion in order, and whether it was there already."""
    sorted_out = ((portion, _kept(portion, folder, tokenizer)) for portion in some)
    if processes == 1:
        for portion, kept in sorted_out:
            yield (kept, True) if kept else (write_shard(portion, folder, tokenizer), False)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin, (str(folder),)) as pool:
        waiting: deque[tuple[Future | Record, bool]] = deque()
        try:
            for portion, kept in sorted_out:
                waiting.append((kept, True) if kept else (pool.submit(_write, portion), False))
                while len(waiting) > processes + 1:
                    yield _result(*waiting.popleft())
            while waiting:
                yield _result(*waiting.popleft())
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                "a process that made shards was killed, perhaps for want of memory: give the command again with fewer "
                "--processes or a smaller --shard-mb; finished shards are kept"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _result(found: "Future | Record", kept: bool) -> tuple[Record, bool]:
    return (found if isinstance(found, Record) else found.result()), kept


def _kept(portion: Portion, folder: Path, tokenizer: Tokenizer) -> Record | None:
    """The record of a shard that is there, whole, and of this text; without one, the index is of yesterday."""
    record = _done(portion, folder, tokenizer)
    if record is None:
        (folder / INDEX).unlink(missing_ok=True)
    return record


def _done(portion: Portion, folder: Path, tokenizer: Tokenizer) -> Record | None:
    try:
        entry = json.loads((folder / f"{portion.name}.json").read_text(encoding="utf-8"))
        record = read_record(entry)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = record.text == portion.digest and entry.get("tokenizer") == tokenizer.fingerprint
    return record if same and record.whole(folder) else None


def write_shard(portion: Portion, folder: Path, tokenizer: Tokenizer) -> Record:
    """Encode and write; the record comes last."""
    dtype, blocks, sizes, unknown = id_type(tokenizer), [], [], 0
    for first in range(0, len(portion.texts), BLOCK):
        rows = tokenizer.encode(portion.texts[first : first + BLOCK])
        flat = np.concatenate(rows)
        unknown += int((flat == UNK).sum())
        blocks.append(flat.astype(dtype))
        sizes += [len(row) for row in rows]
    ends, ids = np.cumsum(sizes, dtype=np.int64), np.concatenate(blocks)
    record = Record(portion.name, len(ends), len(ids), unknown, portion.bytes, portion.digest, (0, 0))
    file, ends_file = record.files(folder)
    packed = io.BytesIO()
    np.save(packed, ends)
    record = replace(record, check=(write_whole(file, ids.tobytes()), write_whole(ends_file, packed.getvalue())))
    entry = asdict(record) | {"tokenizer": tokenizer.fingerprint}
    write_whole(folder / f"{record.name}.json", json.dumps(entry).encode())
    return record


_place: list[tuple[Path, Tokenizer]] = []
"""Of a process that makes shards: the folder, and the tokenizer, loaded once."""


def _begin(folder: str) -> None:
    threading.Thread(target=_follow, daemon=True).start()
    _place.append((Path(folder), load_tokenizer(Path(folder) / "tokenizer")))


def _follow() -> None:
    """End with the process that began this one, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this one was begun by it
    wait([parent.sentinel])
    os._exit(1)


def _write(portion: Portion) -> Record:
    return write_shard(portion, *_place[0])
