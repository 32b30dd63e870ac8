"""Options that several commands share: checkpoint and search, constraints on generated text, devices and processes."""

import argparse
import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli.parser import (
    CommandParser,
    UsageError,
    add_trust_option,
    choice_of,
    finite_number,
    int_at_least,
    number_between,
)
from jaxlm.distributed.mesh_axes import parse_mesh_axes
from jaxlm.distributed.platforms import parse_choices
from jaxlm.errors import UserError
from jaxlm.workdir import Workdir

if TYPE_CHECKING:
    from jaxlm.distributed.multihost import CoordinatorConfig
    from jaxlm.experiment import Experiment
    from jaxlm.grammar.constraint import Constraint
    from jaxlm.pipeline.pipeline import Pipeline
    from jaxlm.training.run_options import RunOptions

MAX_TIMEOUT_MINUTES = 1_000_000
"""Two years; timers of threads end at three centuries."""


def _add_constraint_options(parser: CommandParser) -> None:
    """The constraints on generated text; at most one kind may be given."""
    group = parser.add_argument_group("constraints on the text (at most one kind)")
    text = "the whole text matches R, a regular expression of Python's re without look-around and back-references"
    group.add_argument("--regex", metavar="R", help=text)
    text = "the text is one of the given choices (repeat for each choice)"
    group.add_argument("--choice", action="append", default=[], metavar="TEXT", help=text)
    group.add_argument("--choices", type=Path, metavar="FILE", help="the text is a line of FILE, or a --choice")
    text = "the text is JSON that is valid for this schema"
    group.add_argument("--json-schema", type=Path, metavar="FILE", help=text)
    text = "the text between the tokens OPEN and CLOSE is copied from the source or the prompt"
    group.add_argument("--copy-between", nargs=2, metavar=("OPEN", "CLOSE"), help=text)
    text = "limit on the states of the automaton of a constraint, with which its memory grows (default: 20000)"
    group.add_argument("--max-states", type=int_at_least(1), metavar="N", default=20_000, help=text)


def read_constraint(options: argparse.Namespace) -> "Constraint | None":
    """The requested constraint, compiled without JAX. Raises UsageError if it is invalid or if there are several."""
    from jaxlm.data.files import read_lines
    from jaxlm.grammar import constraint

    file, limit = options.choices, options.max_states
    lines = read_lines(file.absolute()) if file else ()  # read one by one: a refusal comes before the last
    makers = {
        "--regex": (options.regex, lambda: constraint.regex(options.regex, limit)),
        "--choice": (options.choice or file, lambda: constraint.choices(itertools.chain(options.choice, lines), limit)),
        "--json-schema": (options.json_schema, lambda: constraint.json_schema(options.json_schema, limit)),
        "--copy-between": (options.copy_between, lambda: constraint.copy_from_source(*options.copy_between)),
    }
    given = [name for name, (value, _) in makers.items() if value not in (None, [])]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]}: expected at most one kind of constraint on the text")
    try:
        return makers[given[0]][1]() if given else None
    except UserError as error:
        raise UsageError(f"{given[0]}: {error}") from error


def add_run_options(parser: CommandParser) -> None:
    """Options of devices, memory and processes; none of them changes the result."""
    add_device_options(parser)
    add_loader_options(parser)
    text = "address of process 0 (not needed with Slurm, Open MPI or on a TPU pod)"
    parser.add_argument("--coordinator-address", metavar="HOST:PORT", help=text)
    parser.add_int("--num-processes", "number of processes")
    parser.add_int("--process-id", "index of this process, from 0", minimum=0, metavar="I")
    text = "end the process if no step finishes within M minutes, 0: never (default: 30 with several processes, else 0)"
    minutes = number_between(0, MAX_TIMEOUT_MINUTES)
    parser.add_argument("--step-timeout", type=minutes, metavar="M", help=text)
    text = "write a trace of steps A to B to WORKDIR/profile; SIGUSR1 asks for one of the next five steps"
    parser.add_argument("--profile-steps", type=_parse_profile_steps, metavar="A:B", help=text)


