"""`jaxlm bench EXPERIMENT`: some training steps on this machine, timed. Nothing is kept of them."""

from pathlib import Path
from typing import Any

from jaxlm.cli import output
from jaxlm.cli.options import add_memory_options, add_mesh_option
from jaxlm.cli.overrides import ExperimentParser
from jaxlm.cli.parser import COMMANDS, int_at_least
from jaxlm.errors import UserError


def main(argv: list[str]) -> int:
    """Print the figures, as lines or as one JSON object."""
    experiment, options = _parser().parse_experiment(argv)
    if options.profile is not None:
        _create_folder(options.profile)
    from jaxlm import runtime

    runtime.configure_process()
    from jaxlm.planner.bench import run_benchmark
    from jaxlm.training.initialize import resolve_init
    from jaxlm.training.run_options import RunOptions

    experiment = resolve_init(experiment)
    machine = RunOptions(options.mesh, options.shard_optimizer, options.remat, options.num_threads, options.num_workers)
    found = run_benchmark(
        experiment, output.print_stderr, options.measured_steps, machine, options.synthetic, options.profile
    )
    output.write_line(
        output.json_line({"experiment": options.experiment} | found) if options.json else _results_text(found)
    )
    return 0


def _parser() -> ExperimentParser:
    parser = ExperimentParser("bench", COMMANDS["bench"])
    text = "steps to time, after two of each shape of a batch that are not (default: 20)"
    parser.add_argument("--steps", dest="measured_steps", type=int_at_least(1), default=20, metavar="N", help=text)
    text = "one full batch over and over instead of the experiment's data"
    parser.add_argument("--synthetic", action="store_true", help=text)
    text = "write a trace of the timed steps, for XProf and Perfetto"
    parser.add_argument("--profile", type=Path, metavar="DIR", help=text)
    add_mesh_option(parser)
    add_memory_options(parser)
    parser.add_argument("--num-threads", type=int_at_least(0), default=1, metavar="N", help="threads that make batches")
    parser.add_argument(
        "--num-workers", type=int_at_least(0), default=0, metavar="N", help="processes that make batches"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def _create_folder(folder: Path) -> None:
    """Now, and not when the steps are done. Raises UserError where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--profile {folder}: no folder can be made there ({error.strerror}): name another one"
        ) from error


def _results_text(results: dict[str, Any]) -> str:
    at, compiling, memory = results["step_seconds"], results["compile_seconds"], results["peak_memory_bytes"]
    shares = [f"{value:.1%}" if isinstance(value, float) else value for value in results["mfu"].values()]
    size = memory if isinstance(memory, str) else f"{memory / 2**30:.2f} GiB"
    return "\n".join(
        [
            f"device      {results['devices']} x {results['device']} {results['mesh'] or ''}".rstrip(),
            f"tokens/s    {results['tokens_per_second']:,.0f} (without padding), {results['steps']} steps",
            f"step        {', '.join(f'{name} {seconds * 1000:,.1f} ms' for name, seconds in at.items())}",
            f"compile     {compiling['cold']:.1f} s cold, {compiling['warm']:.1f} s from the compilation cache",
            f"memory      {size} ({results['peak_memory_is']}), planned "
            f"{results['planned_memory_bytes'] / 2**30:.2f} GiB",
            f"arithmetic  {results['flops_per_second']['full']:.3g} FLOP/s "
            f"({results['flops_per_second']['causal_halved']:.3g})",
            f"MFU         {shares[0]} (halved: {shares[1]})",
            f"            {results['mfu_convention']}",
        ]
    )
