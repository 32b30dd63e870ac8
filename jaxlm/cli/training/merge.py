"""`jaxlm merge D NEW`: merge the LoRA weights of a run into a plain workdir."""

from pathlib import Path

from jaxlm.cli import output
from jaxlm.cli.options import experiment_with_options, workdir_parser
from jaxlm.cli.parser import COMMANDS


def main(argv: list[str]) -> int:
    """Write the merged workdir."""
    parser = workdir_parser("merge", COMMANDS["merge"])
    parser.add_argument("new_workdir", metavar="NEW", type=Path, help="the workdir to create")
    options = parser.parse(argv)
    experiment_with_options(options)
    from jaxlm.training.merge_lora import merge_lora_workdir
    from jaxlm.workdir import Workdir

    source, target = Workdir(options.workdir), Workdir(options.new_workdir)
    steps = merge_lora_workdir(source, target, options.average_last, options.step)
    output.print_stderr(f"{options.new_workdir} holds steps {steps} of {options.workdir}, merged")
    return 0
