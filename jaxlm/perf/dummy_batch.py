"""Synthetic batches with the shapes of a run, made from the experiment without its data."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jaxlm.data.batching.batches import RunningText
from jaxlm.data.batching.bucketing import Buckets
from jaxlm.data.pretraining.token_types import IS_TEXT, STARTS_WORD
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.simple import WordsWithChars
from jaxlm.experiment import Experiment
from jaxlm.models.properties import check_positions
from jaxlm.types import Batch

DUMMY_ID = 4
"""The id of an ordinary token."""


def synthetic_batch(experiment: Experiment) -> Batch:
    """A full batch without padding: NumPy arrays with the shapes of training; for buckets, whose shapes are fitted to
    data, the batch of the longest texts that they admit."""
    batching: Any = experiment.batching
    if isinstance(batching, RunningText):
        document = np.full(batching.tokens + batching.length, DUMMY_ID, np.int32)
        symbols = np.arange(DUMMY_ID + 1, DUMMY_ID + 1 + batching.length)  # ids of masks or sentinels
        flags = np.full(DUMMY_ID + 1 + batching.length, IS_TEXT + STARTS_WORD, np.uint8)
        columns = {"target": Ragged.from_rows([document] * 2), "symbol": Ragged.from_rows([symbols])}
        columns["piece"] = Ragged(flags, np.arange(len(flags) + 1))
        batches = batching.batches(columns, experiment.seed)
        if not getattr(batching, "isolate_documents", False):  # the documents of the data may be shorter than a row
            check_positions(experiment.model, batches.longest_example())
        return batches[0]
    if isinstance(batching, Buckets):
        longest = max(batching.lengths or (batching.max_length,))
        longest = min(longest, batching.tokens // batching.row_multiple)  # a batch has at least `row_multiple` rows
    else:
        longest = batching.length
    source_length = min(getattr(batching, "source_length", None) or longest, longest) - 1
    target_length = longest - 1
    rows = {"source": np.full(source_length, DUMMY_ID), "target": np.full(target_length, DUMMY_ID)}
    rows |= {"label": np.full(source_length, 0), "class": np.full(1, 0), "loss_mask": np.ones(target_length + 1)}
    rows |= {f"other_{name}": rows[name] for name in ("target", "loss_mask")}
    columns = {name: Ragged.from_rows([rows[name]]) for name in experiment.task.batch_columns if name in rows}
    if "number" in experiment.task.batch_columns:
        columns["class"] = Ragged.from_rows([np.zeros(1)], np.float32)
    if "other_target" in columns:
        columns["reference"] = Ragged.from_rows([np.zeros(2)], np.float32)
    if isinstance(experiment.tokenizer, WordsWithChars):
        columns["character"] = Ragged.from_rows([np.full(4, DUMMY_ID)] * source_length)
    return batching.batches(columns, experiment.seed)[0]


def batch_summary(batch: Batch) -> str:
    """`96 rows of 256 + 256 positions`."""
    sides = [side for side in (batch.source_BS, batch.target_BT) if side is not None]
    return f"{len(sides[0]):,} rows of {' + '.join(f'{side.shape[1]:,}' for side in sides)} positions"


def num_positions(batch: Batch) -> int:
    """The positions that count as tokens: those of the target, or of the source in batches without a target."""
    return (batch.source_BS if batch.target_BT is None else batch.target_BT).size


def shape_structs(tree: Any) -> Any:
    """The tree with a ShapeDtypeStruct for each array."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def adapt_batching(experiment: Experiment, shards: int) -> tuple[Experiment, list[str]]:
    """The experiment with rows that divide among `shards` devices, and the options that make this change: batches of
    running text keep their rows and have fewer micro-batches, buckets and packs get a multiple of rows."""
    changed: list[str] = []
    batching: Any = experiment.batching
    if isinstance(batching, RunningText):
        rows = max(1, batching.rows // shards)
        grad_accum = max(n for n in range(1, rows + 1) if rows % n == 0 and n <= experiment.grad_accum)
        if grad_accum != experiment.grad_accum and batching.rows % shards == 0:
            experiment = dataclasses.replace(experiment, grad_accum=grad_accum)
            changed.append(f"--grad-accum {grad_accum}")
        return experiment, changed
    multiple = math.lcm(experiment.grad_accum * shards, 8)
    if batching.row_multiple % (experiment.grad_accum * shards):
        experiment = dataclasses.replace(experiment, batching=dataclasses.replace(batching, row_multiple=multiple))
        changed.append(f"--batching.row_multiple {multiple}")
    return experiment, changed
