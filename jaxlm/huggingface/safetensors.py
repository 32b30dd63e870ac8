"""The safetensors file format: named arrays that are read without unpickling anything.

8 bytes   length n of the header, little-endian
n bytes   JSON: {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {...}}
rest      the arrays in row-major order, offsets counted from here, without gaps
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import ml_dtypes
import numpy as np

from jaxlm.errors import UserError
from jaxlm.filesystem import open_atomic
from jaxlm.json_files import check_type, parse_json

DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16,
    "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip

DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}

MAX_HEADER_BYTES = 100_000_000


def read_file(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, mapped into memory and not yet read.

    Raises UserError if the file is cut short, too long, or not of this format.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise UserError(
                f"{path} has {size} bytes, but its header says that it alone has {length}: the file is cut short or is "
                "no safetensors file; fetch it again"
            )
        raw = file.read(length)
    header = parse_json(raw, f"{path}: its header", dict[str, dict], cure="fetch the file again")
    header.pop("__metadata__", None)
    places = {name: _parse_entry(entry, f"{path}: {name}") for name, entry in header.items()}
    at = 0
    for begin, end in sorted(place[2:] for place in places.values()):
        if begin != at:
            raise UserError(f"{path}: its arrays overlap or leave gaps (byte {begin}, expected {at}): fetch it again")
        at = end
    if at != size - 8 - length:
        raise UserError(f"{path} holds {size - 8 - length} bytes of arrays, its header names {at}: fetch it again")
    data = np.memmap(path, np.uint8, "r", 8 + length) if size > 8 + length else np.zeros(0, np.uint8)
    return {
        name: data[begin:end].view(dtype).reshape(shape) for name, (dtype, shape, begin, end) in places.items()
    }  # fmt: skip


def write_file(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write the arrays, in the order of their names' widths and then names; the file appears when it is whole."""
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [begin, end]
        }  # fmt: skip
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with open_atomic(path) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in names:
            file.write(np.ascontiguousarray(tensors[name]).tobytes())


class ArrayEntry(TypedDict):
    """The description of one array in the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def _parse_entry(entry: dict[str, Any], place: str) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Dtype, shape, begin and end of one array. Raises UserError if they do not fit each other."""
    check_type(entry, ArrayEntry, place, cure="fetch the file again")
    if entry["dtype"] not in DTYPES:
        raise UserError(
            f"{place} has the dtype {entry['dtype'][:20]}, expected one of {', '.join(DTYPES)}: quantized weights are "
            "not read; fetch the model in float32, float16 or bfloat16"
        )
    dtype, shape, (begin, end) = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
    if min((*shape, begin)) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{place} has {end - begin} bytes for the shape {shape} of {dtype}: fetch the file again")
    return dtype, shape, begin, end
