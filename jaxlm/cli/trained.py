"""What the verbs that use a trained model share: options of checkpoint and search, and opening a workdir."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli.machine import add_mesh_option
from jaxlm.cli.usage import Parser, Usage, whole
from jaxlm.errors import UserError

PRECISIONS = ("float32", "bfloat16", "int8", "int8_dynamic")
"""As `jaxlm.nn.quantized` has them; here for an error without JAX."""

if TYPE_CHECKING:
    from jaxlm.experiment import Experiment
    from jaxlm.workdir import Trained


def workdir_parser(verb: str, summary: str, **options: Any) -> Parser:
    """A parser for a verb that takes a workdir, with the options that choose a checkpoint."""
    parser = Parser(verb, summary, **options)
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="the folder of a training run")
    which = parser.add_mutually_exclusive_group()
    text = "use the mean of the last N checkpoints (1: the best one; default: as the experiment says)"
    which.add_argument("--average", type=whole(1), metavar="N", help=text)
    which.add_argument("--step", type=whole(0), metavar="K", help="use the checkpoint of step K")
    text = "source positions a batch (default: as the experiment says)"
    parser.add_argument("--batch-tokens", type=whole(1), metavar="N", help=text)
    add_mesh_option(parser)
    return parser


def add_model_options(parser: Parser) -> None:
    """Options of how the model computes, and with whom."""
    text = "of the weights: bfloat16, int8 (a scale a channel), or int8_dynamic (the activations too); default: float32"
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", metavar="P", help=text)
    text = "decode with this run's model too (may be given several times); all must have one tokenizer"
    parser.add_argument("--ensemble", action="append", default=[], type=Path, metavar="WORKDIR", help=text)
    text = "the mean of an ensemble: of probabilities (the default) or of their logarithms"
    parser.add_argument("--ensemble-mean", choices=("probabilities", "logarithms"), default="probabilities", help=text)


def add_search_options(parser: Parser) -> None:
    """Options of beam search; what is not given is as the experiment says."""
    parser.add_argument("--beam", type=whole(1), metavar="K", help="beam slots; 1 is greedy search")
    text = "length penalty: a score is log-probability / length^A (the power that the experiment's formula uses)"
    parser.add_argument("--alpha", type=float, metavar="A", help=text)


def read_experiment(options: argparse.Namespace) -> "Experiment":
    """The workdir's experiment with the verb's options. A folder that is none is told before JAX is imported."""
    folder = options.workdir
    if not (folder / "experiment.json").is_file():
        what = "is no workdir: it has no experiment.json" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}. `jaxlm train EXPERIMENT --workdir {folder}` makes one")
    from jaxlm import runtime, workdir

    runtime.prepare()
    experiment = workdir.read_experiment(folder)
    return dataclasses.replace(experiment, task=_chosen(experiment.task, options))


def open_run(options: argparse.Namespace, experiment: "Experiment | None" = None) -> "Trained":
    """The trained model that the options name, with their search."""
    experiment = experiment or read_experiment(options)
    import jax

    from jaxlm import workdir

    trained = workdir.load(options.workdir, options.average, options.step)
    others = [_member(options.workdir, folder) for folder in getattr(options, "ensemble", ())]
    runs = [dataclasses.replace(trained, experiment=experiment), *others]
    from jaxlm.nn.quantized import at_precision
    from jaxlm.nn.stack import cut_apart

    precision = getattr(options, "precision", "float32")
    parts = [at_precision(run.experiment.model, run.params, precision) for run in runs]
    model, params = parts[0]
    if others:
        from jaxlm.models.ensemble import Ensemble, joined_params

        model = Ensemble(tuple(model for model, _ in parts), options.ensemble_mean)
        params = joined_params([params for _, params in parts])
    if options.mesh:
        from jaxlm.parallel import layout, make_mesh

        params = jax.device_put(params, layout(params, make_mesh(options.mesh)))
    params = cut_apart(params)
    return dataclasses.replace(trained, experiment=dataclasses.replace(experiment, model=model), params=params)


def _member(first: Path, folder: Path) -> "Trained":
    """Another run of an ensemble. Raises UserError if its ids mean other things than those of the first."""
    from jaxlm import workdir

    member = workdir.load(folder)
    ours, theirs = ({path.name: path.read_bytes() for path in (one / "tokenizer").iterdir()} for one in (first, folder))
    if ours != theirs:
        raise UserError(
            f"{folder} has another tokenizer than {first}: an ensemble needs one; before training, copy "
            f"{first / 'tokenizer'} into the new workdir"
        )
    return member


def _chosen(task: Any, options: argparse.Namespace) -> Any:
    """The task with the options of this command. Raises Usage where it has no use for one."""
    if task.search is not None:
        return dataclasses.replace(task, search=_search(task.search, options))
    asked = [name for name in ("beam", "alpha", "attention") if getattr(options, name, None)]
    asked += ["n_best"] if (getattr(options, "n_best", None) or 1) > 1 else []
    if asked:
        raise Usage(f"--{asked[0].replace('_', '-')}: the task {type(task).__name__} does not search")
    if options.batch_tokens and hasattr(task, "tokens"):
        return dataclasses.replace(task, tokens=options.batch_tokens)
    return task


def _search(search: Any, options: argparse.Namespace) -> Any:
    given = vars(options)
    size, returns = given.get("beam") or search.beam.size, given.get("n_best") or 1
    if given.get("beam") and returns > size:
        raise Usage(f"--n-best {returns} needs --beam {returns} or more, found --beam {size}")
    changes: dict[str, Any] = {"size": max(size, returns), "returns": returns}
    if given.get("alpha") is not None:
        penalty = "power" if search.beam.penalty == "none" else search.beam.penalty
        changes |= {"alpha": options.alpha, "penalty": penalty}
    more = {"tokens": options.batch_tokens or search.tokens, "attention": given.get("attention") or False}
    return dataclasses.replace(search, beam=dataclasses.replace(search.beam, **changes), **more)
