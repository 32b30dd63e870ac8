"""The bodies of requests: their fields and types, their limits, and the error that refuses a request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxlm.errors import UserError
from jaxlm.inference.embed import PoolingMode
from jaxlm.json_files import check_type, parse_json

CURE = "see docs/serving.md"
TEXTS = str | list[str]

SAMPLER_FIELDS = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float}

FIELDS: dict[str, dict[str, Any]] = {
    "/v1/translate": {"text": TEXTS, "n_best": int, "attention": bool, "token_logprobs": bool},
    "/v1/predict": {"text": TEXTS},
    "/v1/score": {"text": TEXTS, "source": TEXTS},
    "/v1/embeddings": {
        "input": TEXTS, "model": str, "encoding_format": Literal["float"], "pooling": PoolingMode, "layer": int | None,
    },
    "/v1/completions": {
        "prompt": TEXTS, "model": str, "max_tokens": int, "n": int, "seed": int, "stop": str | list[str] | None,
        "stream": bool, **SAMPLER_FIELDS,
    },
}  # fmt: skip
"""Path -> the fields of a body and their types; the first one is needed."""


@dataclass(frozen=True)
class Limits:
    """The limits of a server: bytes and texts of a request, requests at a time, seconds and tokens of an answer."""

    max_body_bytes: int
    max_texts: int
    max_requests: int
    timeout: float
    max_tokens: int = 1024


class RequestError(UserError):
    """A refusal: the status of the response, and the message of its JSON body."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def read_body(body: bytes, path: str) -> dict[str, Any]:
    """The fields of a body. Raises UserError for what is not JSON, an unknown field, a missing one or a wrong type."""
    values, known = parse_json(body, "the body", dict, CURE), FIELDS[path]
    for name in (*values, next(iter(known))):
        if name not in known or name not in values:
            problem = "no field" if name in values else "it lacks the field"
            raise UserError(f"the body: {problem} {name!r:.60}; the fields are {', '.join(known)}: {CURE}")
        check_type(values[name], known[name], f"the body.{name}", CURE)
    return values


def number_of(values: Mapping[str, Any], name: str, low: int, high: int, default: Any) -> Any:
    """The value of a field. Raises UserError if it is not from `low` to `high`."""
    value = values.get(name, default)
    if value is not None and not low <= value <= high:
        raise UserError(f"the body.{name}: expected {low} to {high}, found {value!r:.40}: {CURE}")
    return value


def texts_of(values: Mapping[str, Any], name: str, max_texts: int, one_line: bool = False) -> list[str]:
    """The texts of a field. Raises UserError if there are none, too many or, with `one_line`, one with a line break."""
    texts = [values[name]] if isinstance(values[name], str) else list(values[name])
    if not 1 <= len(texts) <= max_texts:
        raise UserError(f"the body.{name}: expected 1 to {max_texts} texts, found {len(texts)}: {CURE}")
    if one_line and (broken := [text for text in texts if "\n" in text or "\r" in text]):
        raise UserError(f"the body.{name}: line break in {broken[0]!r:.40}: send a list of lines")
    return texts
