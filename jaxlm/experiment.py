"""An experiment is one frozen object: everything that decides what a run computes, and nothing about the machine."""

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn

from jaxlm.data.batching import Buckets, Packing
from jaxlm.data.sentencepiece import SentencePiece
from jaxlm.data.windows import Windows
from jaxlm.errors import UserError
from jaxlm.optim import SGD, AdamW
from jaxlm.tasks.task import Task
from jaxlm.train.objective import NextToken
from jaxlm.tuning import Tuning


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
    tuning: Tuning = Tuning()
    steps: int = 1000
    seed: int = 0
    accumulate: int = 1
    ema: float = 0.0
    average_after: int = 0
    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 500
    keep: int = 3
    average: int = 1
    best: str = "valid/bleu"
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "log_every", "evaluate_every", "checkpoint_every", "keep", "average"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: expected 1 or more")
        if self.ema and self.average_after:
            found = f"ema = {self.ema} and average_after = {self.average_after}"
            raise UserError(f"{found}: one average at a time, set one of them to 0")

    @property
    def averages(self) -> str:
        """Which average of the parameters is kept beside them: "ema", "mean" or ""."""
        return "ema" if self.ema else "mean" if self.average_after else ""


HARMLESS = ("steps", "log_every", "evaluate_every", "checkpoint_every", "keep", "average", "best", "patience")
"""Fields that a resumed run may change: what was computed so far does not depend on them."""


def load(name: str) -> Experiment:
    """`package.module`, `path/to/file.py`, either with `:variant`, the function that returns the Experiment.

    Without a variant the function is `experiment`. Raises UserError that names what exists.
    """
    where, _, variant = name.partition(":") if not name[1:3] == ":\\" else (name, "", "")
    module = _module(where)
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


def _module(where: str) -> ModuleType:
    if where.endswith(".py") or "/" in where:
        file = Path(where)
        if not file.is_file() or file.suffix != ".py":
            raise UserError(f"no experiment file {where}: see `jaxlm list` for those that exist")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None  # it ends in .py
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(file.stem, module)
        spec.loader.exec_module(module)
        return module
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(error.name + ".")):
            raise UserError(f"no experiment {where!r}: see `jaxlm list` for those that exist") from None
        raise
