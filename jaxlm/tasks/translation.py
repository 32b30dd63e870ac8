"""The task of translation: pairs of texts, judged by BLEU and chrF."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from jaxlm.data.files import ReadStats
from jaxlm.data.ragged import Columns
from jaxlm.data.sources.base import Pair, PairSource, WithStats
from jaxlm.data.storage.token_cache import encode_pairs
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.inference.base import Answer, ProgressCallback, TrainedModel, cut_to_positions, to_single_line
from jaxlm.inference.translate import Search, answer_attention_weights, to_answer, translate
from jaxlm.metrics.text import BleuTokenizer, bleu, chrf, moses_bleu, perplexity, ter
from jaxlm.tasks.base import EVAL_SPLITS, Task, batch_losses, mean_losses, prefix_valid


@dataclass(frozen=True)
class Translation(Task):
    """Source text to target text.

    Attributes:
      train, valid, test: sources of (source, target) pairs; `extra_tests` are further test sets by name.
      search: how answers are decoded in `evaluate` and `predict`.
      moses_language: language code of the target; if given, `evaluate` adds the lower-cased Moses-tokenized BLEU of
        papers.
      bleu_tokenizer: sacreBLEU's tokenizer, as in its `--tokenize` (None: that of the references' script).
      valid_search: how the validation set is decoded during training (None: as `search`).
      valid_examples: number of validation pairs that are decoded during training, for BLEU.
    """

    train: PairSource
    valid: PairSource
    test: PairSource
    extra_tests: dict[str, PairSource] = field(default_factory=dict)
    search: Search = Search()
    moses_language: str | None = None
    valid_search: Search | None = None
    valid_examples: int = 1000
    bleu_tokenizer: BleuTokenizer | None = None

    eval_only_fields: ClassVar[tuple[str, ...]] = (
        *EVAL_SPLITS, "search", "moses_language", "valid_search", "valid_examples", "bleu_tokenizer"
    )  # fmt: skip
    input_kind: ClassVar[str] = "source"
    recipe: ClassVar[str] = "translate"
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "nll", "perplexity", "bleu")

    def texts(self) -> Iterator[str]:
        """Both sides of the training pairs."""
        for pair in self.train:
            yield from pair

    def validate(self, trained: TrainedModel, objective: Any, batch_tokens: int) -> dict[str, float]:
        """Loss and perplexity of all validation pairs, BLEU of the first `valid_examples`."""
        pairs = list(self.valid)
        columns, _ = cut_to_positions(trained.model, encode_pairs(pairs, trained.tokenizer))
        figures = mean_losses(batch_losses(trained, columns, objective, batch_tokens))
        figures["perplexity"] = perplexity(figures["nll"])
        decoded = pairs[: self.valid_examples]
        answers = _translate_pairs(trained, decoded, self.valid_search or self.search)
        score = bleu(answers, [target for _, target in decoded], self.bleu_tokenizer)
        return prefix_valid(figures | {"bleu": score.value})

    def encode_train(self, tokenizer: Tokenizer, folder: Path | None, read_stats: ReadStats) -> Columns:
        """Columns "source" and "target" of the training pairs."""
        return encode_pairs(WithStats(self.train, read_stats), tokenizer, folder)

    def show_examples(self, trained: TrainedModel, count: int) -> Iterator[str]:
        """The first `count` test pairs and their answers."""
        pairs = list(islice(self.test, count))
        for (source, target), answer in zip(pairs, _translate_pairs(trained, pairs, self.search), strict=True):
            yield f"{to_single_line(source)} -> {answer} (reference: {to_single_line(target)})"

    def predict(self, trained: TrainedModel, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """The hypotheses for each line, best first, by `search`; with their attention weights if it asks for them."""
        hypotheses = translate(trained, lines, self.search, progress)
        answers = [to_answer(*pair) for pair in zip(lines, hypotheses, strict=True)]
        if self.search.attention:
            best = [best_first[0] for best_first in hypotheses]
            weights = answer_attention_weights(trained, lines, best, self.search)
            for answer, attention in zip(answers, weights, strict=True):
                answer.json["attention"] = attention
        return answers

    def evaluate(self, trained: TrainedModel, split: str, progress: ProgressCallback = None) -> dict[str, Any]:
        """Scores of a split, each with its signature; `jaxlm.metrics.text` tells which are comparable."""
        pairs = list(self.split(split))
        answers = _translate_pairs(trained, pairs, self.search, progress)
        references = [target for _, target in pairs]
        figures: dict[str, Any] = {"split": split, "lines": len(pairs)}
        figures["bleu"] = bleu(answers, references, self.bleu_tokenizer).to_json()
        figures["chrf"] = chrf(answers, references).to_json()
        figures["chrf++"] = chrf(answers, references, word_order=2).to_json()
        figures["ter"] = ter(answers, references).to_json()
        if self.moses_language and find_spec("sacremoses") is None:
            figures["moses_bleu"] = "not computed: it needs sacremoses, pip install 'jaxlm[moses]'"
        elif self.moses_language:
            figures["moses_bleu"] = moses_bleu(answers, references, self.moses_language).to_json()
        return figures


def _translate_pairs(
    trained: TrainedModel, pairs: Sequence[Pair], search: Search, progress: ProgressCallback = None
) -> list[str]:
    hypotheses = translate(trained, [source for source, _ in pairs], search, progress)
    return [best_first[0].text for best_first in hypotheses]
