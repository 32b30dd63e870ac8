"""Rows of different lengths in one flat array: in memory, or on disk and memory-mapped. Text becomes ids once."""

import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.pairs import Pair
from jaxlm.data.parts import Parts
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.errors import UserError

BLOCK = 4096
"""Lines that the tokenizer gets at once: a call a line costs more than the encoding itself."""

COLUMNS = ("source", "target")
INDEX = "columns.json"


@dataclass(frozen=True, eq=False)
class Ragged:
    """Row i is `flat[offsets[i] : offsets[i + 1]]`; `offsets` has one entry more than there are rows.

    Ids that lie in several files are a `Parts`, which is read like an array.
    """

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | np.ndarray], dtype: np.dtype | type = np.int32) -> "Ragged":
        """The rows, joined in memory."""
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        flat = np.concatenate([np.asarray(row, dtype) for row in rows]) if rows else np.zeros(0, dtype)
        return cls(flat, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """The number of ids of every row, int64."""
        return np.diff(self.offsets)

    def pieces(self, longest: int) -> "Ragged":
        """The same ids, every row cut into pieces of `longest` and a last one of what is left."""
        count = np.maximum(-(-self.lengths // longest), 1)
        first = np.repeat(self.offsets[:-1], count) + longest * runs(np.zeros(len(count), np.int64), count)
        return Ragged(self.flat, np.append(first, self.offsets[-1]))

    def take(self, rows: np.ndarray, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The ids of `rows` one after the other, and how many each gave: at most its first `limit`."""
        first = self.offsets[rows]
        lengths = self.offsets[np.asarray(rows) + 1] - first
        if limit is not None:
            lengths = np.minimum(lengths, limit)
        return self.flat[runs(first, lengths)], lengths

    def __reduce__(self) -> tuple[Any, tuple]:
        """A memory-mapped store travels to a worker process as its file names, not as its content."""
        if isinstance(self.flat, np.memmap) and self.flat.filename is not None:
            where = os.fspath(self.flat.filename)
            return _map, (where, self.flat.dtype.str, self.offsets)
        flat: Any = self.flat
        flat = flat if isinstance(flat, Parts) else np.asarray(flat)
        return Ragged, (flat, np.asarray(self.offsets))


def runs(first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`first[0], first[0] + 1, ...` for `lengths[0]` numbers, then the same from `first[1]`, and so on."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(first - before, lengths) + np.arange(int(np.sum(lengths)))


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
        return _encode(pairs, tokenizer, None, progress)[0]
    folder = Path(folder)
    stored = _stored(folder)
    if stored is not None and stored["fingerprint"] == _fingerprint(pairs, tokenizer):
        return _load(folder, stored)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        columns, fingerprint = _encode(pairs, tokenizer, partial, progress)
        index: dict[str, Any] = {"fingerprint": fingerprint, "dtype": _dtype(tokenizer).str}
        index |= {name: {"rows": len(column), "ids": int(column.offsets[-1])} for name, column in columns.items()}
        (partial / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        _publish(partial, folder, fingerprint)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _load(folder, index)


def _publish(partial: Path, folder: Path, fingerprint: str) -> None:
    """Move the finished folder to its place. Another process that was first with the same content is right too."""
    if folder.exists() and (_stored(folder) or {}).get("fingerprint") != fingerprint:
        old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.old")
        os.replace(folder, old)
        shutil.rmtree(old, ignore_errors=True)
    try:
        os.replace(partial, folder)
    except OSError:
        if (_stored(folder) or {}).get("fingerprint") != fingerprint:
            raise


def _encode(
    pairs: Iterable[Pair],
    tokenizer: Tokenizer,
    folder: Path | None,
    progress: Callable[[int], None] | None,
) -> tuple[dict[str, Ragged], str]:
    dtype, digest, done = _dtype(tokenizer), _digest(tokenizer), 0
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    lengths: dict[str, list[np.ndarray]] = {name: [np.zeros(1, np.int64)] for name in COLUMNS}
    files = {name: (folder / f"{name}.bin").open("wb") for name in COLUMNS} if folder else {}
    try:
        for block in _blocks(pairs):
            _absorb(digest, block)
            for side, name in enumerate(COLUMNS):
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
            f"the data set is empty: {_name(pairs)} gave no pair; check its path, its columns and its filter"
        )
    columns = {}
    for name in COLUMNS:
        offsets = np.cumsum(np.concatenate(lengths[name]))
        columns[name] = Ragged(np.concatenate(blocks[name]) if not folder else np.zeros(0, dtype), offsets)
        if folder:
            np.save(folder / f"{name}.offsets.npy", offsets)
    return columns, digest.hexdigest()


def _blocks(pairs: Iterable[Pair]) -> Iterable[list[Pair]]:
    stream = iter(pairs)
    while block := list(itertools.islice(stream, BLOCK)):
        yield block


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.size <= 2**16 else "<i4")


def _digest(tokenizer: Tokenizer) -> "hashlib._Hash":
    return hashlib.sha256(f"ragged 1 {tokenizer.fingerprint}\n".encode())


def _absorb(digest: "hashlib._Hash", block: list[Pair]) -> None:
    text = "".join(f"{len(source)} {len(target)} {source}{target}" for source, target in block)
    digest.update(text.encode("utf-8", "surrogatepass"))


def _fingerprint(pairs: Iterable[Pair], tokenizer: Tokenizer) -> str:
    """Of the text itself, not of its file names: reading is over ten times quicker than encoding."""
    digest = _digest(tokenizer)
    for block in _blocks(pairs):
        _absorb(digest, block)
    return digest.hexdigest()


def _name(pairs: object) -> str:
    describe = getattr(pairs, "describe", None)
    return describe() if describe else type(pairs).__name__


def _stored(folder: Path) -> dict | None:
    """The index of a finished folder whose files have the sizes that it names, else None."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        width = np.dtype(index["dtype"]).itemsize
        for name in COLUMNS:
            if (folder / f"{name}.bin").stat().st_size != index[name]["ids"] * width:
                return None
            if np.load(folder / f"{name}.offsets.npy", mmap_mode="r").shape != (index[name]["rows"] + 1,):
                return None
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    return index


def _load(folder: Path, index: dict) -> dict[str, Ragged]:
    return {
        name: _map(os.fspath(folder / f"{name}.bin"), index["dtype"], np.load(folder / f"{name}.offsets.npy"))
        for name in COLUMNS
    }


def _map(where: str, dtype: str, offsets: np.ndarray) -> Ragged:
    # An empty file cannot be mapped.
    flat = np.memmap(where, dtype, "r") if offsets[-1] else np.zeros(0, dtype)
    return Ragged(flat, offsets)
