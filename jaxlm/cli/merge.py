"""`jaxlm merge D NEW`: a run with low-rank maps as a plain workdir, whose weights hold what the maps added."""

from pathlib import Path

from jaxlm.cli import output
from jaxlm.cli.trained import read_experiment, workdir_parser
from jaxlm.cli.usage import VERBS


def main(argv: list[str]) -> int:
    """Read, merge, write."""
    parser = workdir_parser("merge", VERBS["merge"])
    parser.add_argument("new", metavar="NEW", type=Path, help="the workdir to make")
    options = parser.parse(argv)
    read_experiment(options)
    from jaxlm.train.merge import merge

    steps = merge(options.workdir, options.new, options.average, options.step)
    output.note(f"{options.new} holds steps {steps} of {options.workdir}, merged")
    return 0
