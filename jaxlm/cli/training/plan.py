"""`jaxlm plan EXPERIMENT --topology T`: what a run will need and cost on hardware that need not be there.

The train step is compiled for it: by libtpu for TPUs, by JAX's CUDA plugin for GPUs, with neither present; figures by
formula where nothing can compile. 1 if it does not fit.
"""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from jaxlm.cli import output
from jaxlm.cli.options import add_memory_options, add_mesh_option
from jaxlm.cli.overrides import ExperimentParser
from jaxlm.cli.parser import COMMANDS, UsageError, int_at_least
from jaxlm.errors import UserError

if TYPE_CHECKING:
    from jaxlm.experiment import Experiment
    from jaxlm.planner.topology import Target


def main(argv: list[str]) -> int:
    """Print the plan; 0 if it fits or that is not known, 1 if not."""
    parser = _parser()
    topology = _parse_topology(argv)
    from jaxlm.planner import topology as places

    places.set_compiler_flags(topology)
    experiment, options = parser.parse_experiment(argv)
    from jaxlm import runtime
    from jaxlm.planner.decode_plan import plan_decoding
    from jaxlm.planner.plan import make_plan
    from jaxlm.planner.search import make_target_mesh, suggest_fix, sweep
    from jaxlm.planner.text_report import plan_line
    from jaxlm.training.initialize import resolve_init
    from jaxlm.training.run_options import RunOptions

    experiment = resolve_init(experiment)
    if options.topology == places.HERE:  # the cache cannot give back what was compiled for elsewhere
        runtime.configure_process()
    target = places.find_target(options.topology, options.num_slices)
    machine = RunOptions(options.mesh, options.shard_optimizer, options.remat)
    settings = {"price": options.price, "run_options": machine, "use_compiler": not options.analytic}
    _check_options(experiment, options, target)
    name, asked = options.experiment, options.mesh or {}
    if options.sweep:
        plans = sweep(name, experiment, target, output.print_stderr, options.compile_best, **settings)
        output.write_line(
            output.json_line([one.to_json() for one in plans]) if options.json else "\n".join(map(plan_line, plans))
        )
        return int(not any(one.fits is not False for one in plans))
    plan = make_plan(name, experiment, target, make_target_mesh(target, asked), **settings)
    found = (
        suggest_fix(plan, experiment, asked, target, output.print_stderr, **settings) if plan.fits is False else None
    )
    mesh, rows = make_target_mesh(target, asked), options.decode_batch_size
    decoding = plan_decoding(experiment, mesh, target.chip, rows) if rows else None
    _write_plan(plan, found, decoding, options.json)
    return int(plan.fits is False or (decoding is not None and decoding.fits is False))


def _write_plan(plan: Any, fix: Any, decoding: Any, as_json: bool) -> None:
    """The plan of a run, the change that makes it fit if it does not, and the plan of decoding."""
    from jaxlm.planner.text_report import plan_text

    if as_json:
        better = {} if fix is None else {"fix": fix[0], "plan_with_fix": fix[1].to_json()}
        more = {} if decoding is None else {"decoding": dataclasses.asdict(decoding)}
        output.write_line(output.json_line(plan.to_json() | better | more))
        return
    output.write_line(plan_text(plan))
    if decoding is not None:
        output.write_line(decoding.summary())
    if plan.fits is False:
        nothing = "\nnothing tried makes it fit: more devices"
        output.write_line(f"\nfits with   {fix[0]}:\n{plan_text(fix[1])}" if fix else nothing)


def _check_options(experiment: "Experiment", options: argparse.Namespace, target: "Target") -> None:
    """Options that have no meaning together, or none here, before anything takes minutes."""
    from jaxlm.planner.decode_plan import check_can_decode

    if options.compile_best and (not options.sweep or options.analytic):
        raise UsageError(
            "--compile-best N is for a --sweep without --analytic: leave it out, or give --sweep alone beside it"
        )
    if options.sweep and (options.decode_batch_size or options.mesh):
        raise UsageError(
            "--sweep tries all meshes, and --mesh and --decode-batch-size are for one: leave them out, or --sweep"
        )
    absent = f"nothing here can compile for {target.name} ({target.compiler})" if target.devices is None else ""
    if options.compile_best and absent:
        raise UserError(f"--compile-best {options.compile_best}: {absent}: leave it out for figures by formula")
    if options.decode_batch_size:
        check_can_decode(experiment.model)
        if absent:
            raise UserError(
                f"--decode-batch-size {options.decode_batch_size}: {absent}, and a decoding step has no formula: "
                "leave it out"
            )


def _parser() -> ExperimentParser:
    parser = ExperimentParser("plan", COMMANDS["plan"])
    text = "`v5e:4x4`, `v5p:2x2x4`, `h100:8`, `h100:2x8` (nodes x GPUs), or `here` (the default)"
    parser.add_argument("--topology", default="here", metavar="T", help=text)
    parser.add_argument(
        "--num-slices", type=int_at_least(1), default=1, metavar="N", help="so many of them, over a slow network"
    )
    add_mesh_option(parser)
    add_memory_options(parser)
    parser.add_argument(
        "--price", type=_positive_price, metavar="P", help="of a chip for an hour: then there is a cost"
    )
    parser.add_argument(
        "--decode-batch-size", type=int_at_least(1), metavar="ROWS", help="plan a decoding step of so many rows, too"
    )
    parser.add_argument("--sweep", action="store_true", help="rank meshes and micro-batches instead, by formula")
    text = "of a sweep, compile the best N and rank these by what the compiler says (default: none)"
    parser.add_argument("--compile-best", type=int_at_least(1), default=0, metavar="N", help=text)
    parser.add_argument("--analytic", action="store_true", help="compile nothing: figures in seconds, good to a third")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of words")
    return parser


def _parse_topology(argv: list[str]) -> str:
    """The topology, before JAX is imported: it decides which devices JAX may touch."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--topology", default="here")
    try:
        return early.parse_known_args(argv)[0].topology
    except SystemExit:  # the parser of the verb will say what is wrong
        return "here"


def _positive_price(text: str) -> float:
    price = float(text)
    if not price > 0:
        raise ValueError
    return price
