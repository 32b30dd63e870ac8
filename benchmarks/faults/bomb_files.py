"""Files that are small on the disk and ask for gigabytes or hours (see `bombs`)."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

GIGABYTE = 1 << 30
MEMBER_BYTES = 100_000_000


def text(content: str) -> Callable[[Path], object]:
    """This text."""
    return lambda path: path.write_text(content, encoding="utf-8")


def one_line(gigabytes: int) -> Callable[[Path], object]:
    """One line of NUL, which takes no place on the disk."""

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(gigabytes * GIGABYTE)

    return make


def gzipped_zeros(gigabytes: int) -> Callable[[Path], object]:
    """A thousandth of this many gigabytes of NUL, compressed."""

    def make(path: Path) -> None:
        member = gzip.compress(bytes(MEMBER_BYTES), mtime=0)
        with path.open("wb") as file:
            for _ in range(gigabytes * 10):
                file.write(member)

    return make


def deep_json(depth: int) -> Callable[[Path], object]:
    """Lists in lists."""
    return text("[" * depth + "]" * depth)


def chain_of_schemas(levels: int) -> Callable[[Path], object]:
    """A schema in which every level names the next one twice."""
    definitions: dict[str, object] = {f"x{levels}": {"type": "null"}}
    for level in range(levels):
        reference = {"$ref": f"#/$defs/x{level + 1}"}
        pair = {"type": "object", "properties": {"a": reference, "b": reference}, "required": ["a", "b"]}
        definitions[f"x{level}"] = pair | {"additionalProperties": False}
    return text(json.dumps({"$defs": definitions, "$ref": "#/$defs/x0"}))


def many_choices(count: int) -> Callable[[Path], object]:
    """Lines that share little."""

    def make(path: Path) -> None:
        with path.open("w") as file:
            for number in range(count):
                file.write(f"{number * 2654435761 % 2**32:08x} the choice of number {number}\n")

    return make


def entities(path: Path) -> None:
    """A billion laughs."""
    names = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    head = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "lol">{names}]>'
    path.write_text(f'{head}<x><pair entailment="YES"><t>&l11;</t><h>b</h></pair></x>')


def quadratic_entity(path: Path) -> None:
    """One entity of a megabyte, 20,000 times."""
    head = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l "{"a" * 1_000_000}">]>'
    path.write_text(f'{head}<x><pair entailment="YES"><t>{"&l;" * 20_000}</t><h>b</h></pair></x>')


def deep_xml(depth: int) -> Callable[[Path], object]:
    """Elements in elements."""
    return text("<a>" * depth)


def huge_xml(size: int) -> Callable[[Path], object]:
    """One pair with a text of this many bytes."""

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.write(b'<x><pair entailment="YES"><t>')
            for _ in range(size // 1_000_000):
                file.write(b"word " * 200_000)
            file.write(b"</t><h>b</h></pair></x>")

    return make


def arpa_of_many_ngrams(counts: str) -> Callable[[Path], object]:
    """A header without its n-grams."""
    return text(f"\\data\\\n{counts}\n\n\\1-grams:\n-1.0\t<unk>\n\n\\end\\\n")


def ends_of_many_rows(path: Path) -> None:
    """Shards of which `ends` has a header of 2**40 rows."""
    from benchmarks.faults.readers_storage import prepare_shards

    prepare_shards(path.parent)
    (path.parent / "shards").rename(path)
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,), }"
    header += b" " * (128 - 10 - len(header) - 1) + b"\n"
    (path / "00000.ends.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def safetensors_header(size: int) -> Callable[[Path], object]:
    """A header of this many bytes: the names of as many arrays as fit, or nothing beyond a gigabyte."""

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.write(size.to_bytes(8, "little"))
            if size < 10**9:
                entry = b'":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"'
                number, written = 0, file.write(b'{"')
                while written < size - 200:
                    written += file.write(f"{number:08}".encode() + entry)
                    number += 1
                last = b'x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
                file.write(last + b" " * (size - written - len(last)))
            file.truncate(size + 8)

    return make
