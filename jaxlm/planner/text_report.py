"""A plan as text."""

from collections.abc import Iterable
from typing import Any

from jaxlm.perf.chips import format_gib
from jaxlm.perf.flops import FLOPS_CONVENTION
from jaxlm.planner.plan import RunPlan
from jaxlm.planner.search import mesh_flag, plan_options


def plan_text(plan: RunPlan) -> str:
    """Some lines: the workload, its memory, FLOPs, traffic, time and cost, and the assumptions."""
    compiled = "" if plan.compile_seconds is None else f"compiled in {plan.compile_seconds:.0f} s: "
    chips = f"{plan.chips} chips" + (f", {plan.devices} devices" if plan.devices != plan.chips else "")
    where = f"{plan.experiment} on {plan.topology} ({chips}), --mesh {mesh_flag(plan.mesh)}"
    micro_batches = f" in {plan.accumulate} micro-batches" if plan.accumulate > 1 else ""
    parts = ", ".join(f"{name} {format_gib(size)}" for name, size in plan.memory.items() if name != "total" and size)
    memory = format_gib(plan.memory["total"])
    if plan.fits is not None:
        needed = memory if plan.memory["total"] else "more than the available memory,"
        memory = f"{needed} of {format_gib(plan.available_memory or 0)}"
    fits = {True: ": fits", False: ": does not fit", None: ""}[plan.fits]
    options = f"; train needs {' '.join(plan.changed_options)} for it" if plan.changed_options else ""
    lines = [
        f"{where}; {compiled}{plan.compiler}",
        f"batch       {plan.batch}{micro_batches}: {plan.tokens:,} tokens a step, padding included{options}",
        f"memory      {memory} GiB a device ({parts}){fits}",
        *_traffic_lines(plan),
        *_time_lines(plan),
    ]
    if plan.layers:
        lines.insert(2, f"layers      {plan.layers}")
    if plan.unsharded_params:
        lines.append(f"unsharded   {'; '.join(plan.unsharded_params)}: the axes do not divide their sizes")
    return "\n".join(lines)


def plan_line(plan: RunPlan) -> str:
    """One line of a ranking."""
    time = "time unknown"
    if plan.seconds is not None:
        lower, upper = plan.seconds.lower_bound, plan.seconds.upper_bound
        time = f"{_range_text((lower, upper)):>16} s a step, MFU {_mfu_range(plan)}"
    fits = {True: "fits", False: "does not fit", None: ""}[plan.fits]
    method = "analytic" if plan.compile_seconds is None else "compiled"
    moved = "" if plan.bytes_moved is None else f"{plan.bytes_moved / 1e9:10,.1f} GB, "
    moved += "" if plan.launches is None else f"{plan.launches:,} launches, "
    layers = f", {plan.layers}" if plan.layers else ""
    return (
        f"{plan_options(plan):48} {format_gib(plan.memory['total']):>8} GiB {fits:12} {moved}{time}  ({method}{layers})"
    )


def _traffic_lines(plan: RunPlan) -> list[str]:
    lines = [
        f"FLOPs       {plan.model_flops:.3g} a step ({plan.causal_halved_flops:.3g} with causal attention halved): "
        f"{FLOPS_CONVENTION}; with recomputation {round(plan.step_flops / plan.model_flops - 1, 2) + 0.0:+.0%}"
    ]
    if plan.bytes_moved is not None:
        launches = "" if plan.launches is None else f"; {plan.launches:,} launches"
        turns = f", {plan.host_turns:,} turns of loops that wait for the host" if plan.host_turns else ""
        lines.append(
            f"traffic     {plan.bytes_moved:.3g} bytes a step between a device and its memory{launches}{turns}"
        )
    if plan.collectives:
        kinds = [
            f"{kind} {c['count']:,} x ({c['overlapped']:,} during computation), {format_gib(c['bytes'])} GiB"
            for kind, c in plan.collectives.items()
        ]
        lines.append(f"network     {'; '.join(kinds)} a device and step")
    return lines


def _time_lines(plan: RunPlan) -> list[str]:
    if plan.seconds is None:
        reason = "the step does not fit" if plan.fits is False else "the table of chips lacks this one"
        return [f"time        unknown: {reason}"]
    seconds, costs = plan.seconds, plan.run_costs
    bounds = (seconds.lower_bound, seconds.upper_bound)
    hours, chip_hours, cost = ([of_bound[name] for of_bound in costs] for name in ("hours", "chip_hours", "cost"))
    parts = f"arithmetic {seconds.compute:.3g}, memory {seconds.memory:.3g}, links {seconds.links:.3g}"
    parts += f", network {seconds.network:.3g}" if seconds.network else ""
    parts += f"; kernels {seconds.launches:.2g} at least" if seconds.launches == seconds.lower_bound else ""
    costing = "" if cost[0] is None else f", cost {_range_text(cost)}"
    peak = (plan.peak_flops or 0) / plan.chips
    return [
        f"time        {_range_text(bounds)} s a step (if all of these overlap, or none: {parts}), "
        f"{_range_text([plan.tokens / bound for bound in bounds])} tokens/s",
        f"MFU         {_mfu_range(plan)} of the dense peak ({peak:.3g} FLOP/s a chip), attention in full",
        f"whole run   {plan.steps:,} steps: {_hours_text(hours)}, {_hours_text(chip_hours, 'chip ')}{costing}",
        "assumed     peaks and bandwidths of jaxlm/perf/chips.py; without evaluation, data loading and start-up",
    ]


def _mfu_range(plan: RunPlan) -> str:
    seconds: Any = plan.seconds
    shares = plan.mfu(seconds.upper_bound), plan.mfu(seconds.lower_bound)
    return " to ".join("n/a" if share is None else f"{share:.0%}" for share in shares)


def _hours_text(hours: Iterable[float], unit: str = "") -> str:
    """A range of hours, or of minutes or seconds, so that the smaller bound is at least 1."""
    low, high = sorted(hours)
    for factor, name in ((1, "hours"), (60, "minutes")):
        if low * factor >= 1:
            return f"{_range_text([low * factor, high * factor])} {unit}{name}"
    return f"{_range_text([low * 3600, high * 3600])} {unit}seconds"


def _range_text(bounds: Iterable[float]) -> str:
    """Two numbers with two digits: bounds of an estimate have no more."""
    return " to ".join(f"{float(f'{bound:.2g}'):,.12g}" for bound in sorted(bounds))
