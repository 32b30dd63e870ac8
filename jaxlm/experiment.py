"""The experiment: one frozen object with everything that decides what a run computes, and nothing of the machine."""

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax

from jaxlm.config.display import differences
from jaxlm.config.serialization import check_config
from jaxlm.config.trust import import_module_or_file
from jaxlm.data.batching.batches import RunningText
from jaxlm.data.batching.bucketing import Buckets, Packing
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.errors import UserError
from jaxlm.finetuning import FineTuning
from jaxlm.inference.base import TrainedModel
from jaxlm.models.properties import abstract_params
from jaxlm.objectives.next_token import NextToken
from jaxlm.optim import SGD, AdamW
from jaxlm.tasks.base import Task
from jaxlm.types import Params


@dataclass(frozen=True)
class Experiment:
    """The model, its data, its training and its evaluation.

    Attributes:
      task, tokenizer, model, batching, optimizer, objective: the parts, each a config of its own.
      finetuning: initial parameters, trainable parameters, LoRA and adapters.
      steps: number of optimizer updates.
      seed: seed of initialization, dropout and the order of the data.
      grad_accum: number of micro-batches per update; any number gives the same update.
      ema_decay: decay of the exponential moving average of the parameters, which evaluation uses; 0: no average.
      nt_asgd_patience: number of evaluations without improvement after which training starts to average the parameters
        of all later steps and to evaluate the average (NT-ASGD, Merity et al. 2018, section 4); 0: never.
      log_every: steps between two lines of metrics.jsonl.
      evaluate_every, checkpoint_every: steps between two evaluations on the validation split, or two checkpoints.
      keep_checkpoints: number of newest checkpoints to keep, in addition to the best one.
      average_last: number of checkpoints whose mean `evaluate` and `predict` use; 1: the best one.
      best_metric: the validation metric that selects the best checkpoint and that `patience` watches (lower is better
        for a loss or a perplexity, higher for all others).
      patience: number of evaluations without improvement after which training stops; 0: never.
    """

    task: Task
    model: nn.Module
    tokenizer: Any = SentencePiece()
    batching: Buckets | Packing | RunningText = Buckets()
    optimizer: AdamW | SGD = AdamW()
    objective: Any = NextToken()
    finetuning: FineTuning = FineTuning()
    steps: int = 1000
    seed: int = 0
    grad_accum: int = 1
    ema_decay: float = 0.0
    nt_asgd_patience: int = 0
    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    average_last: int = 1
    best_metric: str = "valid/bleu"
    patience: int = 0

    def __post_init__(self) -> None:
        for name in (*INTERVALS, "grad_accum"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: expected 1 or more")
        if self.ema_decay and self.nt_asgd_patience:
            both = f"ema_decay = {self.ema_decay} and nt_asgd_patience = {self.nt_asgd_patience}"
            raise UserError(f"{both}: only one average can be kept, set one of them to 0")

    @property
    def averaging(self) -> str:
        """The kind of parameter average: "ema", "mean" (NT-ASGD) or "" (none)."""
        return "ema" if self.ema_decay else "mean" if self.nt_asgd_patience else ""

    def check_parts(self) -> None:
        """Raise UserError if the objective learns from what the task does not give, or by methods the model lacks."""
        column = getattr(self.objective, "learns_from", None)  # of an objective of one's own, it need not be known
        if column is None:
            return
        objective, task, model = (type(part).__name__ for part in (self.objective, self.task, self.model))
        if column not in self.task.batch_columns:
            fitting = [name for key, name in OBJECTIVES.items() if key in self.task.batch_columns]
            raise UserError(
                f"the objective {objective} learns from the column {column!r}, but the batches of the task {task} have "
                f"{', '.join(self.task.batch_columns)}: set objective={' or '.join(fitting)}, or choose another task"
            )
        methods = ("start", "extend", "readout") if column == "target" else ("__call__",)
        present = {name for base in type(self.model).__mro__ for name in vars(base)}
        if missing := [name for name in methods if name not in present]:
            raise UserError(
                f"the objective {objective} calls {', '.join(methods)}, and the model {model} has no "
                f"{', '.join(missing)}: choose a model of this kind (docs/models.md), or another task and objective"
            )

    def check_vocabulary(self, tokenizer: Tokenizer) -> None:
        """Raise UserError if the tokenizer and the model do not have the same number of ids."""
        vocab = getattr(self.model, "vocab", tokenizer.vocab_size)
        if tokenizer.vocab_size != vocab:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model embeds {vocab}: set both to one number "
                f"(--model.vocab {tokenizer.vocab_size}, or the tokenizer's vocab_size)"
            )

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters of a checkpoint: those of the model, of LoRA and of adapters."""
        add = self.finetuning.add_adapters
        return jax.eval_shape(lambda params: add(params, jax.random.key(0)), abstract_params(self.model))


@dataclass(frozen=True, eq=False)
class TrainedRun(TrainedModel):
    """The trained model of a run, its experiment, and the steps of the checkpoints whose mean the parameters are."""

    experiment: Experiment
    steps: list[int]


OBJECTIVES = {"target": "NextToken()", "label": "TokenClassification()", "number": "Regression()",
              "class": "SequenceClassification()"}  # fmt: skip
"""Column of a batch -> the objective that learns from it, for messages."""

INTERVALS = ("steps", "log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints", "average_last")


GRADIENT_FIELDS = ("optimizer", "objective", "finetuning", "grad_accum", "ema_decay", "nt_asgd_patience", "patience")


def check_closed_form(experiment: Experiment) -> None:
    """Raise UserError if an experiment whose model is fitted in closed form has fields of training by gradients."""
    if given := [name for name in GRADIENT_FIELDS if getattr(experiment, name) != getattr(Experiment, name)]:
        model = type(experiment.model).__name__
        raise UserError(f"{', '.join(given)}: {model} is fitted in closed form, without gradients: leave them out")


def identity_differences(new: Experiment, stored: Experiment, stored_name: str) -> list[str]:
    """Lines about the fields of `stored`, the experiment of a run, that differ from `new` and forbid to resume it."""
    # A resumed run may change these fields: the steps done so far do not depend on them.
    resumable = {name: getattr(new, name) for name in (*INTERVALS, "best_metric", "patience")}
    if getattr(new.optimizer.schedule, "needs_total_steps", False):
        del resumable["steps"]  # another number of steps is another learning rate from the first step on
    aligned: Any = replace(stored, **resumable)
    task: Any = new.task
    if type(aligned.task) is type(task):
        eval_only = {name: getattr(task, name) for name in task.eval_only_fields}
        aligned = replace(aligned, task=replace(aligned.task, **eval_only))
    return differences(new, aligned, stored_name)


def load_experiment(name: str) -> Experiment:
    """The experiment that a function of a module returns.

    Args:
      name: `package.module` or `path/to/file.py`, with `:variant`, the name of the function (default: `experiment`, or
        else the first one). Raises UserError that names the variants if there is no such module or function.
    """
    where, _, variant = name.partition(":") if not name[1:3] == ":\\" else (name, "", "")
    module = import_module_or_file(where)
    makers = variants(module)
    own = [name for name, maker in makers.items() if getattr(maker, "__module__", None) == module.__name__]
    variant = variant or ("experiment" if "experiment" in own else next(iter(own), ""))
    if variant not in makers:
        unmarked = callable(getattr(module, variant, None)) if variant else False
        cure = f"annotate it: def {variant}() -> Experiment" if unmarked else f"it has {', '.join(own) or 'none'}"
        missing = f"no variant {variant!r}" if variant else "no function of its own that is annotated `-> Experiment`"
        raise UserError(f"{where} has {missing}; {cure}")
    experiment = makers[variant]()
    if not isinstance(experiment, Experiment):
        returned = type(experiment).__name__
        raise UserError(f"{where}:{variant} returned a {returned}, expected a jaxlm.experiment.Experiment")
    check_config(experiment, variant)
    return experiment


def variants(module: ModuleType) -> dict:
    """The public functions of a module that are annotated to return an Experiment, in the order of the file."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__annotations__", {}).get("return") in (Experiment, "Experiment")
    }
