"""A run of seconds: short sentences of a toy language, to be said backwards in another one."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import jax
import numpy as np

from jaxlm.checkpoint import Checkpoints
from jaxlm.data.batching import Buckets
from jaxlm.data.pairs import Pair, PairSource
from jaxlm.data.symbols import Words
from jaxlm.data.text import BadLines
from jaxlm.decode.options import Beam
from jaxlm.experiment import Experiment
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.seq2seq import Seq2Seq
from jaxlm.nn.cell import LSTM as Cell
from jaxlm.nn.recurrent import Recurrent
from jaxlm.optim import AdamW, Constant
from jaxlm.tasks.translate import Search
from jaxlm.tasks.translation import Translation
from jaxlm.train.objective import NextToken

LETTERS = "abcdefgh"
VOCAB = 4 + 2 * len(LETTERS)


@dataclass(frozen=True)
class Backwards(PairSource):
    """`count` distinct pairs such as ("a c c b", "B C C A"); every letter is in the first ones."""

    count: int
    seed: int = 0

    def read(self, bad: BadLines) -> Iterator[Pair]:
        draw, seen = Random(self.seed), {LETTERS[:4]: None, LETTERS[4:]: None}
        while len(seen) < self.count:
            seen["".join(draw.choice(LETTERS) for _ in range(draw.randint(2, 5)))] = None
        bad.kept += self.count
        return iter([(" ".join(word), " ".join(reversed(word.upper()))) for word in list(seen)[: self.count]])

    def describe(self) -> str:
        return f"{self.count} toy pairs"


MODEL = EncoderDecoder(VOCAB, 16, 2, 32, 1, 1, dropout=0.1)
LSTM = Seq2Seq(VOCAB, 32, Recurrent(Cell(32)), Recurrent(Cell(32)), dropout=0.1)
SEARCH = Search(Beam(1), ratio=1.0, extra=2, tokens=128, max_source=16)

EXPERIMENT = Experiment(
    task=Translation(Backwards(64), Backwards(8, 1), Backwards(8, 2), search=SEARCH),
    model=MODEL,
    tokenizer=Words(VOCAB),
    batching=Buckets(tokens=96, multiple=8, shapes=1),
    optimizer=AdamW(Constant(1e-2), weight_decay=0.01, clip=1.0),
    objective=NextToken(0.1),
    steps=20,
    log_every=5,
    evaluate_every=10,
    checkpoint_every=10,
)


def overfit(model) -> Experiment:
    """Eight pairs, without dropout, smoothing or decay, for as long as it takes to know them by heart."""
    task = Translation(Backwards(8), Backwards(8), Backwards(8), search=SEARCH)
    options = {"steps": 150, "log_every": 25, "evaluate_every": 150, "checkpoint_every": 150}
    return replace(
        EXPERIMENT, task=task, model=model, optimizer=AdamW(Constant(2e-2, 10)), objective=NextToken(), **options
    )


def lines(folder: Path) -> list[dict]:
    """metrics.jsonl without what belongs to the clock."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in text.splitlines()]


def stored(folder: Path, abstract_state: object) -> tuple[object, int]:
    """The newest checkpoint as NumPy arrays, bit for bit, and its step."""
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        state, _, step = checkpoints.restore(abstract_state)
    return jax.tree.map(np.asarray, state), step
