"""A checkpoint folder of Hugging Face Transformers: `config.json`, and safetensors in one file or several."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import ml_dtypes
import numpy as np

from jaxlm.errors import UserError
from jaxlm.filesystem import open_atomic
from jaxlm.json_files import check_type, parse_json, read_json

CONFIG_FILE, WEIGHTS_FILE, WEIGHTS_INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"

MAX_SHARD_BYTES = 5_000_000_000

FETCH_AGAIN = "fetch the folder again"


class ModelDescription(TypedDict, total=False):
    """The entries of `config.json` that name the architecture, its tokens and its arrays."""

    architectures: list[str] | None
    model_type: str
    vocab_size: int
    pad_token_id: int | None
    bos_token_id: int | None
    unk_token_id: int | None
    eos_token_id: int | list[int] | None
    decoder_start_token_id: int | None
    bad_words_ids: list[list[int]] | None
    dtype: str | None
    torch_dtype: str | None


class WeightsIndex(TypedDict):
    """The index of a model in several files: array -> file."""

    weight_map: dict[str, str]


def published_file(folder: Path, name: str) -> Path | None:
    """A file of a published folder, or None. Raises UserError if it is a link out of the folder, a pipe or a folder.

    The cache of the Hub links from `snapshots/REVISION` into `blobs`, which belongs to the folder.
    """
    path, home = folder / name, folder.resolve()
    if not os.path.lexists(path):
        return None
    homes = [home, *(parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots")]
    target = path.resolve()
    if not any(target.is_relative_to(home) for home in homes):
        raise UserError(f"{path} is a link to {target}, outside of the folder: copy the file if you trust it")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file: remove it, or fetch the folder again")
    return path


def read_optional(folder: Path, name: str, annotation: Any = dict) -> dict[str, Any]:
    """A JSON file of the folder; {} if there is none. Raises UserError if it has another type."""
    return read_json(path, annotation, FETCH_AGAIN) if (path := published_file(folder, name)) else {}


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`. Raises UserError if it is missing or not a JSON object."""
    return read_description(folder, CONFIG_FILE, "which describes the model", ModelDescription)


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of the folder by name, mapped into memory. Raises UserError if they are missing or only pickled."""
    if whole := published_file(folder, WEIGHTS_FILE):
        return read_safetensors(whole)
    if not published_file(folder, WEIGHTS_INDEX_FILE):
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        reason = f"; {', '.join(pickled)} would have to be unpickled, which executes its content" if pickled else ""
        raise UserError(
            f"{folder} has neither {WEIGHTS_FILE} nor {WEIGHTS_INDEX_FILE}{reason}: save the model with "
            "`save_pretrained(folder, safe_serialization=True)`"
        )
    purpose = "which names the file of each array"
    shard_of = read_description(folder, WEIGHTS_INDEX_FILE, purpose, WeightsIndex)["weight_map"]
    shards = {name: read_safetensors(_shard_path(folder, name)) for name in sorted(set(shard_of.values()))}
    missing = [f"{name} in {shard}" for name, shard in shard_of.items() if name not in shards[shard]]
    if missing:
        raise UserError(f"{folder / WEIGHTS_INDEX_FILE} names missing arrays: {', '.join(missing[:5])}: fetch it again")
    return {name: shards[shard][name] for name, shard in shard_of.items()}


def write_folder(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write the config and the arrays, in several files with an index if they exceed `max_shard_bytes`."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_split_shards(tensors, max_shard_bytes))
    for stale in (*folder.glob("model-*-of-*.safetensors"), folder / WEIGHTS_FILE, folder / WEIGHTS_INDEX_FILE):
        stale.unlink(missing_ok=True)
    if len(shards) == 1:
        write_safetensors(folder / WEIGHTS_FILE, shards[0])
    else:
        shard_of: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            write_safetensors(folder / file, shard)
            shard_of |= dict.fromkeys(shard, file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(shard_of.items()))}
        _write_json(folder / WEIGHTS_INDEX_FILE, index)
    _write_json(folder / CONFIG_FILE, config)


def _split_shards(tensors: Mapping[str, np.ndarray], max_shard_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if shard and sum(part.nbytes for part in shard.values()) + tensor.nbytes > max_shard_bytes:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard


def _shard_path(folder: Path, name: Any) -> Path:
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
        raise UserError(
            f"{folder / WEIGHTS_INDEX_FILE} names the file {name!r}, expected a file of that folder: do not trust it"
        )
    if not (path := published_file(folder, name)):
        raise UserError(f"{folder / WEIGHTS_INDEX_FILE} names {name[:80]}, which is missing: fetch the folder again")
    return path


def read_description(folder: Path, name: str, purpose: str, annotation: Any = dict) -> dict[str, Any]:
    """A JSON file of the folder; `purpose` is a clause for the message. Raises UserError if it has another type."""
    if not (path := published_file(folder, name)):
        raise UserError(f"{folder} has no {name}, {purpose}: name a folder that `save_pretrained` wrote")
    return read_json(path, annotation, FETCH_AGAIN)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16,
    "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip

DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}

MAX_HEADER_BYTES = 100_000_000


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, mapped into memory and not yet read; nothing is unpickled.

    8 bytes   length n of the header, little-endian
    n bytes   JSON: {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {...}}
    rest      the arrays in row-major order, offsets counted from here, without gaps

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


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
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
