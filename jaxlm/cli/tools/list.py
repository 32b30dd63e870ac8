"""`jaxlm list`: the experiments, one per line, without importing them."""

from jaxlm.cli.experiments import list_experiments
from jaxlm.cli.parser import COMMANDS, CommandParser


def main(argv: list[str]) -> int:
    """Print the name and the first docstring line of every variant."""
    summary = COMMANDS["list"] + ": those in ./experiments and those of the library"
    CommandParser("list", summary).parse(argv)
    summaries = list_experiments()
    width = max(map(len, summaries), default=0)
    for name, text in summaries.items():
        print(f"{name:{width}}  {text}".rstrip())
    if not summaries:
        print("no experiments here: write experiments/NAME.py with a function `-> Experiment`")
    return 0
