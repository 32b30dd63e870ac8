"""`jaxlm merge D NEW`: merge the LoRA weights of a run into a plain workdir, which `export-hf` needs."""

from dataclasses import replace
from pathlib import Path

from jaxlm.cli import output
from jaxlm.cli.options import experiment_with_options, workdir_parser
from jaxlm.cli.parser import COMMANDS
from jaxlm.errors import UserError
from jaxlm.workdir import Workdir


def main(argv: list[str]) -> int:
    """Write the merged workdir."""
    parser = workdir_parser("merge", COMMANDS["merge"])
    parser.add_argument("new_workdir", metavar="NEW", type=Path, help="the workdir to create")
    options = parser.parse(argv)
    experiment_with_options(options)
    source, target = Workdir(options.workdir), Workdir(options.new_workdir)
    steps = merge_lora_workdir(source, target, options.average_last, options.step)
    output.print_stderr(f"{options.new_workdir} holds steps {steps} of {options.workdir}, merged")
    return 0


def merge_lora_workdir(
    source: Workdir, target: Workdir, average_last: int | None = None, step: int | None = None
) -> list[int]:
    """Write the merged model of `source` to the new workdir `target`; return the steps whose parameters it holds.

    Raises UserError if `source` has no LoRA, if it has adapters, which cannot be merged, or if `target` is not empty.
    """
    from jaxlm.finetuning import FineTuning

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
