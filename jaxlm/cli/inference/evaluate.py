"""`jaxlm evaluate D`: the scores of a split or of other files as one JSON object, the last line of stdout; or those of
two tree files."""

import argparse
import dataclasses
from itertools import islice
from pathlib import Path
from types import FunctionType
from typing import Any

from jaxlm.cli import output
from jaxlm.cli.experiments import load_object
from jaxlm.cli.options import experiment_with_options, load_pipeline, workdir_parser
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError, add_bad_line_option, add_columns_option
from jaxlm.config.checks import MAX_SEED
from jaxlm.errors import UserError
from jaxlm.filesystem import write_atomic

AGAINST_OPTIONS = ("judge", "temperature", "seed", "max_tokens", "limit", "out")


def main(argv: list[str]) -> int:
    """Decode the split and score it."""
    parser = workdir_parser("evaluate", COMMANDS["evaluate"], "search", "model")
    text = "train, valid, test (the default) or another test set of the experiment"
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--split", default="test", help=text)
    text = "score these files instead: read as the test split is, or else by their endings"
    data.add_argument("--data", nargs="+", metavar="FILE", help=text)
    add_columns_option(parser)
    add_bad_line_option(parser, ("error", "replace", "skip"), None)
    parser.add_flag("--json", "print the scores as JSON on a terminal too")
    _add_against_options(parser)
    _add_file_options(parser)
    options = parser.parse(argv)
    if options.gold or options.predicted or options.workdir is None:
        return _score_files(options)
    given = [option for option in AGAINST_OPTIONS if getattr(options, option) is not None]
    if given and not options.against:
        raise UsageError(f"--{given[0].replace('_', '-')} belongs to a comparison: add --against WORKDIR")
    experiment = experiment_with_options(options)
    if options.data:
        experiment = _with_data(experiment, options)
    elif options.columns or options.on_bad_line:
        raise UsageError("--columns and --on-bad-line belong to other files: add --data FILE")
    try:
        described = experiment.task.describe(options.split)
    except UserError as error:
        raise UsageError(str(error)) from error
    output.print_stderr(f"{options.split}: {described}")
    pipeline = load_pipeline(options, experiment)
    if options.against:
        return _compare(options, pipeline)
    clock = output.Clock()
    with output.progress_bar(experiment.task.count(options.split), options.split) as progress:
        scores = pipeline.evaluate(options.split, clock.watch(progress))
    record: dict[str, Any] = {"workdir": str(options.workdir), "checkpoints": pipeline.steps}
    record |= {"data": options.data} if options.data else {}
    if experiment.task.search is not None:
        names = ("num_beams", "length_penalty_kind", "length_penalty")
        record["search"] = {name: getattr(experiment.task.search.beam, name) for name in names}
    record |= clock.rates(scores["lines"])
    output.write_result(scores | record, options.json)
    return 0


def _with_data(experiment: Any, options: argparse.Namespace) -> Any:
    """The experiment with the files of --data as the split "data", read once: the first fault ends the command."""
    from jaxlm.cli.own_files import with_files
    from jaxlm.data.sources.transforms import Concat

    options.split = "data"
    task = with_files(experiment.task, "data", options.data, options.columns, options.on_bad_line)
    output.print_stderr(f"{' '.join(options.data)}: {Concat((task.split('data'),)).check()}")
    return dataclasses.replace(experiment, task=task)


def _add_against_options(parser: CommandParser) -> None:
    text = "another model that answers the same prompts; print the win rate (ties are halves), divergence and lengths"
    parser.add_argument("--against", type=Path, metavar="WORKDIR", help=text)
    text = "with --against: reference (words shared with it; the default), shorter, longer, or module:name, a function "
    parser.add_argument("--judge", metavar="NAME", help=text + "(prompts, answers, rows) -> rewards")
    parser.add_float("--temperature", "with --against: softmax temperature of the answers (default: 0, greedy)")
    parser.add_int("--seed", "with --against: random seed (default: 0)", minimum=0, maximum=MAX_SEED)
    parser.add_int("--max-tokens", "with --against: maximum number of tokens of an answer (default: 100)")
    parser.add_int("--limit", "with --against: maximum number of prompts (default: 200)")
    text = "with --against: write prompts, answers and rewards as JSON lines"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)


def _compare(options: argparse.Namespace, pipeline: Any) -> int:
    from jaxlm.decode.sampling import Sampler
    from jaxlm.inference.generate import GenerationDefaults
    from jaxlm.pipeline.comparison import LENGTH_JUDGES, compare, read_prompts

    name, clock = options.judge or "reference", output.Clock()
    judge = name if name in ("reference", *LENGTH_JUDGES) else load_object(name, FunctionType)
    items = list(islice(read_prompts(pipeline.experiment.task.split(options.split)), options.limit or 200))
    changed = {"workdir": options.against, "step": None, "average_last": None}  # these choose a checkpoint of WORKDIR
    other = load_pipeline(argparse.Namespace(**vars(options) | changed))
    generation = GenerationDefaults(Sampler(temperature=options.temperature or 0.0), options.max_tokens or 100)
    figures, records = compare((pipeline, other), items, judge, generation, options.seed or 0)
    if options.out:
        write_atomic(options.out, "".join(output.json_line(record) + "\n" for record in records))
    record = {"workdir": str(options.workdir), "against": str(options.against), "split": options.split, "judge": name}
    output.write_result(record | figures | clock.rates(len(items)), options.json)
    return 0


def _add_file_options(parser: CommandParser) -> None:
    files = parser.add_argument_group("scores of trees in two files, in Penn brackets, without a model")
    files.add_argument("--gold", metavar="FILE", help="the true trees")
    files.add_argument("--predicted", metavar="FILE", help="the predicted trees, in step; a blank line: no answer")
    files.add_argument("--parameters", choices=("collins", "new"), default="collins", help="the parameters of EVALB")
    text = "compare the trees as they are in the files: outer labels such as ROOT then count, as in EVALB"
    files.add_argument("--raw", action="store_true", help=text)


def _score_files(options: argparse.Namespace) -> int:
    if options.workdir or not (options.gold and options.predicted):
        raise UsageError("expected a WORKDIR, or --gold FILE and --predicted FILE without one")
    from jaxlm.metrics.brackets import PARAMETERS, score_tree_files

    scores = score_tree_files(options.gold, options.predicted, PARAMETERS[options.parameters], options.raw)
    output.write_result(scores, options.json)
    return 0
