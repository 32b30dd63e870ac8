"""How long a row a model can read: tables of positions end."""

from typing import Any

from jaxlm.models.encoder import Encoder
from jaxlm.models.headed import Headed
from jaxlm.models.renumbered import numbered


def reach(model: Any) -> int | None:
    """Positions of a row, marks included, that a model with or without a head can read; None where there is no end."""
    while isinstance(model, Headed):
        model = model.model
    inner = numbered(model)
    if isinstance(inner, Encoder):
        return inner.max_length - inner.first_position
    return inner.max_length if getattr(inner, "position", "") == "learned" else None
