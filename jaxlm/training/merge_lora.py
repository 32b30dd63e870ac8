"""A LoRA run as a plain workdir, with the low-rank matrices added to the weights: what `export-hf` needs."""

from dataclasses import replace

from jaxlm.errors import UserError
from jaxlm.finetuning import FineTuning
from jaxlm.workdir import Workdir


def merge_lora_workdir(
    source: Workdir, target: Workdir, average_last: int | None = None, step: int | None = None
) -> list[int]:
    """Write the merged model of `source` to the new workdir `target`; return the steps whose parameters it holds.

    Raises UserError if `source` has no LoRA, if it has adapters, which cannot be merged, or if `target` is not empty.
    """
    target.check_empty()
    finetuning = source.read_experiment().finetuning
    if finetuning.lora is None:
        raise UserError(f"{source} has no LoRA (finetuning.lora = None): it is a plain workdir already")
    if finetuning.adapters is not None:
        raise UserError(
            f"{source} has adapters, which are not part of any matrix and cannot be merged: use it as it is"
        )
    trained = source.load(average_last, step)
    merged = replace(trained.experiment, finetuning=FineTuning(), average_last=1)
    target.create(merged)
    target.copy_tokenizer(source)
    target.save_once(merged, trained.params, trained.steps[-1])
    return trained.steps
