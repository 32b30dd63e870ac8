"""`jaxlm show EXPERIMENT`: the configuration, the parameters, the batch and the FLOPs of a step. Trains nothing."""

from jaxlm.cli.overrides import ExperimentParser
from jaxlm.cli.parser import COMMANDS
from jaxlm.config.display import format_config


def main(argv: list[str]) -> int:
    """Print everything to stdout."""
    experiment, options = ExperimentParser("show", COMMANDS["show"]).parse_experiment(argv)
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
