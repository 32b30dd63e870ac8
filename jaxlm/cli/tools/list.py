"""`jaxlm list`: the experiments, one per line, without importing them."""

from jaxlm.cli.experiments import list_experiments
from jaxlm.cli.parser import COMMANDS, CommandParser


def main(argv: list[str]) -> int:
    """Print the name and the first docstring line of every variant."""
    summary = COMMANDS["list"] + ": those in ./experiments and those of the library"
    CommandParser("list", summary).parse(argv)
    entries = list_experiments()
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        print(f"{entry.name:{width}}  {entry.summary}".rstrip())
    if not entries:
        print("no experiments here: write experiments/NAME.py with a function `-> Experiment`")
    return 0
