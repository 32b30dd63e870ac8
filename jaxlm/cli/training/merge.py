"""`jaxlm merge D NEW`: a run with low-rank maps as a plain workdir, whose weights hold what the maps added."""

from pathlib import Path

from jaxlm.cli import output
from jaxlm.cli.options import experiment_with_options, workdir_parser
from jaxlm.cli.parser import COMMANDS


def main(argv: list[str]) -> int:
    """Read, merge, write."""
    parser = workdir_parser("merge", COMMANDS["merge"])
    parser.add_argument("new_workdir", metavar="NEW", type=Path, help="the workdir to make")
    options = parser.parse(argv)
    experiment_with_options(options)
    from jaxlm.training.merge_lora import merge_lora_workdir
    from jaxlm.workdir import Workdir

    source, target = Workdir(options.workdir), Workdir(options.new_workdir)
    steps = merge_lora_workdir(source, target, options.average_last, options.step)
    output.print_stderr(f"{options.new_workdir} holds steps {steps} of {options.workdir}, merged")
    return 0
