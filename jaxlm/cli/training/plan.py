"""`jaxlm plan EXPERIMENT --topology T`: estimate memory, time and cost of a run on hardware that need not be present.

The train step is compiled for the target: by libtpu for TPUs, by JAX's CUDA plugin for GPUs, without the hardware. If
nothing here can compile for it, the estimate is analytic. Exit code 1 if the step does not fit.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli import output
from jaxlm.cli.options import add_device_options, read_run_options
from jaxlm.cli.overrides import ExperimentParser
from jaxlm.cli.parser import COMMANDS, UsageError, positive_number
from jaxlm.distributed.platforms import tracing_for
from jaxlm.errors import UserError

if TYPE_CHECKING:
    from jaxlm.experiment import Experiment
    from jaxlm.planner.topology import Target


def main(argv: list[str]) -> int:
    """Print the plan. Returns 0 if the step fits or this is unknown, else 1."""
    parser = _parser()
    from jaxlm.planner import topology

    topology.set_compiler_flags(parser.parse_known_args(argv)[0].topology)  # before JAX is imported
    experiment, options = parser.parse_experiment(argv)
    from jaxlm import runtime
    from jaxlm.planner.decode_plan import plan_decoding
    from jaxlm.planner.plan import PlanRequest, make_plan
    from jaxlm.planner.search import suggest_fix, sweep
    from jaxlm.planner.text_report import plan_line
    from jaxlm.training.initialize import resolve_init

    experiment, budget = _for_budget(resolve_init(experiment), options)
    if options.topology == topology.HERE:  # the compilation cache cannot restore programs for other hardware
        runtime.configure_process()
    target = topology.find_target(options.topology, options.num_slices)
    _check_options(experiment, options, target)
    request = PlanRequest(
        options.experiment, experiment, target, options.mesh or {}, options.price, read_run_options(options),
        use_compiler=not options.analytic,
    )  # fmt: skip
    if options.sweep:
        plans = sweep(request, output.print_stderr, options.compile_best)
        records = [plan.to_json() for plan in plans]
        output.write_line(output.json_line(records) if options.json else "\n".join(map(plan_line, plans)))
        return int(all(plan.fits is False for plan in plans))
    plan = make_plan(request)
    fix = suggest_fix(plan, request, output.print_stderr) if plan.fits is False else None
    decoding = None
    if options.decode_batch_size:
        with tracing_for(target.chip):
            decoding = plan_decoding(experiment, request.make_mesh(), target.chip, options.decode_batch_size)
    if budget:
        (output.print_stderr if options.json else output.write_line)(budget)
    _write_plan(plan, fix, decoding, options.json)
    return int(plan.fits is False or (decoding is not None and decoding.fits is False))


def _for_budget(experiment: "Experiment", options: argparse.Namespace) -> tuple["Experiment", str]:
    """The experiment resized for `--budget`, and the text about it; without `--budget` as it is."""
    if not options.budget:
        if options.law or options.serve or options.far:
            raise UsageError("--law, --serve and --far belong to --budget C: add it, or leave them out")
        return experiment, ""
    if not options.law:
        raise UsageError("--budget C needs --law FILE, which `jaxlm scale fit TABLE --out FILE` writes: add it")
    from jaxlm.scaling.budget import for_budget
    from jaxlm.scaling.fit import read_law

    return for_budget(experiment, read_law(options.law), options.budget, options.serve or 0.0, options.far)


def _write_plan(plan: Any, fix: Any, decoding: Any, as_json: bool) -> None:
    """The plan of the run, the change that makes it fit if it does not, and the plan of decoding."""
    from jaxlm.planner.text_report import plan_text

    if as_json:
        record = plan.to_json()
        record |= {} if fix is None else {"fix": fix[0], "plan_with_fix": fix[1].to_json()}
        record |= {} if decoding is None else {"decoding": dataclasses.asdict(decoding)}
        output.write_line(output.json_line(record))
        return
    output.write_line(plan_text(plan))
    if decoding is not None:
        output.write_line(decoding.summary())
    if plan.fits is False:
        no_fix = "\nno change that was tried makes it fit: use more devices"
        output.write_line(f"\nfits with   {fix[0]}:\n{plan_text(fix[1])}" if fix else no_fix)


def _check_options(experiment: "Experiment", options: argparse.Namespace, target: "Target") -> None:
    """Raise for options that contradict each other or that this machine cannot satisfy, before anything is compiled."""
    from jaxlm.planner.decode_plan import check_can_decode

    if options.compile_best and (not options.sweep or options.analytic):
        raise UsageError("--compile-best N needs --sweep without --analytic: add --sweep, or leave --compile-best out")
    if options.sweep and (options.decode_batch_size or options.mesh):
        raise UsageError(
            "--sweep tries all meshes; --mesh and --decode-batch-size need one: leave them out, or --sweep"
        )
    no_compiler = f"nothing here can compile for {target.name} ({target.compiler})" if target.devices is None else ""
    if options.compile_best and no_compiler:
        raise UserError(f"--compile-best {options.compile_best}: {no_compiler}: leave it out for analytic estimates")
    if options.decode_batch_size:
        check_can_decode(experiment.model)
        if no_compiler:
            size = options.decode_batch_size
            raise UserError(f"--decode-batch-size {size}: {no_compiler}, and decoding has no formula: leave it out")


def _parser() -> ExperimentParser:
    parser = ExperimentParser("plan", COMMANDS["plan"])
    text = "`v5e:4x4`, `v5p:2x2x4`, `h100:8`, `h100:2x8` (nodes x GPUs), or `here` for this machine (the default)"
    parser.add_argument("--topology", default="here", metavar="T", help=text)
    parser.add_int("--num-slices", "number of slices of this topology, connected by a slower network", default=1)
    add_device_options(parser)
    text = "price per chip and hour; the plan then includes the cost"
    parser.add_argument("--price", type=positive_number, metavar="P", help=text)
    parser.add_int("--decode-batch-size", "also plan a decoding step with a batch of ROWS rows", metavar="ROWS")
    parser.add_flag("--sweep", "rank all meshes and numbers of micro-batches by analytic estimates")
    text = "with --sweep: compile the N best and rank them by the compiler's figures"
    parser.add_int("--compile-best", text, default=0)
    parser.add_flag("--analytic", "do not compile: compute a quick estimate from formulas, accurate to a third")
    text = "resize the model and set the steps to the best for C FLOPs by the scaling law of --law"
    parser.add_argument("--budget", type=positive_number, metavar="C", help=text)
    parser.add_argument("--law", type=Path, metavar="FILE", help="law.json of `jaxlm scale fit`")
    text = "with --budget: the size that reaches the same loss at the least cost if TOKENS tokens are generated with it"
    parser.add_argument("--serve", type=positive_number, metavar="TOKENS", help=text)
    parser.add_flag("--far", "allow a --budget of more than 300 times the largest run of the law")
    parser.add_flag("--json", "print one JSON object")
    return parser
