"""The batches of a speed measurement: real ones of an experiment's plan, or synthetic ones of the same lengths."""

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
"""Mean logarithm of the source length, its deviation, and that of the ratio of lengths, with 10k joint ids."""


def make(experiment: Experiment, steps: int, tokens: int, length: int) -> tuple[list[Arrays], str]:
    """`steps` padded batches in the order of training, and where they come from.

    With `length`, rows of exactly that many tokens on both sides. Otherwise the experiment's data, cut into batches of
    `tokens` target positions by its own plan; where the data is absent, random ids of Multi30k's lengths.
    """
    if length:
        rows = max(tokens // length, 1)
        columns = _random(np.full(rows * steps, length - 1), np.full(rows * steps, length - 1), experiment.model.vocab)
        chosen = [np.arange(k * rows, (k + 1) * rows) for k in range(steps)]
        batches = [collate(columns, one, np.arange(rows), rows, length, length, packed=False) for one in chosen]
        return [_arrays(batch) for batch in batches], f"random ids, {rows} rows of {length} + {length} tokens"
    batching = dataclasses.replace(experiment.batching, tokens=tokens)
    try:
        columns, origin = _real(experiment), experiment.task.train.describe()
    except UserError:
        columns, origin = (
            _synthetic(experiment.model.vocab),
            "random ids of Multi30k's lengths (its text was not found)",
        )
    planned = batching.batches(columns, experiment.seed, experiment.grad_accum)
    return [_arrays(planned[k]) for k in range(steps)], origin


def save(batches: list[Arrays], file: Path) -> None:
    """Every contestant reads the same file."""
    np.savez(file, **{f"{k}/{name}": array for k, batch in enumerate(batches) for name, array in batch.items()})


def load(file: Path) -> list[Arrays]:
    """What `save` wrote."""
    with np.load(file) as stored:
        count = len(stored.files) // len(FIELDS)
        return [{name: stored[f"{k}/{name}"] for name in FIELDS} for k in range(count)]


def first_of_each_shape(batches: list[Arrays]) -> list[Arrays]:
    """What a warm-up must run through."""
    found: dict[tuple, Arrays] = {}
    for batch in batches:
        found.setdefault((batch["source_BS"].shape, batch["target_BT"].shape), batch)
    return list(found.values())


def _real(experiment: Experiment) -> dict[str, Ragged]:
    tokenizer = experiment.tokenizer.fit(experiment.task.texts())
    return dict(encode_pairs(experiment.task.train, tokenizer))


def _synthetic(vocab: int) -> dict[str, Ragged]:
    chance = np.random.default_rng(0)
    log_source = chance.normal(MULTI30K["mean"], MULTI30K["deviation"], MULTI30K["pairs"])
    log_target = log_source + chance.normal(0.0, MULTI30K["ratio_deviation"], MULTI30K["pairs"])
    lengths = [np.clip(np.exp(log).round().astype(np.int64), 3, 56) for log in (log_source, log_target)]
    return _random(*lengths, vocab)


def _random(source: np.ndarray, target: np.ndarray, vocab: int) -> dict[str, Ragged]:
    """Ids drawn as 1 / rank, as words are, so that embeddings see repeated rows."""
    chance = np.random.default_rng(1)

    def column(lengths: np.ndarray) -> Ragged:
        rank = np.exp(chance.uniform(0.0, np.log(vocab - EOS - 1), int(lengths.sum()))).astype(np.int32)
        return Ragged(EOS + rank, np.concatenate([[0], np.cumsum(lengths)]))

    return {"source": column(source), "target": column(target)}


def _arrays(batch: object) -> Arrays:
    return {name: getattr(batch, name) for name in FIELDS}
