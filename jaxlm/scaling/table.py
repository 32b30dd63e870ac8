"""Tables of training runs, CSV or JSON lines: parameters N, tokens D, FLOPs C and loss of each."""

import csv
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.files import find_file, read_lines
from jaxlm.errors import UserError, list_some
from jaxlm.json_files import parse_json

MAX_ROWS, MAX_ROW_BYTES = 100_000, 1 << 20
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
DATASET_COLUMNS = ("dataset", "dataset_name", "data", "corpus")
"""Columns whose values tell runs apart that no single law describes."""
NATS = {"nats": 1.0, "nat": 1.0, "bits": math.log(2), "bit": math.log(2)}
"""Values of a column `unit` -> nats in one unit of the loss."""

Runs = Any
"""A record array (R,): params (N), tokens (D), flops (C), loss (nats a token), cluster (a bootstrap draws it whole)."""


def make_runs(params: Any, tokens: Any, loss: Any, flops: Any = None, cluster: Sequence[Any] | None = None) -> Runs:
    """The runs of sequences; by default C is 6 N D and each run a cluster of its own."""
    params, tokens = np.asarray(params, np.float64), np.asarray(tokens, np.float64)
    flops = 6 * params * tokens if flops is None else np.asarray(flops, np.float64)
    groups = np.unique(range(len(params)) if cluster is None else cluster, return_inverse=True)[1]
    columns: Any = [params, tokens, flops, loss, groups]
    return np.rec.fromarrays(columns, names="params,tokens,flops,loss,cluster")  # type: ignore[call-overload]


def logarithms(runs: Runs) -> np.ndarray:
    """The logarithms (3, R) of N, D and C."""
    return np.log([runs.params, runs.tokens, runs.flops])


def read_runs(path: Path | str, columns: Mapping[str, str], where: Sequence[str] = ()) -> Runs:
    """The runs of a table whose `columns` are those of "N", "D", "L" and, optionally, "C" and "cluster".

    where: conditions `COLUMN=VALUE`, several values as `A|B`; numbers are equal as numbers (4 and 4.0).
    Raises UserError with file and line for a bad value, a repeated row, and data sets that are mixed.
    """
    file, rows = find_file(path), list(itertools.islice(_read_records(path), MAX_ROWS + 1))
    if not 0 < len(rows) <= MAX_ROWS:
        rows_text = f"more than {MAX_ROWS:,}, the limit" if rows else "none"
        raise UserError(f"{file}: expected a header and one row for each run, found {rows_text}")
    names = list(dict.fromkeys(name for _, record in rows for name in record))
    conditions = [condition.partition("=")[::2] for condition in where]
    required = [*columns.values(), *(name for name, _ in conditions)]
    if missing := [name for name in required if name not in names]:
        raise UserError(f"{file} has no column {', '.join(missing)}: it has {', '.join(names)}")
    for name, text in conditions:
        values, present = set(map(_key, text.split("|"))), sorted({str(record.get(name)) for _, record in rows})
        rows = [(place, record) for place, record in rows if _key(record.get(name)) in values]
        if not rows:
            raise UserError(f"--where {name}={text}: {file} has no such row: it has {list_some(present)}")
    for name in set(DATASET_COLUMNS).intersection(names) - {name for name, _ in conditions}:
        if len(present := sorted({str(record.get(name)) for _, record in rows})) > 1:
            raise UserError(f"{file} mixes {list_some(present)}: choose one with --where {name}={present[0]}")
    seen: dict[tuple[float, ...], str] = {}
    for place, record in rows:
        row = _numbers(place, record, columns)
        if row in seen:
            raise UserError(f"{place}: N, D and loss are those of {seen[row]}: remove one of the two rows")
        seen[row] = place
    cluster = [_key(record.get(columns["cluster"])) for _, record in rows] if "cluster" in columns else None
    params, tokens, loss, flops = np.array(list(seen)).T
    return make_runs(params, tokens, loss, flops, cluster)


def _read_records(path: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, column -> cell) of each row; blank lines are left out."""
    file, delimiter = find_file(path), ","
    header: list[str] = []
    for number, line in enumerate(read_lines(path, max_bytes=MAX_ROW_BYTES), 1):
        place = f"{file}, line {number}"
        if not header and line.lstrip().startswith("{"):
            yield place, parse_json(line, place, cure="write one JSON object a line")
        elif line.strip():
            delimiter = delimiter if header else max(",;\t", key=line.count)
            try:
                cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]
            except csv.Error as error:
                raise UserError(f"{place}: {error}: shorten or remove the row") from None
            if len(cells) != len(header or dict.fromkeys(cells)):
                problem = f"expected {len(header)} as in the header" if header else "some with the same name"
                raise UserError(f"{place}: {len(cells)} columns, {problem}: quote cells that hold {delimiter!r}")
            if header:
                yield place, dict(zip(header, cells, strict=True))
            header = header or cells


def _numbers(place: str, record: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[float, ...]:
    """(N, D, loss in nats, C) of a row."""
    values = []
    for column in (columns[name] for name in "NDLC" if name in columns):
        text = str(record.get(column, "")).strip()
        value = float(text) if NUMBER.fullmatch(text) else math.nan
        if not 0 < value < math.inf:
            expected = "expected a number above 0 without thousands marks"
            raise UserError(f"{place}, column {column}: found {text!r:.40}, {expected}: correct or remove the row")
        values.append(value)
    if (unit := str(record.get("unit") or "nats").strip().lower()) not in NATS:
        raise UserError(f"{place}, column unit: found {unit!r:.40}, expected nats or bits: convert the loss")
    params, tokens, loss, *flops = values
    return params, tokens, loss * NATS[unit], *(flops or [6 * params * tokens])


def _key(cell: Any) -> str:
    """A cell as text that is the same for equal numbers."""
    text = str(cell).strip()
    return repr(float(text)) if NUMBER.fullmatch(text) else text
