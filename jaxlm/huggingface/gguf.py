"""The GGUF file format: metadata and quantized arrays in one file, mapped into memory and read array by array.

header    "GGUF", the version (uint32), the numbers of arrays and of metadata entries (uint64); all is little-endian
metadata  name, type, value; a string is its length (uint64) and its UTF-8, a list its type, its length and its values
arrays    name, number of dimensions, sizes (the last axis first), type, and offset from the beginning of the data
data      the arrays; it and each of them begin at a multiple of `general.alignment` (32 by default)

A quantized array is a row of blocks, and a block holds small integers q and their scale: d q, d (q - 8) or d q + m.
Blocks of type K hold 256 values with a 6-bit or 8-bit scale for each 32 or 16 of them. Shape letters here: N blocks,
X bytes, S scales of a block, V values of a block.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxlm.errors import UserError
from jaxlm.json_files import MAX_JSON_BYTES

MAGIC, VERSIONS = b"GGUF", (2, 3)

STRING, LIST, FLOAT32, BOOL = 8, 9, 6, 7
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", FLOAT32: "<f4", BOOL: "?", 10: "<u8",
           11: "<i8", 12: "<f8"}  # fmt: skip
"""Type of a metadata value -> the type of the number. The others are strings and lists."""

MAX_ENTRIES, MAX_ITEMS, MAX_HEADER_BYTES = 1 << 17, 1 << 23, 1 << 28
"""Bounds: arrays and metadata entries, items of a list, bytes before the data."""

MAX_AXES = 4


@dataclass(frozen=True)
class BlockType:
    """A type of arrays: values and bytes of a block, and the function from bytes_NX to float32 values_NV."""

    name: str
    values: int
    num_bytes: int
    dequantize: Callable[[np.ndarray], np.ndarray]


def _half(block_NX: np.ndarray, at: int) -> np.ndarray:
    return np.ascontiguousarray(block_NX[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(byte_NX: np.ndarray) -> np.ndarray:
    return np.concatenate([byte_NX & 15, byte_NX >> 4], axis=-1)


def _q4_k(block_NX: np.ndarray) -> np.ndarray:
    packed = block_NX[:, 4:16]  # 8 scales and 8 minima of 6 bits: 4 + 4 whole ones, whose upper bits belong to others
    low, high, upper = packed[:, :8] & 63, packed[:, 8:], packed[:, :8] >> 6 << 4
    scale_NS = np.concatenate([low[:, :4], (high & 15) | upper[:, :4]], axis=1)
    minimum_NS = np.concatenate([low[:, 4:], (high >> 4) | upper[:, 4:]], axis=1)
    integer_NSV = _nibbles(block_NX[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    value_NSV = (_half(block_NX, 0) * scale_NS)[:, :, None] * integer_NSV
    return (value_NSV - (_half(block_NX, 2) * minimum_NS)[:, :, None]).reshape(-1, 256)


def _q6_k(block_NX: np.ndarray) -> np.ndarray:
    low = _nibbles(block_NX[:, :128].reshape(-1, 2, 64))
    upper = block_NX[:, 128:192].reshape(-1, 2, 32)
    upper = np.concatenate([upper >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    integer_NSV = ((low | upper << 4).view(np.int8) - np.int8(32)).reshape(-1, 16, 16)
    scale_NS = _half(block_NX, 208) * block_NX[:, 192:208].view(np.int8)
    return (scale_NS[:, :, None] * integer_NSV).reshape(-1, 256)


BLOCK_TYPES = {
    0: BlockType("F32", 1, 4, lambda block_NX: block_NX.view("<f4")),
    1: BlockType("F16", 1, 2, lambda block_NX: block_NX.view("<f2").astype(np.float32)),
    2: BlockType(
        "Q4_0", 32, 18, lambda block_NX: _half(block_NX, 0) * (_nibbles(block_NX[:, 2:]).view("i1") - np.int8(8))
    ),
    3: BlockType("Q4_1", 32, 20, lambda block_NX: _half(block_NX, 0) * _nibbles(block_NX[:, 4:]) + _half(block_NX, 2)),
    8: BlockType("Q8_0", 32, 34, lambda block_NX: _half(block_NX, 0) * block_NX[:, 2:].view(np.int8)),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
    30: BlockType("BF16", 1, 2, lambda block_NX: block_NX.view(ml_dtypes.bfloat16).astype(np.float32)),
}
"""Number of a type in the file -> the type."""

OTHER_TYPES = {6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K"}


@dataclass(frozen=True)
class GGUFArray:
    """An array of a file; `np.asarray` reads it as float32.

    Attributes:
      rotary_heads: if not 0, the rows belong to that number of heads, and each head interleaves the two halves of the
        rotary pairs; `np.asarray` puts one half after the other, as Transformers has them.
    """

    byte_X: np.ndarray
    block_type: BlockType
    shape: tuple[int, ...]
    rotary_heads: int = 0
    dtype = np.dtype(np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self.block_type.dequantize(self.byte_X.reshape(-1, self.block_type.num_bytes)).reshape(self.shape)
        if self.rotary_heads:
            pairs = values.reshape(self.rotary_heads, -1, 2, *self.shape[1:])
            values = pairs.swapaxes(1, 2).reshape(self.shape)
        return values if dtype is None else values.astype(dtype, copy=False)


@dataclass(frozen=True)
class GGUFFile:
    """The metadata and the arrays of a file, by name."""

    metadata: dict[str, Any]
    arrays: dict[str, GGUFArray]


def read_gguf(path: Path) -> GGUFFile:
    """Read the metadata and map the arrays. Raises UserError if sizes, offsets, counts or types do not fit the file."""
    reader = _Reader(path)
    if bytes(reader.take(4)) != MAGIC:
        raise reader.error("it does not begin with GGUF", "name a GGUF file, or a folder that `save_pretrained` wrote")
    version = reader.number("<u4")
    if version not in VERSIONS:
        expected = " or ".join(map(str, VERSIONS))
        raise reader.error(f"it has version {version}, expected {expected}, little-endian", "convert the model again")
    num_arrays, num_entries = reader.number("<u8"), reader.number("<u8")
    if max(num_arrays, num_entries) > MAX_ENTRIES:
        raise reader.error(f"it names {num_arrays:,} arrays and {num_entries:,} entries, at most {MAX_ENTRIES:,}")
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
        name = reader.text()
        if name in metadata:
            raise reader.error(f"the entry {name[:60]!r} occurs twice")
        metadata[name] = reader.value(reader.number("<u4"), name)
    entries = [_array_entry(reader) for _ in range(num_arrays)]
    return GGUFFile(metadata, _map_arrays(reader, entries, metadata.get("general.alignment", 32)))


class _Reader:
    """A cursor over the bytes of a file; all of its errors name the file."""

    def __init__(self, path: Path):
        if not path.is_file() or not path.stat().st_size:
            raise UserError(f"{path} is empty or not a regular file: fetch it again")
        self.path, self.at = path, 0
        self.byte_X = np.memmap(path, np.uint8, "r")
        self.size, self.view = len(self.byte_X), self.byte_X.data

    def error(self, problem: str, cure: str = "fetch the file again") -> UserError:
        """The error of a file that is damaged or not supported."""
        return UserError(f"{self.path}: {problem}: {cure}")

    def take(self, num_bytes: int) -> memoryview:
        """The next bytes. Raises UserError if the file has fewer."""
        begin, self.at = self.at, self.at + num_bytes
        if self.at > min(self.size, MAX_HEADER_BYTES):
            raise self.error(f"{num_bytes:,} bytes from byte {begin:,} on exceed the file of {self.size:,} bytes, or "
                             f"the {MAX_HEADER_BYTES:,} bytes of a header")  # fmt: skip
        return self.view[begin : self.at]

    def number(self, dtype: str) -> int:
        """The next number."""
        return np.frombuffer(self.take(np.dtype(dtype).itemsize), dtype)[0].item()

    def text(self) -> str:
        """The next string."""
        (size,) = struct.unpack("<Q", self.take(8))
        if size > MAX_JSON_BYTES:
            raise self.error(f"a string of {size:,} bytes before byte {self.at:,}, at most {MAX_JSON_BYTES:,}")
        try:
            return str(self.take(size), "utf-8")
        except UnicodeDecodeError:
            raise self.error(f"the string before byte {self.at:,} is not UTF-8") from None

    def value(self, kind: int, name: str, count: int | None = None) -> Any:
        """The next value of a type, or the next `count` values as a list."""
        if kind == LIST and count is None:
            kind, count = self.number("<u4"), self.number("<u8")
            if count > MAX_ITEMS:
                raise self.error(f"the entry {name[:60]!r} has {count:,} items, at most {MAX_ITEMS:,}")
            return self.value(kind, name, count)
        if kind == STRING:
            return self.text() if count is None else [self.text() for _ in range(count)]
        if kind not in NUMBERS:
            raise self.error(f"the entry {name[:60]!r} has the type {kind}, expected a number, a string or a list")
        number_I = np.frombuffer(self.take((1 if count is None else count) * np.dtype(NUMBERS[kind]).itemsize),
                                 "<u1" if kind == BOOL else NUMBERS[kind])  # fmt: skip
        if kind == BOOL and number_I.max(initial=0) > 1:
            raise self.error(f"the entry {name[:60]!r} has a truth value {number_I.max()}")
        if kind == FLOAT32 and count is None:
            return float(str(number_I[0]))  # 1e-05 and not 9.99999974e-06
        values = number_I.astype(bool).tolist() if kind == BOOL else number_I.tolist()
        return values[0] if count is None else values


def _array_entry(reader: _Reader) -> tuple[str, BlockType, tuple[int, ...], int]:
    """Name, type, shape and offset of an array."""
    name, axes = reader.text(), reader.number("<u4")
    if not 1 <= axes <= MAX_AXES:
        raise reader.error(f"the array {name[:60]!r} has {axes} axes, expected 1 to {MAX_AXES}")
    shape = tuple(reader.number("<u8") for _ in range(axes))[::-1]
    kind, offset = reader.number("<u4"), reader.number("<u8")
    if kind not in BLOCK_TYPES:
        known = ", ".join(block_type.name for block_type in BLOCK_TYPES.values())
        raise reader.error(
            f"the array {name[:60]!r} has the type {OTHER_TYPES.get(kind, kind)}, expected one of {known}",
            "fetch the model in one of them, as in its files named Q8_0 or Q4_K_M",
        )
    block_type = BLOCK_TYPES[kind]
    if min(shape) < 1 or shape[-1] % block_type.values:
        raise reader.error(f"the array {name[:60]!r} has the shape {shape}, expected sizes of 1 or more, and rows of "
                           f"whole {block_type.name} blocks ({block_type.values} values)")  # fmt: skip
    return name, block_type, shape, offset


def _map_arrays(reader: _Reader, entries: list[tuple], alignment: Any) -> dict[str, GGUFArray]:
    """The arrays in the bytes after the header. Raises UserError if they overlap, leave gaps or exceed the file."""
    if type(alignment) is not int or not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise reader.error(f"general.alignment is {alignment!r:.40}, expected a power of 2 up to 65,536")
    start = -(-reader.at // alignment) * alignment
    arrays, expected = {}, 0
    for name, block_type, shape, offset in sorted(entries, key=lambda entry: entry[3]):
        size = math.prod(shape) // block_type.values * block_type.num_bytes
        if offset != expected or name in arrays:
            raise reader.error(f"the array {name[:60]!r} begins at byte {offset:,} of the data, expected {expected:,} "
                               "and each name once")  # fmt: skip
        expected = -(-(offset + size) // alignment) * alignment
        if start + offset + size > reader.size:
            raise reader.error(f"the array {name[:60]!r} ends at byte {start + offset + size:,}, and the file has "
                               f"{reader.size:,}")  # fmt: skip
        arrays[name] = GGUFArray(reader.byte_X[start + offset : start + offset + size], block_type, shape)
    if reader.size > start + expected:
        raise reader.error(f"it has {reader.size:,} bytes, and its last array ends at {start + expected:,}")
    return arrays
