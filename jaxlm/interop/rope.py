"""Rotary positions in a config.json: `rope_parameters`, or `rope_theta` and `rope_scaling` as before."""

import math
from typing import Any

from jaxlm.errors import UserError
from jaxlm.interop.family import Config
from jaxlm.nn.rotary import Interpolation, Llama3Scaling, Rotary, Yarn

KNOWN = ("default", "linear", "llama3", "yarn")


def read_rotary(config: Config, length: int) -> Rotary:
    """`length` is max_position_embeddings. Raises UserError on a rule that `jaxlm.nn.rotary` does not have."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(given.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind, original = given.get("rope_type", given.get("type", "default")), given.get("original_max_position_embeddings")
    if kind not in KNOWN:
        raise UserError(f"config.json scales rotary positions by the rule {kind!r}; jaxlm has {', '.join(KNOWN)}")
    if given.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UserError("config.json turns a part of each head only (partial_rotary_factor); jaxlm turns all of it")
    if kind == "default":
        return Rotary(theta)
    factor = given.get("factor")
    if factor is None:
        raise UserError(f"config.json has rope_type {kind!r} and no factor: fetch it again")
    if kind == "linear":
        return Rotary(theta, Interpolation(float(factor)))
    if kind == "llama3":
        low, high = given.get("low_freq_factor", 1.0), given.get("high_freq_factor", 4.0)
        return Rotary(theta, Llama3Scaling(float(factor), float(low), float(high), int(original or length)))
    return Rotary(theta, _yarn(given, float(factor), int(original or length)))


def _yarn(given: Config, factor: float, original: int) -> Yarn:
    sharpness = given.get("attention_factor")
    if sharpness is None and given.get("mscale") and given.get("mscale_all_dim"):
        parts = [0.1 * given[name] * math.log(max(factor, 1.0)) + 1 for name in ("mscale", "mscale_all_dim")]
        sharpness = parts[0] / parts[1]
    fast, slow = given.get("beta_fast") or 32.0, given.get("beta_slow") or 1.0
    return Yarn(factor, original, float(fast), float(slow), sharpness, given.get("truncate", True))


def rotary_config(rotary: Rotary) -> dict[str, Any]:
    """The entries of config.json."""
    scaling, found = rotary.scaling, {}
    if isinstance(scaling, Interpolation):
        found = {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Llama3Scaling):
        found = {
            "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high, "original_max_position_embeddings": scaling.original,
        }  # fmt: skip
    elif isinstance(scaling, Yarn):
        found = {
            "rope_type": "yarn", "factor": scaling.factor, "original_max_position_embeddings": scaling.original,
            "beta_fast": scaling.fast, "beta_slow": scaling.slow, "truncate": scaling.whole,
        }  # fmt: skip
        if scaling.sharpness is not None:
            found["attention_factor"] = scaling.sharpness
    return {"rope_theta": rotary.theta, "rope_scaling": found or None}
