"""`jaxlm train --dry-run`: everything up to the first step, in a temporary folder."""

import tempfile
from pathlib import Path
from typing import Any

import jax

from jaxlm.cli.output import print_stderr
from jaxlm.distributed.placement import put_batch
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.planner.estimates import compile_program, state_memory
from jaxlm.training.initialize import load_init_params, resolve_init
from jaxlm.training.run_options import RunOptions
from jaxlm.training.setup import load_data, open_run, setup_training
from jaxlm.workdir import Workdir


def dry_run(experiment: Experiment, workdir: Workdir, run_options: RunOptions) -> dict[str, Any]:
    """Set up a run and compile its first step: the shapes of the batch, parameters and bytes on a device.

    Writes nothing into the workdir. Raises UserError as training does before its first step, and without the memory.
    """
    experiment = resolve_init(experiment, workdir)
    workdir.check_same_experiment(experiment)
    with tempfile.TemporaryDirectory() as folder:
        copy = Workdir(Path(folder) / "run")
        if workdir.tokenizer_folder.is_dir():
            copy.copy_tokenizer(workdir)
        if hasattr(experiment.model, "fit"):
            columns = load_data(open_run(experiment, copy, print_stderr))
            return {"rows": {name: len(column) for name, column in columns.items()}}
        setup = setup_training(experiment, copy, print_stderr, run_options)
        if experiment.finetuning.init and not workdir.has_checkpoint():
            load_init_params(setup.compiled.init_state(), experiment, print_stderr)
        batch, state = setup.batches[0], setup.compiled.abstract_state
        shapes = {name: list(value.shape) for name, value in vars(batch).items() if value is not None}
        print_stderr(f"first batch: {', '.join(f'{name} {shape}' for name, shape in shapes.items())}")
        record: dict[str, Any] = {"batch": shapes}
        record["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        if getattr(experiment.objective, "uses_reference", False) or hasattr(experiment.task, "judge"):
            return record  # its batches need the answers or the log-probabilities of a model
        placed = jax.eval_shape(lambda: put_batch(batch, setup.mesh))
        print_stderr("compiling the first step")
        compiled, total, seconds = compile_program(setup.compiled.train_step, state, placed)
    if compiled is None:
        raise UserError(f"the step needs {total / 1e9:.1f} GB, more than a device has: `jaxlm plan` finds what helps")
    record["memory_bytes"] = state_memory(state, placed) | {"total": total}
    print_stderr(f"memory of a step on each device: {total / 1e6:,.1f} MB; nothing was written to {workdir}")
    return record | {"compile_seconds": round(seconds, 3)}
