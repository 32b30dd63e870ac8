"""An experiment is one frozen object: everything that decides what a run computes, and nothing about the machine."""

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn

from jaxlm.data.batching.bucketing import Buckets
from jaxlm.data.batching.lm_windows import Windows
from jaxlm.data.batching.packing import Packing
from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.errors import UserError
from jaxlm.finetuning import FineTuning
from jaxlm.objectives.next_token import NextToken
from jaxlm.optim import SGD, AdamW
from jaxlm.tasks.base import Task


@dataclass(frozen=True)
class Experiment:
    """What is trained, on what, how, and how it is judged.

    Attributes:
      task, tokenizer, model, batching, optimizer, objective: the parts, each its own config.
      tuning: where the parameters come from, which of them are trained, and what is added to them.
      steps: updates in all.
      seed: of initialisation, dropout and the order of the data.
      accumulate: micro-batches an update; the update is the same for any number.
      ema: decay of the moving average of parameters; 0 keeps none. Evaluation then uses the average.
      average_after: evaluations without a better figure after which the parameters of all further steps are averaged,
        and the average is what is evaluated (NT-ASGD, Merity et al. 2018, section 4); 0 never does.
      log_every: steps between two lines of metrics.jsonl.
      evaluate_every: steps between two evaluations on the validation split.
      checkpoint_every: steps between two checkpoints.
      keep: checkpoints that stay, beside the best.
      average: checkpoints whose mean `evaluate` and `predict` use (1: the best one).
      best: the validation figure that names the best checkpoint and that patience watches (of a loss or a perplexity
        less is better, of anything else more).
      patience: evaluations without a better figure after which the run stops; 0 never stops it.
    """

    task: Task
    model: nn.Module
    tokenizer: Any = SentencePiece()
    batching: Buckets | Packing | Windows = Buckets()
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
        for name in (
            "steps",
            "grad_accum",
            "log_every",
            "evaluate_every",
            "checkpoint_every",
            "keep_checkpoints",
            "average_last",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: expected 1 or more")
        if self.ema_decay and self.nt_asgd_patience:
            found = f"ema_decay = {self.ema_decay} and nt_asgd_patience = {self.nt_asgd_patience}"
            raise UserError(f"{found}: one average at a time, set one of them to 0")

    @property
    def averaging(self) -> str:
        """Which average of the parameters is kept beside them: "ema", "mean" or ""."""
        return "ema" if self.ema_decay else "mean" if self.nt_asgd_patience else ""


RESUMABLE_FIELDS = (
    "steps",
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "average_last",
    "best_metric",
    "patience",
)
"""Fields that a resumed run may change: what was computed so far does not depend on them."""


def load_experiment(name: str) -> Experiment:
    """`package.module`, `path/to/file.py`, either with `:variant`, the function that returns the Experiment.

    Without a variant the function is `experiment`. Raises UserError that names what exists.
    """
    where, _, variant = name.partition(":") if not name[1:3] == ":\\" else (name, "", "")
    module = _import_module(where)
    makers = variants(module)
    own = [name for name, maker in makers.items() if getattr(maker, "__module__", None) == module.__name__]
    variant = variant or ("experiment" if "experiment" in own else next(iter(own), ""))
    if variant not in makers:
        unmarked = callable(getattr(module, variant, None)) if variant else False
        cure = f"annotate it: def {variant}() -> Experiment" if unmarked else f"it has {', '.join(own) or 'none'}"
        asked = f"no variant {variant!r}" if variant else "no function of its own that is annotated `-> Experiment`"
        raise UserError(f"{where} has {asked}; {cure}")
    made = makers[variant]()
    if not isinstance(made, Experiment):
        raise UserError(f"{where}:{variant} returned a {type(made).__name__}, expected a jaxlm.experiment.Experiment")
    return made


def variants(module: ModuleType) -> dict:
    """The public functions of a module that are annotated to return an Experiment, in the order of the file."""
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {
        name: value
        for name, value in public.items()
        if getattr(value, "__annotations__", {}).get("return") in (Experiment, "Experiment")
    }


def _import_module(path_or_name: str) -> ModuleType:
    if path_or_name.endswith(".py") or "/" in path_or_name:
        file = Path(path_or_name)
        if not file.is_file() or file.suffix != ".py":
            raise UserError(f"no experiment file {path_or_name}: see `jaxlm list` for those that exist")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None  # it ends in .py
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(file.stem, module)
        spec.loader.exec_module(module)
        return module
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(path_or_name)
    except ModuleNotFoundError as error:
        if error.name and (path_or_name == error.name or path_or_name.startswith(error.name + ".")):
            raise UserError(f"no experiment {path_or_name!r}: see `jaxlm list` for those that exist") from None
        raise
