"""A row of the table of `jaxlm doctor`."""

import importlib.metadata
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "absent"]
"""`missing` must be mended, `absent` may stay so."""


@dataclass(frozen=True)
class Finding:
    """What was looked for, what was found, and the cure if that is not enough."""

    what: str
    found: str
    state: State = "ok"
    cure: str = ""


def version(distribution: str) -> str | None:
    """Of an installed package, else None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
