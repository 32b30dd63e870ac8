"""The contestants of `benchmarks.train_step`: our training step, and several PyTorch programs."""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from benchmarks import batches
from benchmarks.contest import Run, cores

ALL = {
    "ours": "the step that `jaxlm train` runs",
    "library": "PyTorch, nn.Transformer",
    "written": "PyTorch, hand-written around scaled_dot_product_attention",
    "tuned": "the same with one product for q, k, v, cheaper dropout masks, and the loss in chunks",
    "library-compiled": "nn.Transformer and its loss under torch.compile",
    "written-compiled": "the hand-written model and its loss under torch.compile",
    "tuned-compiled": "the tuned model under torch.compile, its loss in chunks",
}
EAGER = ("library", "written", "tuned")
KINDS = {
    "nn.Transformer": ("library",),
    "best eager PyTorch": EAGER,
    "best PyTorch": tuple(name for name in ALL if name != "ours"),
}
"""Groups whose best contestant is compared with ours."""


def start(name: str, experiment: str, arrays: Path) -> tuple[dict[str, Any], Run]:
    """Build the contestant and run it once in every batch shape."""
    made = batches.load(arrays)
    step, facts = _ours(experiment) if name == "ours" else _torch(name, experiment)
    begin = time.perf_counter()
    for _ in range(2):
        for batch in batches.first_of_each_shape(made):
            step(batch)
    facts["compile_seconds"] = time.perf_counter() - begin

    def run(steps: int) -> list[float]:
        seconds = []
        for batch in made[:steps]:
            begin = time.perf_counter()
            step(batch)
            seconds.append(time.perf_counter() - begin)
        return seconds

    return facts, run


def _ours(name: str) -> tuple[Any, dict[str, Any]]:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAXLM_CACHE"] = ""  # so that compilation is measured, not read from an earlier run
    from jaxlm import runtime

    runtime.configure_process()
    import jax

    from jaxlm.experiment import load_experiment
    from jaxlm.models.properties import dummy_batch
    from jaxlm.training.state import create_train_state
    from jaxlm.training.step import StepConfig, make_train_step
    from jaxlm.types import Batch

    chosen = load_experiment(name)
    # As PyTorch's module: post-norm, no clipping.
    model = chosen.model.clone(norm="post")
    optimizer = dataclasses.replace(chosen.optimizer, clip=0.0).build(chosen.steps)
    rate = chosen.optimizer.schedule.build(chosen.steps)
    compiled = make_train_step(model, chosen.objective, optimizer, rate, StepConfig(chosen.seed))
    state = jax.jit(lambda: create_train_state(model, optimizer, dummy_batch(), chosen.seed))()

    def step(batch: batches.Arrays) -> None:
        nonlocal state
        state, metrics = compiled(state, Batch(**batch))
        jax.block_until_ready((state, metrics))

    return step, {"parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params))}


def _torch(name: str, experiment: str) -> tuple[Any, dict[str, Any]]:
    from jaxlm import runtime

    runtime.configure_malloc()  # helps PyTorch too
    import torch

    from benchmarks import torch_transformer as models
    from jaxlm.experiment import load_experiment

    torch.set_num_threads(cores())
    torch.manual_seed(0)
    chosen, kind = load_experiment(experiment), name.partition("-")[0]
    model = {"library": models.Library, "written": models.Written, "tuned": models.Tuned}[kind](chosen.model)
    table, smoothing, config = model.table.weight, chosen.objective.label_smoothing, chosen.optimizer
    # The three forms of Adam (loop, foreach, fused) take the same time here within the noise.
    rate = config.schedule.build(chosen.steps)
    adam = {"lr": float(rate(0)), "betas": (config.b1, config.b2), "eps": config.eps, "fused": True}
    optimizer = torch.optim.Adam(model.parameters(), **adam)

    def loss(source, source_valid, target, real, label):
        features = model(source, source_valid, target).flatten(0, 1)[real]
        return models.whole_loss(features, table, label, smoothing)

    features = model
    if name.endswith("-compiled"):
        loss, features = torch.compile(loss, dynamic=True), torch.compile(model, dynamic=True)

    def step(batch: batches.Arrays) -> float:
        source, source_valid, target, target_valid, label = (torch.from_numpy(batch[key]) for key in batches.FIELDS)
        # The output layer sees real tokens only: no slower than ignore_index, and less work.
        real = target_valid.flatten().nonzero()[:, 0]
        labels = label.flatten()[real].long()
        optimizer.zero_grad(set_to_none=True)
        if kind == "tuned":
            x = features(source, source_valid, target).flatten(0, 1)[real]
            total = models.chunked_backward(x, table, labels, smoothing)
        else:
            total = loss(source, source_valid, target, real, labels)
            total.backward()
        optimizer.step()
        return total.item()

    return step, {"parameters": sum(parameter.numel() for parameter in model.parameters())}
