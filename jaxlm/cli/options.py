"""What the verbs that use a trained model share: options of checkpoint and search, and opening a workdir.

The options that say what generated text must be: an expression, choices, a JSON schema, quotations.

Options about the machine: how a run lies on its devices, and which other processes take part.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli.parser import CommandParser, UsageError, int_at_least
from jaxlm.distributed.mesh_axes import parse_mesh_axes
from jaxlm.errors import UserError
from jaxlm.workdir import Workdir

if TYPE_CHECKING:
    from jaxlm.distributed.multihost import CoordinatorConfig
    from jaxlm.experiment import Experiment
    from jaxlm.grammar.constraint import Constraint
    from jaxlm.pipeline.pipeline import Pipeline
    from jaxlm.training.run_options import RunOptions


def add_constraint_options(parser: CommandParser) -> None:
    """At most one kind of rule may be given."""
    rules = parser.add_argument_group("what the text must be (at most one kind)")
    text = "the whole text matches R, an expression of Python's re (no look-around, no back-references)"
    rules.add_argument("--regex", metavar="R", help=text)
    text = "the text is one of those given (any number of times)"
    rules.add_argument("--choice", action="append", default=[], metavar="TEXT", help=text)
    rules.add_argument("--choices", type=Path, metavar="FILE", help="the text is a line of FILE, or a --choice")
    rules.add_argument("--json-schema", type=Path, metavar="FILE", help="the text is JSON that this schema admits")
    text = "what stands between the tokens OPEN and CLOSE is copied from the source, or the prompt"
    rules.add_argument("--copy-between", nargs=2, metavar=("OPEN", "CLOSE"), help=text)


def read_constraint(options: argparse.Namespace) -> "Constraint | None":
    """The rule that is asked for, if any, without JAX. Raises Usage where it is wrong, or where there are several."""
    choices = bool(options.choice or options.choices)
    asked = {
        "--regex": options.regex is not None,
        "--choice": choices,
        "--json-schema": options.json_schema is not None,
    }
    given = [name for name, there in {**asked, "--copy-between": options.copy_between is not None}.items() if there]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]}: expected at most one kind of rule for the text")
    if not given:
        return None
    from jaxlm.data.files import read_lines
    from jaxlm.grammar import constraint

    try:
        if options.regex is not None:
            return constraint.regex(options.regex)
        if options.json_schema is not None:
            return constraint.json_schema(options.json_schema)
        if options.copy_between is not None:
            return constraint.copy_from_source(*options.copy_between)
        lines = read_lines(options.choices.absolute()) if options.choices else []
        return constraint.choices([*options.choice, *lines])
    except UserError as error:
        raise UsageError(f"{given[0]}: {error}") from error


def add_run_options(parser: CommandParser) -> None:
    """The options; none of them changes what is computed."""
    add_mesh_option(parser)
    add_memory_options(parser)
    text = "HOST:PORT of process 0, where nothing (Slurm, Open MPI, a TPU pod) tells the processes of each other"
    parser.add_argument("--coordinator-address", metavar="HOST:PORT", help=text)
    parser.add_argument("--num-processes", type=int_at_least(1), metavar="N", help="how many processes there are")
    parser.add_argument("--process-id", type=int_at_least(0), metavar="I", help="which one this is, from 0")
    text = "end the process if no step is done for so many minutes (default: never)"
    parser.add_argument("--step-timeout", type=float, default=0.0, metavar="M", help=text)


def add_memory_options(parser: CommandParser) -> None:
    """`--shard-optimizer` and `--remat`."""
    text = "split the optimizer's state over data too: less memory, a little more traffic"
    parser.add_argument("--shard-optimizer", action="store_true", help=text)
    text = "compute again, in the backward pass, what of each layer (default: as the model says)"
    parser.add_argument("--remat", choices=("none", "dots", "full"), help=text)


def add_mesh_option(parser: CommandParser) -> None:
    """`--mesh`."""
    text = "devices along each axis, as in data=2,fsdp=4 (axes: data, fsdp, sequence, tensor; -1: the rest)"
    parser.add_argument("--mesh", type=_parse_mesh, metavar="AXES", help=text)


def read_run_options(options: argparse.Namespace) -> tuple["RunOptions", "CoordinatorConfig | None"]:
    """What the options say. Raises Usage where they say only a part of it."""
    from jaxlm.distributed.multihost import CoordinatorConfig
    from jaxlm.training.run_options import RunOptions

    feeding = options.num_threads, options.num_workers, 60 * options.step_timeout
    machine = RunOptions(options.mesh, options.shard_optimizer, options.remat, *feeding)
    given = options.coordinator_address, options.num_processes, options.process_id
    if all(one is None for one in given):
        return machine, None
    if any(one is None for one in given) or options.process_id >= options.num_processes:
        raise UsageError(
            "--coordinator-address HOST:PORT, --num-processes N and --process-id I (0 to N - 1) go together: found "
            f"--coordinator-address {given[0]} --num-processes {given[1]} --process-id {given[2]}"
        )
    return machine, CoordinatorConfig(*given)


def _parse_mesh(text: str) -> dict[str, int]:
    try:
        return parse_mesh_axes(text)
    except UserError as error:
        raise UsageError(str(error)) from None


PRECISION_CHOICES = ("float32", "bfloat16", "int8", "int8_dynamic")
"""As `jaxlm.nn.weights.quantization` has them; here for an error without JAX."""


def workdir_parser(command: str, summary: str, **options: Any) -> CommandParser:
    """A parser for a verb that takes a workdir, with the options that choose a checkpoint."""
    parser = CommandParser(command, summary, **options)
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="the folder of a training run")
    which = parser.add_mutually_exclusive_group()
    text = "use the mean of the last N checkpoints (1: the best one; default: as the experiment says)"
    which.add_argument("--average-last", type=int_at_least(1), metavar="N", help=text)
    which.add_argument("--step", type=int_at_least(0), metavar="K", help="use the checkpoint of step K")
    text = "source positions a batch (default: as the experiment says)"
    parser.add_argument("--batch-tokens", type=int_at_least(1), metavar="N", help=text)
    add_mesh_option(parser)
    return parser


def add_model_options(parser: CommandParser) -> None:
    """Options of how the model computes, and with whom."""
    text = "of the weights: bfloat16, int8 (a scale a channel), or int8_dynamic (the activations too); default: float32"
    parser.add_argument("--precision", choices=PRECISION_CHOICES, default="float32", metavar="P", help=text)
    text = "decode with this run's model too (may be given several times); all must have one tokenizer"
    parser.add_argument("--ensemble", action="append", default=[], type=Path, metavar="WORKDIR", help=text)
    text = "the mean of an ensemble: of probabilities (the default) or of their logarithms"
    parser.add_argument("--ensemble-mean", choices=("probabilities", "logarithms"), default="probabilities", help=text)


def add_search_options(parser: CommandParser) -> None:
    """Options of beam search; what is not given is as the experiment says."""
    parser.add_argument("--num-beams", type=int_at_least(1), metavar="K", help="beam slots; 1 is greedy search")
    text = "length penalty: a score is log-probability / length^A (the power that the experiment's formula uses)"
    parser.add_argument("--length-penalty", type=float, metavar="A", help=text)


def experiment_with_options(options: argparse.Namespace) -> "Experiment":
    """The workdir's experiment with the verb's options. A folder that is none is told before JAX is imported."""
    folder = options.workdir
    Workdir(folder).check()
    from jaxlm import runtime

    runtime.configure_process()
    experiment = Workdir(folder).read_experiment()
    return dataclasses.replace(experiment, task=_with_task_options(experiment.task, options))


def load_pipeline(options: argparse.Namespace, experiment: "Experiment | None" = None) -> "Pipeline":
    """The trained model that the options name, with their search."""
    experiment = experiment or experiment_with_options(options)
    from jaxlm.pipeline.loading import load

    names = ("average_last", "step", "mesh", "precision", "ensemble", "ensemble_mean")
    pipeline = load(options.workdir, **{name: getattr(options, name) for name in names if hasattr(options, name)})
    return dataclasses.replace(pipeline, experiment=experiment)


def _with_task_options(task: Any, options: argparse.Namespace) -> Any:
    """The task with the options of this command. Raises Usage where it has no use for one."""
    if task.search is not None:
        return dataclasses.replace(task, search=_with_search_options(task.search, options))
    asked = [name for name in ("num_beams", "length_penalty", "attention") if getattr(options, name, None)]
    asked += ["n_best"] if (getattr(options, "n_best", None) or 1) > 1 else []
    if asked:
        raise UsageError(f"--{asked[0].replace('_', '-')}: the task {type(task).__name__} does not search")
    if options.batch_tokens and hasattr(task, "batch_tokens"):
        return dataclasses.replace(task, batch_tokens=options.batch_tokens)
    return task


def _with_search_options(search: Any, options: argparse.Namespace) -> Any:
    given = vars(options)
    size, returns = given.get("num_beams") or search.beam.num_beams, given.get("n_best") or 1
    if given.get("num_beams") and returns > size:
        raise UsageError(f"--n-best {returns} needs --num-beams {returns} or more, found --num-beams {size}")
    changes: dict[str, Any] = {"num_beams": max(size, returns), "num_return_sequences": returns}
    if given.get("length_penalty") is not None:
        penalty = "power" if search.beam.length_penalty_kind == "none" else search.beam.length_penalty_kind
        changes |= {"length_penalty": options.length_penalty, "length_penalty_kind": penalty}
    more = {"batch_tokens": options.batch_tokens or search.batch_tokens, "attention": given.get("attention") or False}
    return dataclasses.replace(search, beam=dataclasses.replace(search.beam, **changes), **more)