def add_device_options(parser: CommandParser) -> None:
    """`--mesh`, `--shard-optimizer`, `--remat` and `--choices`."""
    _add_mesh_option(parser)
    text = "shard the optimizer state over the data axis too: less memory, slightly more communication"
    parser.add_flag("--shard-optimizer", text)
    text = "activations to recompute in the backward pass: none, all but matrix products (dots), or all (full)"
    parser.add_argument("--remat", choices=("none", "dots", "full"), help=text)
    text = "replace choices of the platform, such as unrolled_depth=0,static_loss=0 (see docs/planning.md)"
    parser.add_argument("--choices", type=_option_type(parse_choices), default={}, metavar="NAMES", help=text)


def add_loader_options(parser: CommandParser) -> None:
    """`--num-threads`, `--num-workers` and `--exact`."""
    parser.add_int("--num-threads", "threads that prepare batches", minimum=0, default=1)
    parser.add_int("--num-workers", "processes that prepare batches", minimum=0, default=0)
    text = "on a GPU: only operations that give the same bits each time, which may be slower"
    parser.add_flag("--exact", f"{text} (a CPU and a TPU always do)")


def _add_mesh_option(parser: CommandParser) -> None:
    text = "devices per axis of the mesh, such as data=2,fsdp=4 (axes: data, fsdp, sequence, tensor; -1: all others)"
    parser.add_argument("--mesh", type=_option_type(parse_mesh_axes), metavar="AXES", help=text)


def read_run_options(options: argparse.Namespace) -> "RunOptions":
    """The options of devices and memory and, if the command has them, of the data loader and the step timeout."""
    from jaxlm.training.run_options import RunOptions

    names = {"shard_optimizer": "shard_optimizer_state", "num_threads": "threads", "num_workers": "workers"}
    given = {names.get(name, name): value for name, value in vars(options).items()}
    if given.get("step_timeout") is not None:
        given["step_timeout"] *= 60  # from minutes
    fields = [field.name for field in dataclasses.fields(RunOptions)]
    return RunOptions(**{name: given[name] for name in fields if name in given})


def read_coordinator(options: argparse.Namespace) -> "CoordinatorConfig | None":
    """The address and index of this process, if given. Raises UsageError if only some of the options are given."""
    from jaxlm.distributed.multihost import CoordinatorConfig

    given = options.coordinator_address, options.num_processes, options.process_id
    if all(value is None for value in given):
        return None
    if None in given or options.process_id >= options.num_processes:
        raise UsageError(
            "--coordinator-address HOST:PORT, --num-processes N and --process-id I (0 to N - 1) go together: found "
            f"--coordinator-address {given[0]} --num-processes {given[1]} --process-id {given[2]}"
        )
    return CoordinatorConfig(*given)


def _parse_profile_steps(text: str) -> tuple[int, int]:
    from jaxlm.training.run_options import MAX_PROFILE_STEPS

    match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last < first + MAX_PROFILE_STEPS:
        problem = f"expected A:B, at most {MAX_PROFILE_STEPS} steps counted from 1, such as 20:24"
        raise argparse.ArgumentTypeError(f"{problem}; found {text!r:.40}")
    return first, last


def _option_type(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of an option that a function of a lower floor parses."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except UserError as error:
            raise UsageError(str(error)) from None

    return convert


def workdir_parser(command: str, summary: str, *groups: str) -> CommandParser:
    """A parser of a command on a workdir: options that select a checkpoint, and those of some `OPTION_GROUPS`."""
    parser = CommandParser(command, summary)
    nargs = "?" if command == "evaluate" else None  # without one it scores two files
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, nargs=nargs, help="the folder of a training run")
    checkpoint = parser.add_mutually_exclusive_group()
    text = "average the last N checkpoints (1: use the best one; default: as in the experiment)"
    checkpoint.add_argument("--average-last", type=int_at_least(1), metavar="N", help=text)
    checkpoint.add_argument("--step", type=int_at_least(0), metavar="K", help="use the checkpoint of step K")
    parser.add_int("--batch-tokens", "source positions per batch (default: as in the experiment)")
    _add_mesh_option(parser)
    add_trust_option(parser)
    for group in groups:
        OPTION_GROUPS[group](parser)
    return parser


