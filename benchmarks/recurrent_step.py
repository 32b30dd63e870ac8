"""Step time of a recurrent language model's training step against PyTorch: same model, batches and machine.

    python -m benchmarks.recurrent_step               all cores
    python -m benchmarks.recurrent_step --cores 1     without threads that wait for one another
    python -m benchmarks.recurrent_step --tie         the output weights are the embeddings

The medium LSTM of Zaremba et al. 2014: 2 layers of 650, 20 rows of 35 tokens, 10,000 words, dropout 0.5, plain gradient
descent with its gradient clipped at 5, the state carried from batch to batch, float32. The contestants:

    ours     the step that `jaxlm train` runs on `RecurrentLM`
    scan     the same with the loop differentiated by JAX, without the gradient of `jaxlm.nn.rnn.scan`
    torch    torch.nn.LSTM, which uses oneDNN's LSTM on a CPU

Each is a process of its own, warm before the first round, and all take turns. Compilation is reported separately.

Expected: a step is 56 GFLOP, so the products dominate (80 ms of the 100 ms of one layer's loop on one core); summing dU
inside the loop costs most of the remaining time; sigmoids recomputed in the backward loop do not matter. Measured, in
CPU time on one core of a machine busy with other work:

- `unroll` with its gradient takes 109 ms a layer, the plain scan 156; both layers with all their products 330 and 385.
- Reading U by columns in the backward loop doubles the time of its products; a transposed copy of U does not.
- A hand-written gradient of the LSTM gates takes 101 to 109 ms, JAX's own 100 to 110. So JAX's own is used.
- Carries and gates with the batch last: 97 ms for 100, not worth two transposes. Unrolling by 2 or 5 is slower.
- PyTorch's LSTM takes 273 ms, ours 330: MKL's products are faster at 20 rows.
- The loss takes 328 ms in five chunks, 227 in one, PyTorch's 211: products with fewer rows cost more per row.
- The whole step on one core: 682 ms of CPU time, PyTorch 487 (0.71; 0.83 with the loss in one chunk). The gain of
  `unroll` does not show in it: `scan` took 0.97, 1.03 and 1.00 times our time in three contests.
- On two busy cores PyTorch's threads wait for one another: its median step is 3.6 to 5 times as long as ours, while its
  best step has been as short as 0.74 of our best.
"""

import os
from typing import Any

import numpy as np

from benchmarks.contest import Run
from benchmarks.steps import Step, compare, options, quick_torch, warm

VOCAB, WIDTH, LAYERS, LENGTH, ROWS, DROPOUT, CLIP = 10_000, 650, 2, 35, 20, 0.5, 5.0


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = options(__doc__, ("ours", "scan", "torch"))
    parser.add_argument("--tie", action="store_true", help="tie the output to the embeddings")
    parsed = parser.parse_args()
    worker_options = ["--tie"] if parsed.tie else []
    compare("recurrent_step", parsed, lambda: _start(parsed.worker, parsed.tie), *worker_options)


def _start(name: str, tie: bool) -> tuple[dict[str, Any], Run]:
    step, parameters = _torch(tie) if name == "torch" else _ours(tie, name == "scan")
    ids_BT = np.random.default_rng(0).integers(0, VOCAB, (ROWS, 64 * LENGTH + 1), dtype=np.int32)
    return warm(step, parameters, [ids_BT[:, start : start + LENGTH + 1] for start in range(0, 64 * LENGTH, LENGTH)])


def _ours(tie: bool, plain_scan: bool) -> tuple[Step, int]:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAXLM_CACHE"] = ""  # so that compilation is measured, not read from an earlier run
    from jaxlm import runtime

    runtime.configure_process()
    import jax

    from jaxlm.models.rnn_lm import RecurrentLM
    from jaxlm.nn.rnn import layers, scan
    from jaxlm.nn.rnn.cells import LSTM
    from jaxlm.objectives.next_token import NextToken
    from jaxlm.optim import SGD
    from jaxlm.training.state import create_train_state
    from jaxlm.training.step import make_train_step
    from jaxlm.types import Batch

    if plain_scan:
        layers.unroll = lambda *arguments: scan._unroll_forward(*arguments)[0]

    def batch(window_BT: np.ndarray) -> Batch:
        return Batch(target_BT=window_BT[:, :-1], label_BT=window_BT[:, 1:], target_valid_BT=valid_BT, reset_B=reset_B)

    valid_BT, reset_B = np.ones((ROWS, LENGTH), bool), np.zeros(ROWS, bool)
    network = layers.Recurrent(LSTM(WIDTH), LAYERS, dropout=DROPOUT)
    model = RecurrentLM(VOCAB, WIDTH, network, dropout=DROPOUT, tie_embeddings=tie)
    config = SGD(clip=CLIP)
    optimizer, example = config.build(1), batch(np.zeros((ROWS, LENGTH + 1), np.int32))
    compiled = make_train_step(model, NextToken(), optimizer, config.schedule.build(1))
    state = jax.jit(lambda: create_train_state(model, optimizer, example, 0, carry_rows=ROWS))()

    def step(window_BT: np.ndarray) -> None:
        nonlocal state
        state, metrics = compiled(state, batch(window_BT))
        jax.block_until_ready((state, metrics))

    return step, sum(leaf.size for leaf in jax.tree.leaves(state.params))


def _torch(tie: bool) -> tuple[Step, int]:
    torch = quick_torch()
    nn = torch.nn
    embedding, output = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
    if tie:
        output.weight = embedding.weight
    lstm, dropout = nn.LSTM(WIDTH, WIDTH, LAYERS, batch_first=True, dropout=DROPOUT), nn.Dropout(DROPOUT)
    parameters = list(nn.ModuleList([embedding, lstm, output]).parameters())
    optimizer, state = torch.optim.SGD(parameters, lr=1.0), None

    def step(window_BT: np.ndarray) -> float:
        nonlocal state
        ids_BT = torch.from_numpy(window_BT).long()
        optimizer.zero_grad(set_to_none=True)
        hidden_BTD, state = lstm(dropout(embedding(ids_BT[:, :-1])), state)
        state = tuple(part.detach() for part in state)
        logits = output(dropout(hidden_BTD)).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, ids_BT[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        return loss.item()

    return step, sum(parameter.numel() for parameter in parameters)


if __name__ == "__main__":
    main()
