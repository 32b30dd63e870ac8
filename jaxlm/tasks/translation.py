"""The task of translation: which pairs, what the tokenizer learns from, and how an answer is judged."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import jax

from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns
from jaxlm.data.sources.base import Pairs, PairSource, WithStats
from jaxlm.data.storage.token_cache import encode_pairs
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.errors import UserError
from jaxlm.inference.base import Answer, ProgressCallback, TrainedModel
from jaxlm.inference.translate import Hypothesis, Search, answer_attention_weights, to_single_line, translate
from jaxlm.metrics.text import bleu, chrf, moses_bleu
from jaxlm.tasks.base import Task, make_eval_step


@dataclass(frozen=True)
class Translation(Task):
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
    extra_tests: dict[str, PairSource] = field(default_factory=dict)
    search: Search = Search()
    moses_language: str | None = None
    valid_search: Search | None = None
    valid_examples: int = 1000

    eval_only_fields: ClassVar[tuple[str, ...]] = (
        "test",
        "extra_tests",
        "search",
        "moses_language",
        "valid_search",
        "valid_examples",
    )
    input_kind: ClassVar[str] = "source"
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "perplexity", "bleu")

    def pairs(self, split: str) -> Pairs:
        """The pairs of a split by name. Raises UserError with the names that exist."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test, **self.extra_tests}
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
        self,
        trained: TrainedModel,
        objective: Any,
        batch_tokens: int,
        progress: ProgressCallback = None,
    ) -> dict[str, float]:
        """The figures of training: loss and perplexity of all valid pairs, BLEU of the first `quick_lines`."""
        pairs = list(self.valid)
        evaluate = make_eval_step(trained.model, objective)
        columns = encode_pairs(pairs, trained.tokenizer)
        batches = eval_batches(columns, batch_tokens, special=trained.tokenizer.special)
        sums = [evaluate(trained.params, batch) for _, batch in batches]
        loss = jax.tree.map(lambda *parts: math.fsum(float(part) for part in parts), *sums)
        figures = {"valid/loss": loss.total / loss.count, "valid/nll": loss.nll / loss.count}
        figures["valid/perplexity"] = math.exp(min(figures["valid/nll"], 700.0))
        some = pairs[: self.valid_examples]
        answers = self._translate_pairs(trained, some, self.valid_search or self.search, progress)
        figures["valid/bleu"] = bleu(answers, [target for _, target in some]).value
        return figures

    def describe(self, split: str = "train") -> str:
        """Which pairs a split has."""
        return self.pairs(split).describe()

    def count(self, split: str) -> int:
        """The pairs of a split."""
        return sum(1 for _ in self.pairs(split))

    def encode_train(self, tokenizer: Tokenizer, folder: Path | None, read_stats: ReadStats) -> Columns:
        """Columns "source" and "target" of the training pairs."""
        return encode_pairs(WithStats(self.train, read_stats), tokenizer, folder)

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """The first `count` test pairs and their answers."""
        pairs = [pair for pair, _ in zip(self.test, range(count), strict=False)]
        answers = self._translate_pairs(trained, pairs, self.search)
        for (source, target), answer in zip(pairs, answers, strict=True):
            yield f"{to_single_line(source)} -> {answer} (reference: {to_single_line(target)})"

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """The answers to each line, best first, by `search`; with their attention if it asks for that."""
        found = translate(trained, lines, self.search, progress)
        answers = [to_answer(line, hypotheses) for line, hypotheses in zip(lines, found, strict=True)]
        if self.search.attention:
            weights = answer_attention_weights(trained, lines, [hypotheses[0] for hypotheses in found], self.search)
            for answer, attention in zip(answers, weights, strict=True):
                answer.json["attention"] = attention
        return answers

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """Scores of a split, each with its signature; see `jaxlm.metrics.text` for what may be compared with what."""
        pairs = list(self.pairs(split))
        answers = self._translate_pairs(trained, pairs, self.search, progress)
        references = [target for _, target in pairs]
        scores = {"bleu": bleu(answers, references), "chrf": chrf(answers, references)}
        figures: dict[str, Any] = {"split": split, "lines": len(pairs)}
        figures |= {name: score.to_json() for name, score in scores.items()}
        if self.moses_language and find_spec("sacremoses") is None:
            figures["moses_bleu"] = "not computed: it needs sacremoses, pip install 'jaxlm[moses]'"
        elif self.moses_language:
            figures["moses_bleu"] = moses_bleu(answers, references, self.moses_language).to_json()
        return figures

    def _translate_pairs(
        self,
        trained: TrainedModel,
        pairs: Iterable,
        search: Search,
        progress: ProgressCallback = None,
    ) -> list[str]:
        found = translate(trained, [source for source, _ in pairs], search, progress)
        return [hypotheses[0].text for hypotheses in found]


def to_answer(line: str, hypotheses: Sequence[Hypothesis]) -> Answer:
    """The texts, separated by tabs (one text keeps the tabs that it has), and all that is known about them."""
    texts, best = [hypothesis.text for hypothesis in hypotheses], hypotheses[0]
    text = texts[0] if len(texts) == 1 else "\t".join(text.replace("\t", " ") for text in texts)
    names = ("text", "score", "logprob", "tokens", "reason")
    found = [{name: getattr(item, name) for name in names} for item in hypotheses if item.reason != "none"]
    record = {"source": line, "prediction": best.text, "score": best.score, "logprob": best.logprob}
    return Answer(text, record | {"hypotheses": found})
