"""The task of translation: which pairs, what the tokenizer learns from, and how an answer is judged."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, ClassVar

import jax

from jaxlm.data.pairs import Pairs, PairSource
from jaxlm.data.pipeline import in_order
from jaxlm.data.ragged import encode_pairs
from jaxlm.data.vocabulary import Tokenizer
from jaxlm.errors import UserError
from jaxlm.metrics import bleu, chrf, moses_bleu
from jaxlm.tasks.translate import Hypothesis, Search, translate
from jaxlm.types import Params

Progress = Callable[[int], None] | None


@dataclass(frozen=True)
class Translation:
    """Source text to target text.

    Attributes:
      train, valid, test: sources of (source, target) pairs; `more` holds further test sets by name.
      search: how answers are decoded in `evaluate` and `predict`.
      moses: language code of the target; if given, `evaluate` adds the lower-cased Moses-tokenised BLEU of papers.
      quick: how the validation set is decoded during training (None: as `search`).
      quick_lines: the most validation lines decoded during training.
    """

    train: PairSource
    valid: PairSource
    test: PairSource
    more: dict[str, PairSource] = field(default_factory=dict)
    search: Search = Search()
    moses: str | None = None
    quick: Search | None = None
    quick_lines: int = 1000

    judging: ClassVar[tuple[str, ...]] = ("test", "more", "search", "moses", "quick", "quick_lines")
    """Fields that decide how a model is judged, not what is trained: a resumed run may change them."""

    def pairs(self, split: str) -> Pairs:
        """The source of a split by name. Raises UserError with the names that exist."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test, **self.more}
        if split not in splits:
            raise UserError(f"no split {split!r}; this experiment has {', '.join(splits)}")
        return splits[split]

    def check(self) -> None:
        """Read, before anything is trained, what is needed only later. Raises UserError on the first fault."""
        for pairs in (self.valid, self.test):
            for _ in pairs:
                pass

    def texts(self) -> Iterator[str]:
        """What the tokenizer learns from: both sides of the training pairs."""
        for source, target in self.train:
            yield source
            yield target

    def validate(
        self, model: Any, params: Params, tokenizer: Tokenizer, objective: Any, tokens: int, progress: Progress = None
    ) -> dict[str, float]:
        """The figures of training: loss and perplexity of all valid pairs, BLEU of the first `quick_lines`."""
        pairs = list(self.valid)
        evaluate = _evaluation(model, objective)
        sums = [evaluate(params, batch) for _, batch in in_order(encode_pairs(pairs, tokenizer), tokens)]
        loss = jax.tree.map(lambda *parts: math.fsum(float(part) for part in parts), *sums)
        figures = {"valid/loss": loss.total / loss.count, "valid/nll": loss.nll / loss.count}
        figures["valid/perplexity"] = math.exp(min(figures["valid/nll"], 700.0))
        some = pairs[: self.quick_lines]
        answers = self._answers(model, params, tokenizer, some, self.quick or self.search, progress)
        figures["valid/bleu"] = bleu(answers, [target for _, target in some]).value
        return figures

    def samples(self, model: Any, params: Params, tokenizer: Tokenizer, count: int) -> list[tuple[str, str, str]]:
        """(source, reference, answer) of the first `count` test pairs, for a person to read."""
        pairs = [pair for pair, _ in zip(self.test, range(count), strict=False)]
        answers = self._answers(model, params, tokenizer, pairs, self.search)
        return [(source, target, answer) for (source, target), answer in zip(pairs, answers, strict=True)]

    def predict(
        self, model: Any, params: Params, tokenizer: Tokenizer, lines: Sequence[str], progress: Progress = None
    ) -> list[list[Hypothesis]]:
        """The answers to each line, best first, by `search`."""
        return translate(model, params, tokenizer, lines, self.search, progress)

    def evaluate(
        self, model: Any, params: Params, tokenizer: Tokenizer, split: str, progress: Progress = None
    ) -> dict[str, Any]:
        """Scores of a split, each with its signature; see `jaxlm.metrics` for what may be compared with what."""
        pairs = list(self.pairs(split))
        answers = self._answers(model, params, tokenizer, pairs, self.search, progress)
        references = [target for _, target in pairs]
        scores = {"bleu": bleu(answers, references), "chrf": chrf(answers, references)}
        figures: dict[str, Any] = {"split": split, "lines": len(pairs)}
        figures |= {name: score.to_json() for name, score in scores.items()}
        if self.moses and find_spec("sacremoses") is None:
            figures["moses_bleu"] = "not computed: it needs sacremoses, pip install 'jaxlm[moses]'"
        elif self.moses:
            figures["moses_bleu"] = moses_bleu(answers, references, self.moses).to_json()
        return figures

    def _answers(
        self,
        model: Any,
        params: Params,
        tokenizer: Tokenizer,
        pairs: Iterable,
        search: Search,
        progress: Progress = None,
    ) -> list[str]:
        found = translate(model, params, tokenizer, [source for source, _ in pairs], search, progress)
        return [hypotheses[0].text for hypotheses in found]


@lru_cache(maxsize=8)
def _evaluation(model: Any, objective: Any) -> Any:
    """The jitted evaluation of one model under one objective: batch -> sums."""
    return jax.jit(lambda params, batch: objective(model, params, batch, None))
