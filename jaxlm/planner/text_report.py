"""A plan in words."""

from typing import Any

from jaxlm.planner.memory import format_gib
from jaxlm.planner.plan import RunPlan
from jaxlm.planner.search import mesh_flag


def plan_text(plan: RunPlan) -> str:
    """Some lines for a person: what was planned, what fits, what it takes, and on which assumptions."""
    lines = [
        _header_line(plan),
        _batch_line(plan),
        *_memory_lines(plan),
        *_flops_lines(plan),
        *_network_lines(plan),
        *_time_lines(plan),
    ]
    if plan.unsharded_params:
        lines.append(f"left whole  {'; '.join(plan.unsharded_params)}: their sizes do not divide")
    return "\n".join(lines)


def plan_line(plan: RunPlan) -> str:
    """One line of a ranking."""
    time = "no time known" if plan.seconds is None else (
        f"{plan.seconds.lower_bound:8.3f} to {plan.seconds.upper_bound:8.3f} s a step, "
        f"MFU {_percent(plan.mfu(plan.seconds.upper_bound))} to {_percent(plan.mfu(plan.seconds.lower_bound))}"
    )  # fmt: skip
    fits = {True: "fits", False: "does not fit", None: ""}[plan.fits]
    by = "formula" if plan.compile_seconds is None else "compiled"
    mesh = f"--mesh {mesh_flag(plan.mesh)} --grad-accum {plan.accumulate}"
    return f"{mesh:48} {format_gib(plan.memory['total']):>8} GiB {fits:12} {time}  ({by})"


def _header_line(plan: RunPlan) -> str:
    how = (
        plan.compiler if plan.compile_seconds is None else f"compiled in {plan.compile_seconds:.0f} s: {plan.compiler}"
    )
    chips = f"{plan.chips} chips" + (f", {plan.devices} devices" if plan.devices != plan.chips else "")
    return f"{plan.experiment} on {plan.topology} ({chips}), --mesh {mesh_flag(plan.mesh)}; {how}"


def _batch_line(plan: RunPlan) -> str:
    parts = f" in {plan.accumulate} micro-batches" if plan.accumulate > 1 else ""
    needs = f"; train takes it with {' '.join(plan.changed_options)}" if plan.changed_options else ""
    return f"batch       {plan.batch}{parts}: {plan.tokens:,} tokens a step, padding counted{needs}"


def _memory_lines(plan: RunPlan) -> list[str]:
    parts = ", ".join(f"{name} {format_gib(size)}" for name, size in plan.memory.items() if name != "total" and size)
    total = plan.memory["total"]
    if plan.fits is None:
        return [f"memory      {format_gib(total)} GiB a device ({parts})"]
    of = f"of {format_gib(plan.available_memory or 0)} GiB a device"
    if not total:
        return [f"memory      more than there is, {of} ({parts}): does not fit"]
    return [f"memory      {format_gib(total)} {of} ({parts}): {'fits' if plan.fits else 'does not fit'}"]


def _flops_lines(plan: RunPlan) -> list[str]:
    again = plan.step_flops / plan.model_flops - 1
    lines = [
        f"FLOPs       {plan.model_flops:.3g} a step of the model (3 x the products of the forward pass, counted in the "
        f"jaxpr; {plan.causal_halved_flops:.3g} with causal attention halved); {again:+.0%} as it is computed",
    ]
    if plan.bytes_moved is not None:
        lines.append(f"bytes       {plan.bytes_moved:.3g} a device between it and its memory")
    return lines


def _network_lines(plan: RunPlan) -> list[str]:
    each = [f"{kind} {one['count']:,} x, {format_gib(one['bytes'])} GiB" for kind, one in plan.collectives.items()]
    return [f"network     {'; '.join(each)} a device"] if each else []


def _time_lines(plan: RunPlan) -> list[str]:
    if plan.seconds is None:
        why = "it does not fit" if plan.fits is False else "the table of chips does not have this one"
        return [f"time        unknown: {why}"]
    seconds = plan.seconds
    bounds = (seconds.lower_bound, seconds.upper_bound)
    parts = f"arithmetic {seconds.compute:.3g}, memory {seconds.memory:.3g}, links {seconds.links:.3g}"
    parts += f", network {seconds.network:.3g}" if seconds.network else ""
    lines = [
        f"time        {_range_text(bounds, '.3g')} s a step ({parts}; all overlapping, or nothing), "
        f"{_range_text([plan.tokens / one for one in bounds], ',.0f')} tokens/s",
        f"MFU         {_percent(plan.mfu(seconds.upper_bound))} to {_percent(plan.mfu(seconds.lower_bound))} of "
        "the dense peak "
        f"({(plan.peak_flops or 0) / plan.chips:.3g} FLOP/s a chip), attention in full",
        f"whole run   {plan.steps:,} steps: {_range_text([one['hours'] for one in plan.run_costs], ',.1f')} hours, "
        f"{_range_text([one['chip_hours'] for one in plan.run_costs], ',.0f')} chip hours{_cost_text(plan.run_costs)}",
        "assumed     peaks and bandwidths of the table in jaxlm/perf/chips.py; evaluation, input and start-up "
        "are left out",
    ]
    return lines


def _cost_text(run: list[dict[str, Any]]) -> str:
    return "" if run[0]["cost"] is None else f", cost {_range_text([one['cost'] for one in run], ',.0f')}"


def _range_text(bounds: Any, format_spec: str) -> str:
    low, high = min(bounds), max(bounds)
    return f"{low:{format_spec}} to {high:{format_spec}}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0%}"
