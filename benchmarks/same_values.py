"""Comparison of the values of two training runs: figures by name, parameters by path."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

NOT_COMPARED = re.compile(r"(^|[ /])time/|second|memory|mfu")
"""Names of figures that depend on the machine."""
OUTCOMES = ("equal", "renamed", "DIFFERS")
"""From the best to the worst."""


def read_figures(workdir: Path) -> Iterator[tuple[str, float]]:
    """(name, value) of the numbers in metrics.jsonl and test.json, except times, rates and memory."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    documents = {f"metrics.jsonl line {number}": json.loads(line) for number, line in enumerate(lines, 1)}
    documents["test.json"] = json.loads((workdir / "test.json").read_text(encoding="utf-8"))
    for document, content in documents.items():
        for name, value in numbers_in(content):
            if not NOT_COMPARED.search(name):
                yield f"{document}: {name}", value


def numbers_in(content: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """(name, value) of every number inside a JSON value; the text "nan" is a number too."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from numbers_in(value, f"{name}/{key}" if name else str(key))
    elif content in ("nan", "inf", "-inf"):
        yield name, float(content)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield name, content


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name."""
    with np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}


def compare_values(kind: str, old: dict[str, Any], new: dict[str, Any]) -> tuple[str, list[str]]:
    """(one of OUTCOMES, lines that say what differs). `kind` says in the lines what the values are."""
    if not match_by_value(old, new):
        return "DIFFERS", first_difference(kind, old, new)
    lines = first_renamed(kind, old, new)
    return ("renamed" if lines else "equal"), lines


def match_by_value(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """True if the values are equal: under each name in both, and as a whole under all other names."""
    if any(bits(old[name]) != bits(new[name]) for name in old.keys() & new.keys()):
        return False
    only_old = Counter(bits(old[name]) for name in old.keys() - new.keys())
    return only_old == Counter(bits(new[name]) for name in new.keys() - old.keys())


def bits(value: Any) -> str:
    """A string that is equal for two figures or arrays only if all their bits are equal."""
    if not isinstance(value, np.ndarray):
        return repr(float(value))
    return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"


def first_difference(kind: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines about the first value that differs, and about the names that are on one side alone."""
    lines = []
    differ = [name for name in old if name in new and bits(old[name]) != bits(new[name])]
    if differ:
        values = describe_difference(old[differ[0]], new[differ[0]])
        lines.append(f"{kind} that differ: {len(differ)} of {len(old)}; the first: {differ[0]}: {values}")
    for side, ours, theirs in (("old", old, new), ("new", new, old)):
        if names := [name for name in ours if name not in theirs]:
            lines.append(f"{kind} in the {side} checkout alone: {len(names)}; the first: {names[0]}")
    return lines


def first_renamed(kind: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line about the names that differ while the values are equal; none if no name differs."""
    only_old = [name for name in old if name not in new]
    if not only_old:
        return []
    new_name = next(name for name in new if name not in old and bits(new[name]) == bits(old[only_old[0]]))
    return [f"{kind} of another name: {len(only_old)}; the first: {only_old[0]} is {new_name}"]


def describe_difference(old: Any, new: Any) -> str:
    """Both values of a figure; of an array, how many numbers differ and by how much at most."""
    if not isinstance(old, np.ndarray):
        return f"{old!r} and {new!r}"
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return f"{old.dtype}{list(old.shape)} and {new.dtype}{list(new.shape)}"
    if old.dtype.kind not in "fiu":
        return f"other bits of {old.dtype}{list(old.shape)}"
    distance = np.abs(old.astype(np.float64) - new.astype(np.float64))
    largest = float(np.nanmax(distance, initial=0.0))
    return f"{np.count_nonzero(old != new)} of {math.prod(old.shape)} numbers, by at most {largest:.3g}"
