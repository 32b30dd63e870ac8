"""`jaxlm show EXPERIMENT`: the configuration, the parameters, the batch and the FLOPs of a step. Trains nothing."""

from itertools import groupby
from typing import Any

from jaxlm.cli.overrides import ExperimentParser
from jaxlm.cli.parser import COMMANDS
from jaxlm.config.display import format_config
from jaxlm.config.serialization import to_json
from jaxlm.data.catalog import data_sets_of
from jaxlm.errors import UserError


def main(argv: list[str]) -> int:
    """Print everything to stdout."""
    parser = ExperimentParser("show", COMMANDS["show"])
    text = (
        "print only the first training dialogue, with the tokens that are trained on marked; fits the tokenizer first"
    )
    parser.add_flag("--example", text)
    experiment, options = parser.parse_experiment(argv)
    if options.example:
        return _show_example(experiment)
    import jax

    from jaxlm.perf.flops import FLOPS_CONVENTION, count_step
    from jaxlm.pytree import partition
    from jaxlm.training.initialize import resolve_init

    experiment = resolve_init(experiment)
    params, steps = experiment.abstract_params(), experiment.steps
    trainable = sum(leaf.size for leaf in jax.tree.leaves(partition(params, experiment.finetuning.is_trainable)[0]))
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    total = sum(sizes.values())
    print(f"{options.experiment}\n")
    print(format_config(experiment))
    if names := data_sets_of(to_json(experiment)):
        print(f"\ndata {', '.join(names)} (`jaxlm data get {' '.join(names)}`)")
    print(f"\nparameters {total:,}" + (f", of which {trainable:,} are trained" if trainable < total else ""))
    for name, size in sizes.items():
        print(f"  {name:24}{size:>16,}  {size / total:6.1%}")
    kind = type(experiment.batching).__name__
    micro_batches = f", in {experiment.grad_accum} micro-batches" if experiment.grad_accum > 1 else ""
    print(f"\nbatch {experiment.batching.tokens:,} target positions at most ({kind}){micro_batches}; {steps:,} steps")
    if hasattr(experiment.model, "fit"):
        print("FLOPs not counted: the model is fitted in closed form, in one pass over the data")
    else:
        flops = count_step(experiment).full
        print(f"FLOPs {flops:.3g} a step with a full batch, {flops * steps:.3g} in all: {FLOPS_CONVENTION}")
    return 0


def _show_example(experiment: Any) -> int:
    """Print the tokens of the first training dialogue, in lines of `prompt` and of `loss`, the trained ones."""
    from jaxlm.tasks.instruction_tuning import InstructionTuning
    from jaxlm.training.initialize import resolve_init
    from jaxlm.workdir import Workdir

    experiment = resolve_init(experiment)
    task, init = experiment.task, experiment.finetuning.init
    if not isinstance(task, InstructionTuning):
        raise UserError(f"show --example: the task {type(task).__name__} has no dialogues; InstructionTuning has")
    tokenizer = Workdir(init).load_tokenizer() if init else experiment.tokenizer.fit(task.texts())
    (row,) = task.encoder(tokenizer).encode([next(iter(task.train))])
    labels = [*row.ids.tolist(), tokenizer.special.eos]
    for trained, group in groupby(zip(labels, row.loss_mask.tolist(), strict=True), key=lambda pair: pair[1]):
        texts = [tokenizer.decode([[index]])[0] or f"<{index}>" for index, _ in group]
        print(f"{'loss  ' if trained else 'prompt'} {len(texts):5}  {' '.join(map(repr, texts))}")
    print(f"{int(row.loss_mask.sum())} of {len(labels)} labels are trained")
    return 0
