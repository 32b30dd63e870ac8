"""`jaxlm bench EXPERIMENT`: some training steps on this machine, timed. Nothing is kept of them."""

from pathlib import Path
from typing import Any

from jaxlm.cli import output
from jaxlm.cli.machine import add_memory_options, add_mesh_option
from jaxlm.cli.overrides import ExperimentParser
from jaxlm.cli.usage import VERBS, whole
from jaxlm.errors import UserError


def main(argv: list[str]) -> int:
    """Print the figures, as lines or as one JSON object."""
    experiment, options = _parser().parse_experiment(argv)
    if options.profile is not None:
        _check_folder(options.profile)
    from jaxlm import runtime

    runtime.prepare()
    from jaxlm.plan.bench import bench
    from jaxlm.train.machine import Machine
    from jaxlm.train.source import resolved

    experiment = resolved(experiment, Path("no run"))
    machine = Machine(options.mesh, options.split_moments, options.remat, options.threads, options.workers)
    found = bench(experiment, output.note, options.measured_steps, machine, options.synthetic, options.profile)
    output.emit(output.to_json({"experiment": options.experiment} | found) if options.json else _page(found))
    return 0


def _parser() -> ExperimentParser:
    parser = ExperimentParser("bench", VERBS["bench"])
    text = "steps to time, after two of each shape of a batch that are not (default: 20)"
    parser.add_argument("--steps", dest="measured_steps", type=whole(1), default=20, metavar="N", help=text)
    text = "one full batch over and over instead of the experiment's data"
    parser.add_argument("--synthetic", action="store_true", help=text)
    text = "write a trace of the timed steps, for XProf and Perfetto"
    parser.add_argument("--profile", type=Path, metavar="DIR", help=text)
    add_mesh_option(parser)
    add_memory_options(parser)
    parser.add_argument("--threads", type=whole(0), default=1, metavar="N", help="threads that make batches")
    parser.add_argument("--workers", type=whole(0), default=0, metavar="N", help="processes that make batches")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def _check_folder(folder: Path) -> None:
    """Now, and not when the steps are done. Raises UserError where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--profile {folder}: no folder can be made there ({error.strerror}): name another one"
        ) from error


def _page(found: dict[str, Any]) -> str:
    at, compiling, memory = found["step_seconds"], found["compile_seconds"], found["peak_memory_bytes"]
    shares = [f"{value:.1%}" if isinstance(value, float) else value for value in found["mfu"].values()]
    size = memory if isinstance(memory, str) else f"{memory / 2**30:.2f} GiB"
    return "\n".join(
        [
            f"device      {found['devices']} x {found['device']} {found['mesh'] or ''}".rstrip(),
            f"tokens/s    {found['tokens_per_second']:,.0f} (without padding), {found['steps']} steps",
            f"step        {', '.join(f'{name} {seconds * 1000:,.1f} ms' for name, seconds in at.items())}",
            f"compile     {compiling['cold']:.1f} s cold, {compiling['warm']:.1f} s from the compilation cache",
            f"memory      {size} ({found['peak_memory_is']}), planned {found['planned_memory_bytes'] / 2**30:.2f} GiB",
            f"arithmetic  {found['flops_per_second']['full']:.3g} FLOP/s ({found['flops_per_second']['halved']:.3g})",
            f"MFU         {shares[0]} (halved: {shares[1]})",
            f"            {found['mfu_convention']}",
        ]
    )
