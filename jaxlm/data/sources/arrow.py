"""Pairs from column stores: Parquet and Arrow files, and the folders of saved Hugging Face data sets."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.data.files import MAX_TEXT_BYTES, ReadStats, find_file, too_large
from jaxlm.data.sources.base import FilteredPairs
from jaxlm.errors import UserError
from jaxlm.json_files import read_json

ROWS_PER_READ = 1024

STATE_FILE = "state.json"
"""The list of the files of a data set, in a folder that `Dataset.save_to_disk` wrote."""


@dataclass(frozen=True)
class ArrowTable(FilteredPairs):
    """Two columns of a Parquet or Arrow file, or of a data set that the library `datasets` has saved.

    Attributes:
      path: a `.parquet`, `.arrow` or `.feather` file, or a saved folder; of a dictionary of splits, one of them:
        `saved/train`.
      source, target: names of columns of texts or whole numbers, or paths into records such as `translation.en`; a
        source of several columns is their texts with a TAB between them.
    """

    path: str
    source: str | tuple[str, ...]
    target: str
    keep_blank: bool = False
    max_text_bytes: int = MAX_TEXT_BYTES

    @property
    def _sources(self) -> tuple[str, ...]:
        return self.source if isinstance(self.source, tuple) else (self.source,)

    def describe(self) -> str:
        return f"{self.path}, {' and '.join(self._sources)} -> {self.target}"

    def _read_rows(self, stats: ReadStats) -> Iterator[tuple[str | None, str | None]]:
        rows = itertools.count(1)
        for file, records in self._iter_batches():
            for record, number in zip(records, rows, strict=False):
                texts = [_text_at(record, name, f"{file}, row {number}") for name in (*self._sources, self.target)]
                if any(text is not None and len(text) > self.max_text_bytes for text in texts):
                    raise UserError(f"{file}, row {number}: {too_large('the text', self.max_text_bytes)}")
                *sources, target = texts
                parts = [part for part in sources if part is not None]
                if len(parts) < len(sources):
                    yield None, None
                else:
                    yield parts[0] if len(parts) == 1 else "\t".join(p.replace("\t", " ") for p in parts), target

    def _iter_batches(self) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
        """The rows of each file as records, a batch at a time. Raises UserError for a file or a column."""
        try:
            import pyarrow
            import pyarrow.ipc
            import pyarrow.parquet
        except ImportError as error:
            raise UserError(f"{self.path}: Parquet and Arrow files need: pip install pyarrow") from error
        columns = sorted({name.partition(".")[0] for name in (*self._sources, self.target)})
        for file in self._files():
            try:
                with pyarrow.memory_map(str(file)) as source:
                    head = source.read(6)
                    source.seek(0)
                    if head.startswith(b"PAR1"):
                        table = pyarrow.parquet.ParquetFile(source)
                        _check_columns(file, columns, table.schema_arrow.names)
                        batches = table.iter_batches(ROWS_PER_READ, columns=columns)
                    else:
                        is_file = head == b"ARROW1"
                        reader = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
                        _check_columns(file, columns, reader.schema.names)
                        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
                    for batch in batches:
                        chosen = batch.select(columns)
                        for start in range(0, chosen.num_rows, ROWS_PER_READ):
                            yield file, chosen.slice(start, ROWS_PER_READ).to_pylist()
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                reason = str(error).partition("\n")[0]
                raise UserError(f"{file} is not a readable Parquet or Arrow file ({reason}): fetch it again") from None

    def _files(self) -> list[Path]:
        folder = Path(self.path)
        if not folder.is_dir():
            return [find_file(self.path)]
        if not (folder / STATE_FILE).exists():
            splits = sorted(child.name for child in folder.iterdir() if (child / STATE_FILE).exists())
            cure = f"name one of its splits: {', '.join(splits)}" if splits else "expected what save_to_disk writes"
            raise UserError(f"{folder} holds no {STATE_FILE}: {cure}")
        state = read_json(folder / STATE_FILE, dict[str, Any], "save the data set again")
        names = [str(entry.get("filename")) for entry in state.get("_data_files") or []]
        return [find_file(str(folder.resolve() / Path(name).name)) for name in names]


def _check_columns(file: Path, columns: list[str], names: list[str]) -> None:
    if missing := [name for name in columns if name not in names]:
        raise UserError(f"{file} lacks the column {', '.join(missing)}: it has {', '.join(names) or 'none'}")


def _text_at(record: Any, name: str, place: str) -> str | None:
    """The text under a name or path; None if there is none in this row."""
    value = record
    for part in name.split("."):
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{place}: {name!r} leads into {type(value).__name__}, expected a record with {part!r}")
        value = value and value.get(part)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{place}: {name!r} holds {type(value).__name__}, expected a text or a whole number")
