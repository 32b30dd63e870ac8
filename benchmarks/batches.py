"""Batches for a speed measurement: those of an experiment's data, or synthetic ones of the same lengths."""

import dataclasses
from pathlib import Path

import numpy as np

from jaxlm.data.batching.collate import collate
from jaxlm.data.ragged import Ragged
from jaxlm.data.storage.token_cache import encode_pairs
from jaxlm.data.tokenizers.base import EOS
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment

FIELDS = ("source_BS", "source_valid_BS", "target_BT", "target_valid_BT", "label_BT")
Arrays = dict[str, np.ndarray]

MULTI30K = {"mean": 2.57, "deviation": 0.29, "ratio_deviation": 0.18, "pairs": 29_000}
"""Mean and deviation of the log source length, deviation of the log length ratio, pairs; with 10k joint ids."""


def make(experiment: Experiment, steps: int, tokens: int, length: int) -> tuple[list[Arrays], str]:
    """`steps` padded batches in the order of training, and their origin.

    With `length`, rows of exactly `length` tokens on both sides. Otherwise the experiment's data in batches of `tokens`
    target positions; without the data, random ids of Multi30k's lengths.
    """
    if length:
        rows = max(tokens // length, 1)
        columns = _random(np.full(rows * steps, length - 1), np.full(rows * steps, length - 1), experiment.model.vocab)
        chosen = [np.arange(k * rows, (k + 1) * rows) for k in range(steps)]
        batches = [collate(columns, items, np.arange(rows), rows, length, length, packed=False) for items in chosen]
        return [_arrays(batch) for batch in batches], f"random ids, {rows} rows of {length} + {length} tokens"
    batching = dataclasses.replace(experiment.batching, tokens=tokens)
    try:
        columns, origin = _real(experiment), experiment.task.train.describe()
    except UserError:
        columns = _synthetic(experiment.model.vocab)
        origin = "random ids of Multi30k's lengths (its text was not found)"
    planned = batching.batches(columns, experiment.seed, experiment.grad_accum)
    return [_arrays(planned[k]) for k in range(steps)], origin


def save(batches: list[Arrays], file: Path) -> None:
    """Write the file that every contestant reads."""
    np.savez(file, **{f"{k}/{name}": array for k, batch in enumerate(batches) for name, array in batch.items()})


def load(file: Path) -> list[Arrays]:
    """The batches that `save` wrote."""
    with np.load(file) as stored:
        count = len(stored.files) // len(FIELDS)
        return [{name: stored[f"{k}/{name}"] for name in FIELDS} for k in range(count)]


def first_of_each_shape(batches: list[Arrays]) -> list[Arrays]:
    """One batch of each shape, for a warm-up."""
    by_shape: dict[tuple, Arrays] = {}
    for batch in batches:
        by_shape.setdefault((batch["source_BS"].shape, batch["target_BT"].shape), batch)
    return list(by_shape.values())


def _real(experiment: Experiment) -> dict[str, Ragged]:
    tokenizer = experiment.tokenizer.fit(experiment.task.texts())
    return dict(encode_pairs(experiment.task.train, tokenizer))


def _synthetic(vocab: int) -> dict[str, Ragged]:
    rng = np.random.default_rng(0)
    log_source = rng.normal(MULTI30K["mean"], MULTI30K["deviation"], MULTI30K["pairs"])
    log_target = log_source + rng.normal(0.0, MULTI30K["ratio_deviation"], MULTI30K["pairs"])
    lengths = [np.clip(np.exp(log).round().astype(np.int64), 3, 56) for log in (log_source, log_target)]
    return _random(*lengths, vocab)


def _random(source: np.ndarray, target: np.ndarray, vocab: int) -> dict[str, Ragged]:
    """Ids with Zipf's distribution (1 / rank), so that embedding rows repeat as in text."""
    rng = np.random.default_rng(1)

    def column(lengths: np.ndarray) -> Ragged:
        rank = np.exp(rng.uniform(0.0, np.log(vocab - EOS - 1), int(lengths.sum()))).astype(np.int32)
        return Ragged(EOS + rank, np.concatenate([[0], np.cumsum(lengths)]))

    return {"source": column(source), "target": column(target)}


def _arrays(batch: object) -> Arrays:
    return {name: getattr(batch, name) for name in FIELDS}
