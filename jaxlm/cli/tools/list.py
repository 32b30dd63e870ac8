"""`jaxlm list`: the experiments, a line each, without importing them."""

from jaxlm.cli.experiments import list_experiments
from jaxlm.cli.parser import CommandParser


def main(argv: list[str]) -> int:
    """Print name and first docstring line of every variant."""
    CommandParser("list", "The experiments of this folder and of the library: name, and what it reproduces.").parse(
        argv
    )
    found = list_experiments()
    width = max((len(entry.name) for entry in found), default=0)
    for entry in found:
        print(f"{entry.name:{width}}  {entry.summary}".rstrip())
    if not found:
        print("no experiments here: a file experiments/NAME.py with a function `-> Experiment` is one")
    return 0
