"""`jaxlm bench EXPERIMENT`: time some training steps on this machine, and keep nothing of them."""

from pathlib import Path
from typing import Any

from jaxlm.cli import output
from jaxlm.cli.options import add_device_options, add_loader_options, read_run_options
from jaxlm.cli.overrides import ExperimentParser
from jaxlm.cli.parser import COMMANDS, int_at_least
from jaxlm.errors import UserError


def main(argv: list[str]) -> int:
    """Print the figures as text or as one JSON object."""
    experiment, options = _parser().parse_experiment(argv)
    if options.profile is not None:  # fail before the steps run, not after them
        try:
            options.profile.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"cannot create the folder ({error.strerror}): name another one"
            raise UserError(f"--profile {options.profile}: {problem}") from error
    from jaxlm import runtime

    runtime.configure_process()
    from jaxlm.planner.bench import run_benchmark
    from jaxlm.training.initialize import resolve_init

    arguments = resolve_init(experiment), output.print_stderr, options.measured_steps, read_run_options(options)
    results = run_benchmark(
        *arguments, synthetic=options.synthetic, profile=options.profile, compile_times=not options.no_compile_times
    )
    record = {"experiment": options.experiment} | results
    output.write_line(output.json_line(record) if options.json else _results_text(results))
    return 0


def _parser() -> ExperimentParser:
    parser = ExperimentParser("bench", COMMANDS["bench"])
    text = "timed steps, after two warm-up steps of each batch shape (default: 20)"
    parser.add_argument("--steps", dest="measured_steps", type=int_at_least(1), default=20, metavar="N", help=text)
    parser.add_flag("--synthetic", "repeat one full synthetic batch instead of the experiment's data")
    text = "write a trace of the timed steps for XProf and Perfetto to DIR"
    parser.add_argument("--profile", type=Path, metavar="DIR", help=text)
    text = "compile once, with the compilation cache, instead of timing compilation without and with it"
    parser.add_flag("--no-compile-times", text)
    add_device_options(parser)
    add_loader_options(parser)
    parser.add_flag("--json", "print one JSON object")
    return parser


def _results_text(results: dict[str, Any]) -> str:
    from jaxlm.perf.chips import format_gib

    memory, names = results["peak_memory_bytes"], {"warm": "from the compilation cache", "first": "the first time"}
    compile_times = [f"{seconds:.1f} s {names.get(name, name)}" for name, seconds in results["compile_seconds"].items()]
    full, halved = (f"{share:.1%}" if isinstance(share, float) else share for share in results["mfu"].values())
    peak = memory if isinstance(memory, str) else f"{format_gib(memory)} GiB"
    step_times = [f"{name} {seconds * 1000:,.1f} ms" for name, seconds in results["step_seconds"].items()]
    lines = [
        f"device      {results['devices']} x {results['device']} {results['mesh'] or ''}".rstrip(),
        f"tokens/s    {results['tokens_per_second']:,.0f} (without padding), {results['steps']} steps",
        f"step        {', '.join(step_times)}",
        f"compile     {', '.join(compile_times)}",
        f"memory      {peak} ({results['peak_memory_is']}), planned {format_gib(results['planned_memory_bytes'])} GiB",
        "arithmetic  {full:.3g} FLOP/s (halved: {causal_halved:.3g})".format(**results["flops_per_second"]),
        f"MFU         {full} (halved: {halved})",
        f"            {results['mfu_convention']}",
    ]
    return "\n".join(lines)
