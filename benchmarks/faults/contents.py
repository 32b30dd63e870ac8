"""The contents of a workdir that two runs of one experiment must share bit for bit."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

LITTER = re.compile(r"\.(probe|part|partial|lock|tmp|new|old)\b|-tmp\b|\.orbax-checkpoint-tmp")
"""Names of files and folders that a run makes for a moment."""

CLOCK = ("seconds", "compile_seconds", "sentences_per_second", "lines_per_second", "words_per_second")


def read_contents(folder: Path) -> dict[str, Any]:
    """Name -> value: metrics and scores without times, checksums of every parameter of every checkpoint, files."""
    values: dict[str, Any] = {}
    for number, line in enumerate((folder / "metrics.jsonl").read_bytes().splitlines(), 1):
        values[f"metrics.jsonl:{number}"] = _without_clock(json.loads(line))
    values["test.json"] = _without_clock(json.loads((folder / "test.json").read_bytes()))
    experiment = json.loads((folder / "experiment.json").read_bytes())
    values["experiment.json"] = {name: experiment[name] for name in ("format", "experiment")}
    for meta in folder.glob("**/checkpoints/*/meta/metadata"):  # of the run, and of a reference that it keeps
        step = str(meta.parents[1].relative_to(folder)).removeprefix("checkpoints/")
        values[f"checkpoint {step}"] = json.loads(meta.read_bytes())
    stored = (path for name in ("tokenizer", "data", "reference") for path in folder.glob(f"{name}/**/*"))
    for file in (folder / "data.json", *stored):
        name = str(file.relative_to(folder))
        if file.is_file() and not LITTER.search(name) and not name.startswith("reference/checkpoints"):
            values[str(file.relative_to(folder))] = hashlib.sha256(file.read_bytes()).hexdigest()
    names = [str(path.relative_to(folder)) for path in (*folder.glob("*"), *folder.glob("checkpoints/*"))]
    values["names"] = sorted(name for name in names if not LITTER.search(name))
    return values


def read_shards(folder: Path) -> dict[str, Any]:
    """Name -> digest of every file that `jaxlm prepare` made."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    digests = {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return {name: digest for name, digest in digests.items() if not LITTER.search(name)}


def find_litter(folder: Path) -> list[str]:
    """The files and folders that a run made for a moment and left, by their paths from `folder`."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return sorted(name for name in names if LITTER.search(name.rpartition("/")[2]))


def first_difference(here: dict[str, Any], there: dict[str, Any]) -> str:
    """The first name under which two contents differ, with both values; "" if they are equal."""
    for name in sorted(here.keys() | there.keys()):
        one, other = here.get(name, "absent"), there.get(name, "absent")
        if one != other:
            if isinstance(one, dict) and isinstance(other, dict):
                return f"{name}: {first_difference(one, other)}"
            return f"{name}: {str(one)[:200]} instead of {str(other)[:200]}"
    return ""


def _without_clock(figures: Any) -> Any:
    if not isinstance(figures, dict):
        return figures
    kept = {name: value for name, value in figures.items() if name not in CLOCK and not name.startswith("time/")}
    return {name: _without_clock(value) for name, value in kept.items()}
