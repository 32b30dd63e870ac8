"""`jaxlm evaluate D`: the scores of a split as one JSON object, the last line of stdout."""

from typing import Any

from jaxlm.cli import output
from jaxlm.cli.trained import add_model_options, add_search_options, open_run, read_experiment, workdir_parser
from jaxlm.cli.usage import VERBS, Usage
from jaxlm.errors import UserError


def main(argv: list[str]) -> int:
    """Decode the split and score it."""
    parser = workdir_parser("evaluate", VERBS["evaluate"])
    parser.add_argument("--split", default="test", help="train, valid, test or another test set of the experiment")
    add_search_options(parser)
    add_model_options(parser)
    options = parser.parse(argv)
    experiment = read_experiment(options)
    try:
        described = experiment.task.describe(options.split)
    except UserError as error:
        raise Usage(str(error)) from error
    output.note(f"{options.split}: {described}")
    trained, task = open_run(options, experiment), experiment.task
    clock = output.Clock()
    with output.bar(task.count(options.split)) as progress:
        scores = task.evaluate(trained.experiment.model, trained.params, trained.tokenizer, options.split, progress)
    found: dict[str, Any] = {"workdir": str(options.workdir), "checkpoints": trained.steps}
    if task.search is not None:
        beam = task.search.beam
        found["search"] = {"beam": beam.size, "penalty": beam.penalty, "alpha": beam.alpha}
    output.emit(output.to_json(scores | found | clock.rates(scores["lines"])))
    return 0
