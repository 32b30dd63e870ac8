"""The shapes that a run will have, from the experiment alone: its batch without its data, and its smallest changes."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jaxlm.data.batching.batches import RunningText
from jaxlm.data.batching.bucketing import Buckets
from jaxlm.data.pretraining.token_types import IS_TEXT, STARTS_WORD
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.word_char import WordsWithChars
from jaxlm.experiment import Experiment
from jaxlm.types import Batch

DUMMY_ID = 4
"""Some id that is no special one."""


def synthetic_batch(experiment: Experiment) -> Batch:
    """A whole batch, all tokens real: NumPy arrays of the shapes that training will have.

    Buckets are fitted to data, which is not looked at: theirs is the batch of the longest texts that they admit.
    """
    batching: Any = experiment.batching
    if isinstance(batching, RunningText):
        columns = _synthetic_running_text(batching.tokens + batching.length, batching.length)
        return batching.batches(columns, experiment.seed)[0]
    if isinstance(batching, Buckets):
        longest = max(batching.lengths or (batching.max_length,))
        longest = min(longest, batching.tokens // batching.row_multiple)  # a batch has its least number of rows
    else:
        longest = batching.length
    source = getattr(batching, "source_length", None) or longest
    columns = _synthetic_columns(experiment, min(source, longest) - 1, longest - 1)
    return batching.batches(columns, experiment.seed)[0]


def _synthetic_columns(experiment: Experiment, source_length: int, target_length: int) -> dict[str, Ragged]:
    """One example of so many ids in every column that the task's batches are made of."""
    known = {
        "source": (source_length, DUMMY_ID),
        "target": (target_length, DUMMY_ID),
        "label": (source_length, 0),
        "class": (1, 0),
    }
    columns = {
        name: Ragged.from_rows([np.full(*known[name])]) for name in experiment.task.batch_columns if name in known
    }
    if "number" in experiment.task.batch_columns:
        columns["class"] = Ragged.from_rows([np.zeros(1)], np.float32)
    if isinstance(experiment.tokenizer, WordsWithChars):
        columns["character"] = Ragged.from_rows([np.full(4, DUMMY_ID)] * source_length)
    return columns


def _synthetic_running_text(num_tokens: int, num_symbols: int) -> dict[str, Ragged]:
    """Two documents of so many ids each, what these are good for, and ids that hide text."""
    kinds = np.full(DUMMY_ID + 1 + num_symbols, IS_TEXT + STARTS_WORD, np.uint8)
    columns = {"target": Ragged.from_rows([np.full(num_tokens, DUMMY_ID, np.int32)] * 2)}
    columns["piece"] = Ragged(kinds, np.arange(len(kinds) + 1))
    return columns | {"symbol": Ragged.from_rows([np.arange(DUMMY_ID + 1, DUMMY_ID + 1 + num_symbols)])}


def batch_summary(batch: Batch) -> str:
    """`96 rows of 256 + 256 positions`."""
    sides = [side for side in (batch.source_BS, batch.target_BT) if side is not None]
    return f"{len(sides[0]):,} rows of {' + '.join(f'{side.shape[1]:,}' for side in sides)} positions"


def num_positions(batch: Batch) -> int:
    """What is counted as tokens: positions of the target, or of the source where there is no target."""
    return (batch.source_BS if batch.target_BT is None else batch.target_BT).size


def shape_structs(tree: Any) -> Any:
    """The same as ShapeDtypeStructs."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def adapt_batching(experiment: Experiment, shards: int) -> tuple[Experiment, list[str]]:
    """The experiment with rows that so many devices can share, and the options that say what was changed.

    Rows of running text stay; there are fewer micro-batches. Of buckets and packs, rows become a multiple of the
    devices.
    """
    changed: list[str] = []
    batching: Any = experiment.batching
    if isinstance(batching, RunningText):
        most = max(1, batching.rows // shards)
        accumulate = max(n for n in range(1, most + 1) if most % n == 0 and n <= experiment.grad_accum)
        if accumulate != experiment.grad_accum and batching.rows % shards == 0:
            experiment = dataclasses.replace(experiment, grad_accum=accumulate)
            changed.append(f"--grad-accum {accumulate}")
        return experiment, changed
    multiple = math.lcm(experiment.grad_accum * shards, 8)
    if batching.row_multiple % (experiment.grad_accum * shards):
        experiment = dataclasses.replace(experiment, batching=dataclasses.replace(batching, row_multiple=multiple))
        changed.append(f"--batching.row_multiple {multiple}")
    return experiment, changed
