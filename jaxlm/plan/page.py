"""A plan in words."""

from typing import Any

from jaxlm.plan.memory import gib
from jaxlm.plan.plan import Plan
from jaxlm.plan.search import written


def page(plan: Plan) -> str:
    """Some lines for a person: what was planned, what fits, what it takes, and on which assumptions."""
    lines = [_head(plan), _batch(plan), *_memory(plan), *_work(plan), *_collectives(plan), *_time(plan)]
    if plan.left_whole:
        lines.append(f"left whole  {'; '.join(plan.left_whole)}: their sizes do not divide")
    return "\n".join(lines)


def line(plan: Plan) -> str:
    """One line of a ranking."""
    time = "no time known" if plan.seconds is None else (
        f"{plan.seconds.least:8.3f} to {plan.seconds.most:8.3f} s a step, "
        f"MFU {_share(plan.mfu(plan.seconds.most))} to {_share(plan.mfu(plan.seconds.least))}"
    )  # fmt: skip
    fits = {True: "fits", False: "does not fit", None: ""}[plan.fits]
    by = "formula" if plan.compile_seconds is None else "compiled"
    mesh = f"--mesh {written(plan.mesh)} --accumulate {plan.accumulate}"
    return f"{mesh:48} {gib(plan.memory['total']):>8} GiB {fits:12} {time}  ({by})"


def _head(plan: Plan) -> str:
    how = (
        plan.compiler if plan.compile_seconds is None else f"compiled in {plan.compile_seconds:.0f} s: {plan.compiler}"
    )
    chips = f"{plan.chips} chips" + (f", {plan.devices} devices" if plan.devices != plan.chips else "")
    return f"{plan.experiment} on {plan.topology} ({chips}), --mesh {written(plan.mesh)}; {how}"


def _batch(plan: Plan) -> str:
    parts = f" in {plan.accumulate} micro-batches" if plan.accumulate > 1 else ""
    needs = f"; train takes it with {' '.join(plan.changed)}" if plan.changed else ""
    return f"batch       {plan.batch}{parts}: {plan.tokens:,} tokens a step, padding counted{needs}"


def _memory(plan: Plan) -> list[str]:
    parts = ", ".join(f"{name} {gib(size)}" for name, size in plan.memory.items() if name != "total" and size)
    total = plan.memory["total"]
    if plan.fits is None:
        return [f"memory      {gib(total)} GiB a device ({parts})"]
    of = f"of {gib(plan.available or 0)} GiB a device"
    if not total:
        return [f"memory      more than there is, {of} ({parts}): does not fit"]
    return [f"memory      {gib(total)} {of} ({parts}): {'fits' if plan.fits else 'does not fit'}"]


def _work(plan: Plan) -> list[str]:
    again = plan.step_flops / plan.model_flops - 1
    lines = [
        f"FLOPs       {plan.model_flops:.3g} a step of the model (3 x the products of the forward pass, counted in the "
        f"jaxpr; {plan.halved_flops:.3g} with causal attention halved); {again:+.0%} as it is computed",
    ]
    if plan.bytes_moved is not None:
        lines.append(f"bytes       {plan.bytes_moved:.3g} a device between it and its memory")
    return lines


def _collectives(plan: Plan) -> list[str]:
    each = [f"{kind} {one['count']:,} x, {gib(one['bytes'])} GiB" for kind, one in plan.collectives.items()]
    return [f"network     {'; '.join(each)} a device"] if each else []


def _time(plan: Plan) -> list[str]:
    if plan.seconds is None:
        why = "it does not fit" if plan.fits is False else "the table of chips does not have this one"
        return [f"time        unknown: {why}"]
    seconds = plan.seconds
    bounds = (seconds.least, seconds.most)
    parts = f"arithmetic {seconds.compute:.3g}, memory {seconds.memory:.3g}, links {seconds.links:.3g}"
    parts += f", network {seconds.network:.3g}" if seconds.network else ""
    lines = [
        f"time        {_range(bounds, '.3g')} s a step ({parts}; all overlapping, or nothing), "
        f"{_range([plan.tokens / one for one in bounds], ',.0f')} tokens/s",
        f"MFU         {_share(plan.mfu(seconds.most))} to {_share(plan.mfu(seconds.least))} of the dense peak "
        f"({(plan.peak_flops or 0) / plan.chips:.3g} FLOP/s a chip), attention in full",
        f"whole run   {plan.steps:,} steps: {_range([one['hours'] for one in plan.run], ',.1f')} hours, "
        f"{_range([one['chip_hours'] for one in plan.run], ',.0f')} chip hours{_cost(plan.run)}",
        "assumed     peaks and bandwidths of the table in jaxlm/chips.py; evaluation, input and start-up are left out",
    ]
    return lines


def _cost(run: list[dict[str, Any]]) -> str:
    return "" if run[0]["cost"] is None else f", cost {_range([one['cost'] for one in run], ',.0f')}"


def _range(bounds: Any, style: str) -> str:
    low, high = min(bounds), max(bounds)
    return f"{low:{style}} to {high:{style}}"


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0%}"
