"""`jaxlm evaluate D`: the scores of a split as one JSON object, the last line of stdout."""

from typing import Any

from jaxlm.cli import output
from jaxlm.cli.options import experiment_with_options, load_pipeline, workdir_parser
from jaxlm.cli.parser import COMMANDS, UsageError
from jaxlm.errors import UserError


def main(argv: list[str]) -> int:
    """Decode the split and score it."""
    parser = workdir_parser("evaluate", COMMANDS["evaluate"], "search", "model")
    text = "train, valid, test (the default) or another test set of the experiment"
    parser.add_argument("--split", default="test", help=text)
    options = parser.parse(argv)
    experiment = experiment_with_options(options)
    try:
        described = experiment.task.describe(options.split)
    except UserError as error:
        raise UsageError(str(error)) from error
    output.print_stderr(f"{options.split}: {described}")
    pipeline = load_pipeline(options, experiment)
    clock = output.Clock()
    with output.progress_bar(experiment.task.count(options.split)) as progress:
        scores = pipeline.evaluate(options.split, progress)
    record: dict[str, Any] = {"workdir": str(options.workdir), "checkpoints": pipeline.steps}
    if experiment.task.search is not None:
        names = ("num_beams", "length_penalty_kind", "length_penalty")
        record["search"] = {name: getattr(experiment.task.search.beam, name) for name in names}
    output.write_line(output.json_line(scores | record | clock.rates(scores["lines"])))
    return 0
