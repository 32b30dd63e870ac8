"""`jaxlm show EXPERIMENT`: the resolved config, the parameters, the batch, and what a step costs. Trains nothing."""

from jaxlm import config
from jaxlm.cli.overrides import ExperimentParser
from jaxlm.cli.parser import COMMANDS


def main(argv: list[str]) -> int:
    """Print it all to stdout."""
    experiment, options = ExperimentParser("show", COMMANDS["show"]).parse_experiment(argv)
    import jax

    from jaxlm.pytree import partition
    from jaxlm.training.initialize import resolve_init

    experiment = resolve_init(experiment)
    params = experiment.abstract_params()
    learnt = sum(leaf.size for leaf in jax.tree.leaves(partition(params, experiment.finetuning.is_trainable)[0]))
    parts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    total, tokens = sum(parts.values()), experiment.batching.tokens
    print(f"{options.experiment}\n")
    print(config.format_config(experiment))
    print(f"\nparameters {total:,}" + (f", of which {learnt:,} are trained" if learnt < total else ""))
    for name, count in parts.items():
        print(f"  {name:24}{count:>16,}  {count / total:6.1%}")
    kind = type(experiment.batching).__name__
    parts_of = f", in {experiment.grad_accum} micro-batches" if experiment.grad_accum > 1 else ""
    print(f"\nbatch {tokens:,} target positions at most ({kind}){parts_of}; {experiment.steps:,} steps")
    print(
        f"FLOPs {6.0 * total * tokens:.3g} a step, {6.0 * total * tokens * experiment.steps:.3g} in all: "
        "6 x parameters x target positions, the usual convention (forward and backward; attention and padding ignored)"
    )
    return 0
