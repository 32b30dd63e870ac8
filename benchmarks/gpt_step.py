"""Step time of a small GPT's training step against PyTorch eager: same model, batches and machine.

    python -m benchmarks.gpt_step               all cores
    python -m benchmarks.gpt_step --cores 1     without threads that wait for one another

nanoGPT's CPU setting: 4 layers of 4 heads, width 128, 12 windows of 64 characters, no biases, no dropout, output and
embeddings tied, AdamW with decay, clipping at 1, float32. The contestants:

    ours     the step that `jaxlm train experiments.char_gpt:cpu` runs
    torch    the same model around `scaled_dot_product_attention`, with fused AdamW; the loss is not read

Each is a process of its own, warm before the first round; they take turns, and each step ends before the next begins. A
step is 3.7 GFLOP, a few tens of milliseconds on two cores, so that the work around the products matters.
"""

import os
from typing import Any

import numpy as np

from benchmarks.contest import Run
from benchmarks.steps import Step, compare, options, quick_torch, warm

VOCAB, WIDTH, HEADS, LAYERS, LENGTH, ROWS = 69, 128, 4, 4, 64, 12
RATE, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.99), 0.1, 1.0


def main() -> None:
    """Measure and print; the last line is JSON."""
    parsed = options(__doc__, ("ours", "torch")).parse_args()
    compare("gpt_step", parsed, lambda: _start(parsed.worker))


def _start(name: str) -> tuple[dict[str, Any], Run]:
    step, parameters = _torch() if name == "torch" else _ours()
    ids_NBT = np.random.default_rng(0).integers(4, VOCAB, (64, ROWS, LENGTH + 1), dtype=np.int32)
    return warm(step, parameters, ids_NBT)


def _ours() -> tuple[Step, int]:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAXLM_CACHE"] = ""  # so that compilation is measured, not read from an earlier run
    from jaxlm import runtime

    runtime.configure_process()
    import jax

    from experiments.char_gpt import cpu
    from jaxlm.training.state import create_train_state
    from jaxlm.training.step import StepConfig, make_train_step
    from jaxlm.types import Batch

    experiment, valid_BT = cpu(), np.ones((ROWS, LENGTH), bool)
    optimizer = experiment.optimizer.build(experiment.steps)
    rate = experiment.optimizer.schedule.build(experiment.steps)
    compiled = make_train_step(experiment.model, experiment.objective, optimizer, rate, StepConfig(experiment.seed))

    def batch(ids_BT: np.ndarray) -> Batch:
        return Batch(target_BT=ids_BT[:, :-1], label_BT=ids_BT[:, 1:], target_valid_BT=valid_BT)

    example = batch(np.zeros((ROWS, LENGTH + 1), np.int32))
    state = jax.jit(lambda: create_train_state(experiment.model, optimizer, example, experiment.seed))()

    def step(ids_BT: np.ndarray) -> None:
        nonlocal state
        state, metrics = compiled(state, batch(ids_BT))
        jax.block_until_ready((state, metrics))

    return step, sum(leaf.size for leaf in jax.tree.leaves(state.params))


def _torch() -> tuple[Step, int]:
    torch = quick_torch()
    nn, functional = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.other_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.inward, self.outward = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

        def forward(self, x: Any) -> Any:
            parts = self.inward(self.norm(x)).split(WIDTH, -1)
            query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.outward(mixed.transpose(1, 2).flatten(2))
            return x + self.down(functional.gelu(self.up(self.other_norm(x)), approximate="tanh"))

    table, places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(1024, WIDTH)
    layers, last = nn.Sequential(*(Block() for _ in range(LAYERS))), nn.LayerNorm(WIDTH)
    parameters = list(nn.ModuleList([table, places, layers, last]).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True)

    def step(ids_BT: np.ndarray) -> None:
        ids = torch.from_numpy(ids_BT).long()
        optimizer.zero_grad(set_to_none=True)
        features = last(layers(table(ids[:, :-1]) + places.weight[:LENGTH]))
        logits = functional.linear(features, table.weight)
        functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()

    return step, sum(parameter.numel() for parameter in parameters)


if __name__ == "__main__":
    main()
