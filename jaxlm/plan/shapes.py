"""The shapes that a run will have, from the experiment alone: its batch without its data, and its smallest changes."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jaxlm.data.batching import Buckets
from jaxlm.data.collate import Batches
from jaxlm.data.denoising import PrefixLM, SpanCorruption
from jaxlm.data.masked_rows import MaskedRows
from jaxlm.data.pieces import BEGINS, TEXT
from jaxlm.data.ragged import Ragged
from jaxlm.data.spelling import SpelledWords
from jaxlm.data.windows import Windows
from jaxlm.experiment import Experiment
from jaxlm.types import Batch

ID = 4
"""Some id that is no special one."""
RUNNING = (Windows, MaskedRows, SpanCorruption, PrefixLM)
"""Batches of so many rows out of running text."""


def batch_of(experiment: Experiment) -> Batch:
    """A whole batch, all tokens real: NumPy arrays of the shapes that training will have.

    Buckets are fitted to data, which is not looked at: theirs is the batch of the longest texts that they admit.
    """
    batching: Any = experiment.batching
    if isinstance(batching, RUNNING):
        return batching.plan(_running_text(batching.tokens + batching.length, batching.length), experiment.seed)[0]
    if isinstance(batching, Buckets):
        longest = max(batching.lengths or (batching.max_length,))
        longest = min(longest, batching.tokens // batching.multiple)  # a batch has its least number of rows
    else:
        longest = batching.length
    source = getattr(batching, "source_length", None) or longest
    columns = _columns(experiment, min(source, longest) - 1, longest - 1)
    plan = batching.plan(columns, experiment.seed)
    return Batches(columns, plan)[0]


def _columns(experiment: Experiment, source: int, target: int) -> dict[str, Ragged]:
    """One example of so many ids in every column that the task's batches are made of."""
    known = {"source": (source, ID), "target": (target, ID), "label": (source, 0), "class": (1, 0)}
    columns = {name: Ragged.of([np.full(*known[name])]) for name in experiment.task.reads if name in known}
    if "number" in experiment.task.reads:
        columns["class"] = Ragged.of([np.zeros(1, np.float32)])
    if isinstance(experiment.tokenizer, SpelledWords):
        columns["character"] = Ragged.of([np.full(4, ID)] * source)
    return columns


def _running_text(tokens: int, symbols: int) -> dict[str, Ragged]:
    """Two documents of so many ids each, what these are good for, and ids that hide text."""
    kinds = np.full(ID + 1 + symbols, TEXT + BEGINS, np.uint8)
    columns = {"target": Ragged.of([np.full(tokens, ID, np.int32)] * 2)}
    columns["piece"] = Ragged(kinds, np.arange(len(kinds) + 1))
    return columns | {"symbol": Ragged.of([np.arange(ID + 1, ID + 1 + symbols)])}


def described(batch: Batch) -> str:
    """`96 rows of 256 + 256 positions`."""
    sides = [side for side in (batch.source_BS, batch.target_BT) if side is not None]
    return f"{len(sides[0]):,} rows of {' + '.join(f'{side.shape[1]:,}' for side in sides)} positions"


def positions(batch: Batch) -> int:
    """What is counted as tokens: positions of the target, or of the source where there is no target."""
    return (batch.source_BS if batch.target_BT is None else batch.target_BT).size


def shapes_of(tree: Any) -> Any:
    """The same as ShapeDtypeStructs."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def fitted(experiment: Experiment, shards: int) -> tuple[Experiment, list[str]]:
    """The experiment with rows that so many devices can share, and the options that say what was changed.

    Rows of running text stay; there are fewer micro-batches. Of buckets and packs, rows become a multiple of the
    devices.
    """
    changed: list[str] = []
    batching: Any = experiment.batching
    if isinstance(batching, RUNNING):
        most = max(1, batching.rows // shards)
        accumulate = max(n for n in range(1, most + 1) if most % n == 0 and n <= experiment.accumulate)
        if accumulate != experiment.accumulate and batching.rows % shards == 0:
            experiment = dataclasses.replace(experiment, accumulate=accumulate)
            changed.append(f"--accumulate {accumulate}")
        return experiment, changed
    multiple = math.lcm(experiment.accumulate * shards, 8)
    if batching.multiple % (experiment.accumulate * shards):
        experiment = dataclasses.replace(experiment, batching=dataclasses.replace(batching, multiple=multiple))
        changed.append(f"--batching.multiple {multiple}")
    return experiment, changed
