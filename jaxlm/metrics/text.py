"""Scores of text: BLEU and chrF against references, each with its signature, and perplexity.

`bleu` and `chrf` are sacreBLEU's, on detokenized text with its case: the figures to report. `moses_bleu` is the
figure of the Multi30k papers, on lower-cased tokenized text: some points higher, and not comparable with the others.
"""

import dataclasses
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from jaxlm.data.sources.transforms import moses_preprocess
from jaxlm.errors import UserError

MOSES_LABEL = "lower-cased Moses-tokenized BLEU, not comparable with sacreBLEU"


@dataclasses.dataclass(frozen=True)
class CorpusScore:
    """A score from 0 to 100 (higher is better) with its name and the signature of its computation."""

    value: float
    signature: str
    name: str

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return f"{self.name} {self.value:.2f} ({self.signature})"


def perplexity(nll: float) -> float:
    """exp of the negative log-likelihood of a token, in nats; bounded, because exp overflows above 709."""
    return math.exp(min(nll, 700.0))


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> CorpusScore:
    """Corpus BLEU (Papineni et al., 2002) by sacreBLEU (Post, 2018): tokenizer 13a, case kept, one reference a line.

    Raises UserError for empty inputs, and if the numbers of lines differ.
    """
    from sacrebleu.metrics import BLEU

    return _score(BLEU(), hypotheses, references, "BLEU")


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> CorpusScore:
    """chrF2 (Popovic, 2015) by sacreBLEU: the F-score, beta = 2, of character n-grams up to 6. Errors as in `bleu`."""
    from sacrebleu.metrics import CHRF

    return _score(CHRF(), hypotheses, references, "chrF2")


def moses_bleu(hypotheses: Sequence[str], references: Sequence[str], lang: str) -> CorpusScore:
    """BLEU of raw text after `moses_preprocess` of both sides, as in the Multi30k papers. Errors as in `bleu`."""
    from sacrebleu.metrics import BLEU

    _check_lengths(hypotheses, references)
    tokenized = moses_preprocess(hypotheses, lang), moses_preprocess(references, lang)
    # force: sacreBLEU would warn that the text is tokenized, which is the point here
    score = _score(BLEU(tokenize="none", force=True), *tokenized, MOSES_LABEL)
    signature = f"{score.signature}|moses:lc.norm.tok.{lang}|sacremoses:{version('sacremoses')}"
    return dataclasses.replace(score, signature=signature)


def _score(metric: Any, hypotheses: Sequence[str], references: Sequence[str], name: str) -> CorpusScore:
    _check_lengths(hypotheses, references)
    value = metric.corpus_score(list(hypotheses), [list(references)]).score
    return CorpusScore(float(value), str(metric.get_signature()), name)


def _check_lengths(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    for name, lines in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(lines, str):
            raise TypeError(f"{name}: expected a sequence of lines, not one string")
    if len(hypotheses) != len(references):
        raise UserError(
            f"{len(hypotheses)} hypotheses and {len(references)} references: expected a hypothesis for each reference, "
            "line by line; check that both files are whole and belong together"
        )
    if not references:
        raise UserError("no lines to score: both the hypotheses and the references are empty; check the files")
