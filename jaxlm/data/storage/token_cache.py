"""Token ids of sentence pairs, encoded once and kept on disk."""

import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.ragged import Ragged, _memory_map
from jaxlm.data.sources.base import Pair
from jaxlm.data.tokenizers.base import TOKENIZE_BATCH_SIZE, Tokenizer
from jaxlm.errors import UserError

PAIR_COLUMNS = ("source", "target")

COLUMNS_FILE = "columns.json"


def encode_pairs(
    pairs: Iterable[Pair],
    tokenizer: Tokenizer,
    folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Ragged]:
    """Columns "source" and "target": the ids of every pair, without special ids, in the order of `pairs`.

    With a `folder` the ids are kept there and memory-mapped. A folder that was made from the same text by the same
    tokenizer is used as it is; one that a killed run left unfinished is never seen, as the folder appears at the end
    by a rename. `progress` is called with the number of pairs done. Raises UserError where there is no pair.
    """
    if folder is None:
        return _encode_columns(pairs, tokenizer, None, progress)[0]
    folder = Path(folder)
    stored = _read_columns_file(folder)
    if stored is not None and stored["fingerprint"] == _fingerprint(pairs, tokenizer):
        return _load_columns(folder, stored)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        columns, fingerprint = _encode_columns(pairs, tokenizer, partial, progress)
        index: dict[str, Any] = {"fingerprint": fingerprint, "dtype": _id_dtype(tokenizer).str}
        index |= {name: {"rows": len(column), "ids": int(column.offsets[-1])} for name, column in columns.items()}
        (partial / COLUMNS_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")
        _publish(partial, folder, fingerprint)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _load_columns(folder, index)


def _publish(partial: Path, folder: Path, fingerprint: str) -> None:
    """Move the finished folder to its place. Another process that was first with the same content is right too."""
    if folder.exists() and (_read_columns_file(folder) or {}).get("fingerprint") != fingerprint:
        old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.old")
        os.replace(folder, old)
        shutil.rmtree(old, ignore_errors=True)
    try:
        os.replace(partial, folder)
    except OSError:
        if (_read_columns_file(folder) or {}).get("fingerprint") != fingerprint:
            raise


def _encode_columns(
    pairs: Iterable[Pair],
    tokenizer: Tokenizer,
    folder: Path | None,
    progress: Callable[[int], None] | None,
) -> tuple[dict[str, Ragged], str]:
    dtype, digest, done = _id_dtype(tokenizer), _new_digest(tokenizer), 0
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in PAIR_COLUMNS}
    lengths: dict[str, list[np.ndarray]] = {name: [np.zeros(1, np.int64)] for name in PAIR_COLUMNS}
    files = {name: (folder / f"{name}.bin").open("wb") for name in PAIR_COLUMNS} if folder else {}
    try:
        for block in _batched(pairs):
            _update_digest(digest, block)
            for side, name in enumerate(PAIR_COLUMNS):
                rows = tokenizer.encode([pair[side] for pair in block])
                lengths[name].append(np.array([len(row) for row in rows], np.int64))
                flat = np.concatenate(rows).astype(dtype)
                files[name].write(flat.tobytes()) if folder else blocks[name].append(flat)
            done += len(block)
            if progress is not None:
                progress(done)
    finally:
        for file in files.values():
            file.close()
    if not done:
        raise UserError(
            f"the data set is empty: {_describe(pairs)} gave no pair; check its path, its columns and its filter"
        )
    columns = {}
    for name in PAIR_COLUMNS:
        offsets = np.cumsum(np.concatenate(lengths[name]))
        columns[name] = Ragged(np.concatenate(blocks[name]) if not folder else np.zeros(0, dtype), offsets)
        if folder:
            np.save(folder / f"{name}.offsets.npy", offsets)
    return columns, digest.hexdigest()


def _batched(pairs: Iterable[Pair]) -> Iterable[list[Pair]]:
    stream = iter(pairs)
    while block := list(itertools.islice(stream, TOKENIZE_BATCH_SIZE)):
        yield block


def _id_dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<i4")


def _new_digest(tokenizer: Tokenizer) -> "hashlib._Hash":
    return hashlib.sha256(f"ragged 1 {tokenizer.fingerprint}\n".encode())


def _update_digest(digest: "hashlib._Hash", block: list[Pair]) -> None:
    text = "".join(f"{len(source)} {len(target)} {source}{target}" for source, target in block)
    digest.update(text.encode("utf-8", "surrogatepass"))


def _fingerprint(pairs: Iterable[Pair], tokenizer: Tokenizer) -> str:
    """Of the text itself, not of its file names: reading is over ten times quicker than encoding."""
    digest = _new_digest(tokenizer)
    for block in _batched(pairs):
        _update_digest(digest, block)
    return digest.hexdigest()


def _describe(pairs: object) -> str:
    describe = getattr(pairs, "describe", None)
    return describe() if describe else type(pairs).__name__


def _read_columns_file(folder: Path) -> dict | None:
    """The index of a finished folder whose files have the sizes that it names, else None."""
    try:
        index = json.loads((folder / COLUMNS_FILE).read_text(encoding="utf-8"))
        width = np.dtype(index["dtype"]).itemsize
        for name in PAIR_COLUMNS:
            if (folder / f"{name}.bin").stat().st_size != index[name]["ids"] * width:
                return None
            if np.load(folder / f"{name}.offsets.npy", mmap_mode="r").shape != (index[name]["rows"] + 1,):
                return None
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    return index


def _load_columns(folder: Path, index: dict) -> dict[str, Ragged]:
    return {
        name: _memory_map(os.fspath(folder / f"{name}.bin"), index["dtype"], np.load(folder / f"{name}.offsets.npy"))
        for name in PAIR_COLUMNS
    }
