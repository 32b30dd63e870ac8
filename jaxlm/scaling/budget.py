"""The run that a scaling law recommends for a budget: a decoder of the experiment's proportions, and its steps."""

import bisect
import functools
import math
from dataclasses import replace
from typing import Any

import jax

from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.models.decoder import Decoder
from jaxlm.models.properties import abstract_params
from jaxlm.perf.flops import count_step
from jaxlm.scaling.fit import FittedLaw
from jaxlm.scaling.summary import optimal_sizes, with_bounds

MAX_EXTRAPOLATION, MAX_LAYERS = 300, 256


def for_budget(experiment: Experiment, law: FittedLaw, flops: float, serve: float, far: bool) -> tuple[Experiment, str]:
    """The experiment with the nearest size and the steps of C = `flops`, and a text; `serve`: see `optimal_size`.

    Raises UserError for more than 300 times the largest C of the law's runs, unless `far`, and for another model.
    """
    if (factor := flops / law["largest_flops"]) > MAX_EXTRAPOLATION and not far:
        problem = f"{factor:,.0f} times the largest C of the law's runs, expected at most {MAX_EXTRAPOLATION}"
        raise UserError(f"--budget {flops:g} is {problem}: fit larger runs, or add --far")
    if not isinstance(model := experiment.model, Decoder):
        raise UserError(f"--budget resizes a Decoder, found {type(model).__name__}: choose such an experiment")

    @functools.cache
    def member(layers: int) -> tuple[int, Any]:
        resized = proportional(model, layers)
        return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(resized))), resized

    sizes = optimal_sizes(law, flops, serve)
    above = 1 + bisect.bisect_left(range(1, MAX_LAYERS), sizes["N"][0], key=lambda layers: member(layers)[0])
    around = member(max(1, above - 1)), member(above)
    params, resized = min(around, key=lambda sized: abs(math.log(sized[0] / sizes["N"][0])))
    tokens = experiment.batching.tokens
    experiment = replace(experiment, model=resized, steps=max(1, round(sizes["D"][0] / tokens)))
    nominal, counted = 6 * params * experiment.steps * tokens, count_step(experiment).full * experiment.steps
    best = ", ".join(f"{name} {with_bounds(sizes[name])}" for name in ("N", "D", "D/N"))
    return experiment, (
        f"law         {law['law']}, C {flops:.4g}, {factor:.3g} times the largest of its runs: {best}\n"
        f"run         {resized.layers} layers of width {resized.width:,}, N {params:,}; {experiment.steps:,} steps\n"
        f"FLOPs       6 N D {nominal:.4g}, counted {counted:.4g}: {counted / nominal:.2f} times (attention, readout)"
    )


def proportional(model: Decoder, layers: int) -> Decoder:
    """The model with this number of layers, and its heads, width and feed-forward width in proportion."""
    groups = model.kv_heads or model.heads
    kv_heads = max(1, round(groups * layers / model.layers))
    heads = kv_heads * (model.heads // groups)
    width = heads * (model.width // model.heads)
    sizes: Any = {"width": width, "heads": heads, "hidden": round(width * model.hidden / model.width), "layers": layers}
    return model.clone(**sizes, kv_heads=model.kv_heads and kv_heads)
