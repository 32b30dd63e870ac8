"""The catalog of data sets that the experiments read: `catalog.json`, and the check of files against it.

An entry names what a data set is for, its license, the addresses of its files (with mirrors) and, for each file, the
size and SHA-256 of its uncompressed content. The folder of a data set has its name.
"""

import functools
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

CATALOG = Path(__file__).with_name("catalog.json")

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class File:
    """A file of a data set.

    Attributes:
      bytes, sha256: of its content, uncompressed.
      path: the value of `{path}` in the addresses.
      member: if the address is that of a zip archive, the name of the file in it.
    """

    bytes: int
    sha256: str
    path: str = ""
    member: str = ""


@dataclass(frozen=True)
class DataSet:
    """A data set of the catalog.

    Attributes:
      content, task: what it holds, and what for.
      license: an SPDX identifier, or words; "none stated" if its publisher names none.
      use: "open", "noncommercial" or "unstated".
      addresses: the same files at several places, the first that answers is taken.
      files: by their names in the folder.
      instructions: how to make files that have no address of their own.
      tfds: whether tensorflow-datasets prepares it.
    """

    content: str
    task: str
    license: str
    use: Literal["open", "noncommercial", "unstated"]
    addresses: list[str] = field(default_factory=list)
    files: dict[str, File] = field(default_factory=dict)
    instructions: str = ""
    tfds: bool = False

    @property
    def bytes(self) -> int:
        """The uncompressed size of all files."""
        return sum(file.bytes for file in self.files.values())


@functools.cache
def read_catalog() -> dict[str, DataSet]:
    """All data sets by name."""
    catalog = json.loads(CATALOG.read_text(encoding="utf-8"))
    for entry in catalog.values():
        entry["files"] = {name: File(**file) for name, file in entry.get("files", {}).items()}
    return {name: DataSet(**entry) for name, entry in catalog.items()}


def default_folder() -> Path:
    """The folder of all data sets: $JAXLM_DATA, else `data/`."""
    return Path(os.environ.get("JAXLM_DATA") or "data").expanduser()


def data_sets_of(config: Any) -> list[str]:
    """The data sets of the catalog that a config, as JSON, names or whose files it reads."""
    texts = [config] if isinstance(config, str) else []
    items = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    names = {name for text in texts for name in read_catalog() if Path(text).is_relative_to(name)}
    return sorted(names.union(*map(data_sets_of, items)))


def get_command(path: Path | str) -> str:
    """The command that fetches the file at a relative path; "" if the catalog does not have it."""
    names = data_sets_of(str(path))
    return f"`jaxlm data get {names[0]}`" if names else ""


def content_fault(path: Path, file: File) -> str:
    """The fault of a file on disk, plain or gzip; "" if its content is that of the catalog."""
    digest, size = hashlib.sha256(), 0
    try:
        for block in read_blocks(path):
            digest.update(block)
            size += len(block)
            if size > file.bytes:
                return f"has more than {file.bytes:,} bytes of content"
    except (OSError, EOFError, zlib.error) as error:
        return f"cannot be read ({error})"
    if size != file.bytes:
        return f"has {size:,} bytes of content, expected {file.bytes:,}"
    return "" if digest.hexdigest() == file.sha256 else "has other content than the catalog says"


def read_blocks(path: Path) -> Iterator[bytes]:
    """The content of a file, uncompressed if it is gzip, in blocks."""
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if is_gzip else raw as stream:
            while block := stream.read(READ_BYTES):
                yield block