def _add_model_options(parser: CommandParser) -> None:
    """Options of weight precision and ensembles."""
    text = "weights: float32 (the default), bfloat16, int8 (one scale per channel), int8_dynamic (int8 activations too)"
    precision = choice_of("jaxlm.nn.weights.weight_formats", "PRECISIONS", "float32")
    parser.add_argument("--precision", type=precision, default="float32", metavar="P", help=text)
    text = "ensemble with the model of this run, which must have the same tokenizer"
    parser.add_list("--ensemble", text, Path, metavar="WORKDIR")
    text = "the quantity that an ensemble averages (default: probabilities)"
    parser.add_argument("--ensemble-mean", choices=("probabilities", "logarithms"), default="probabilities", help=text)


def _add_search_options(parser: CommandParser) -> None:
    """Options of beam search; the defaults are those of the experiment."""
    parser.add_int("--num-beams", "beam size (1: greedy search; default: as in the experiment)", metavar="K")
    text = "length penalty: rank by log-probability / length^A, or by the experiment's formula with exponent A"
    parser.add_argument("--length-penalty", type=finite_number, metavar="A", help=text)
    parser.add_int("--fixed-batch", "lines decoded at a time: an answer has the same bits for any other lines")


OPTION_GROUPS = {"constraint": _add_constraint_options, "model": _add_model_options, "search": _add_search_options}


def experiment_with_options(options: argparse.Namespace) -> "Experiment":
    """The workdir's experiment with the command's options. Checks the folder before JAX is imported.

    Raises UsageError for an option that does not apply to the task.
    """
    folder = Workdir(options.workdir)
    folder.check()
    from jaxlm import runtime

    runtime.configure_process()
    experiment = folder.read_experiment()
    task: Any = experiment.task
    given, search = vars(options), task.search
    n_best = given.get("n_best") or 1
    changes: dict[str, Any] = {}
    if search is None:
        unused = [name for name in ("num_beams", "length_penalty", "fixed_batch", "attention") if given.get(name)]
        unused += ["n_best"] if n_best > 1 else []
        if unused:
            raise UsageError(f"--{unused[0].replace('_', '-')}: the task {type(task).__name__} does not search")
        if options.batch_tokens and hasattr(task, "batch_tokens"):
            changes = {"batch_tokens": options.batch_tokens}
        if given.get("split_words"):
            if task.recipe != "tag":
                raise UsageError(f"--split-words: the task {type(task).__name__} does not tag words of raw text")
            changes["split_words"] = True
    else:
        num_beams = given.get("num_beams") or search.beam.num_beams
        if given.get("num_beams") and n_best > num_beams:
            raise UsageError(f"--n-best {n_best} needs --num-beams {n_best} or more, found --num-beams {num_beams}")
        of_beam: dict[str, Any] = {"num_beams": max(num_beams, n_best), "num_return_sequences": n_best}
        if given.get("length_penalty") is not None:
            penalty = "power" if search.beam.length_penalty_kind == "none" else search.beam.length_penalty_kind
            of_beam |= {"length_penalty": options.length_penalty, "length_penalty_kind": penalty}
        tokens, attention = options.batch_tokens or search.batch_tokens, given.get("attention") or False
        beam = dataclasses.replace(search.beam, **of_beam)
        of_search = {"batch_tokens": tokens, "attention": attention, "fixed_batch": given.get("fixed_batch")}
        changes = {"search": dataclasses.replace(search, beam=beam, **of_search)}
    return dataclasses.replace(experiment, task=dataclasses.replace(task, **changes))


def load_pipeline(options: argparse.Namespace, experiment: "Experiment | None" = None) -> "Pipeline":
    """The trained model that the options select, with their search."""
    experiment = experiment or experiment_with_options(options)
    from jaxlm.pipeline.pipeline import load

    names = ("average_last", "step", "mesh", "precision", "ensemble", "ensemble_mean")
    pipeline = load(options.workdir, **{name: getattr(options, name) for name in names if hasattr(options, name)})
    return dataclasses.replace(pipeline, experiment=experiment)
