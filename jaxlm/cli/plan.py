"""`jaxlm plan EXPERIMENT --topology T`: what a run will need and cost on hardware that need not be there.

The train step is compiled for it: by libtpu for TPUs, by JAX's CUDA plugin for GPUs, with neither present; figures by
formula where nothing can compile. 1 if it does not fit.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm.cli import output
from jaxlm.cli.machine import add_memory_options, add_mesh_option
from jaxlm.cli.overrides import ExperimentParser
from jaxlm.cli.usage import VERBS, Usage, whole
from jaxlm.errors import UserError

if TYPE_CHECKING:
    from jaxlm.experiment import Experiment
    from jaxlm.plan.topology import Target


def main(argv: list[str]) -> int:
    """Print the plan; 0 if it fits or that is not known, 1 if not."""
    parser = _parser()
    topology = _early(argv)
    from jaxlm.plan import topology as places

    places.prepare(topology)
    experiment, options = parser.parse_experiment(argv)
    from jaxlm import runtime
    from jaxlm.plan.decode import plan_decoding
    from jaxlm.plan.page import line, page
    from jaxlm.plan.plan import make_plan
    from jaxlm.plan.search import cure, mesh_for, sweep
    from jaxlm.train.machine import Machine
    from jaxlm.train.source import resolved

    experiment = resolved(experiment, Path("no run"))
    if options.topology == places.HERE:  # the cache cannot give back what was compiled for elsewhere
        runtime.prepare()
    target = places.find(options.topology, options.slices)
    machine = Machine(options.mesh, options.split_moments, options.remat)
    settings = {"price": options.price, "machine": machine, "compiles": not options.formula}
    _check(experiment, options, target)
    name, asked = options.experiment, options.mesh or {}
    if options.sweep:
        plans = sweep(name, experiment, target, output.note, options.compile, **settings)
        output.emit(output.to_json([one.to_json() for one in plans]) if options.json else "\n".join(map(line, plans)))
        return int(not any(one.fits is not False for one in plans))
    plan = make_plan(name, experiment, target, mesh_for(target, asked), **settings)
    found = cure(plan, experiment, asked, target, output.note, **settings) if plan.fits is False else None
    mesh, rows = mesh_for(target, asked), options.decode
    decoding = plan_decoding(experiment, mesh, target.chip, rows) if rows else None
    if options.json:
        better = {} if found is None else {"fits_with": found[0], "then": found[1].to_json()}
        more = {} if decoding is None else {"decoding": dataclasses.asdict(decoding)}
        output.emit(output.to_json(plan.to_json() | better | more))
    else:
        output.emit(page(plan))
        if decoding is not None:
            output.emit(decoding.sentence())
        if plan.fits is False:
            nothing = "\nnothing tried makes it fit: more devices"
            output.emit(f"\nfits with   {found[0]}:\n{page(found[1])}" if found else nothing)
    return int(plan.fits is False or (decoding is not None and decoding.fits is False))


def _check(experiment: "Experiment", options: argparse.Namespace, target: "Target") -> None:
    """Options that have no meaning together, or none here, before anything takes minutes."""
    from jaxlm.plan.decode import check_decodes

    if options.compile and (not options.sweep or options.formula):
        raise Usage("--compile N is for a --sweep without --formula: leave it out, or give --sweep alone beside it")
    if options.sweep and (options.decode or options.mesh):
        raise Usage("--sweep tries all meshes, and --mesh and --decode are for one: leave them out, or --sweep")
    absent = f"nothing here can compile for {target.name} ({target.compiler})" if target.devices is None else ""
    if options.compile and absent:
        raise UserError(f"--compile {options.compile}: {absent}: leave it out for figures by formula")
    if options.decode:
        check_decodes(experiment.model)
        if absent:
            raise UserError(f"--decode {options.decode}: {absent}, and a decoding step has no formula: leave it out")


def _parser() -> ExperimentParser:
    parser = ExperimentParser("plan", VERBS["plan"])
    text = "`v5e:4x4`, `v5p:2x2x4`, `h100:8`, `h100:2x8` (nodes x GPUs), or `here` (the default)"
    parser.add_argument("--topology", default="here", metavar="T", help=text)
    parser.add_argument("--slices", type=whole(1), default=1, metavar="N", help="so many of them, over a slow network")
    add_mesh_option(parser)
    add_memory_options(parser)
    parser.add_argument("--price", type=_price, metavar="P", help="of a chip for an hour: then there is a cost")
    parser.add_argument("--decode", type=whole(1), metavar="ROWS", help="plan a decoding step of so many rows, too")
    parser.add_argument("--sweep", action="store_true", help="rank meshes and micro-batches instead, by formula")
    text = "of a sweep, compile the best N and rank these by what the compiler says (default: none)"
    parser.add_argument("--compile", type=whole(1), default=0, metavar="N", help=text)
    parser.add_argument("--formula", action="store_true", help="compile nothing: figures in seconds, good to a third")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of words")
    return parser


def _early(argv: list[str]) -> str:
    """The topology, before JAX is imported: it decides which devices JAX may touch."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--topology", default="here")
    try:
        return early.parse_known_args(argv)[0].topology
    except SystemExit:  # the parser of the verb will say what is wrong
        return "here"


def _price(text: str) -> float:
    price = float(text)
    if not price > 0:
        raise ValueError
    return price
