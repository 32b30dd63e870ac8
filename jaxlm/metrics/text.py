"""Scores of text against references, each with the signature that says how it was computed.

`bleu` and `chrf` are sacreBLEU's, on detokenised text with its case: the figures to report. `moses_bleu` is the
figure of the Multi30k papers, on lower-cased tokenised text: some points higher, and of no use beside the others.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxlm.data.sources.moses import moses_preprocess
from jaxlm.errors import UserError

MOSES_LABEL = "lower-cased Moses-tokenised BLEU, not comparable with sacreBLEU"


@dataclasses.dataclass(frozen=True)
class CorpusScore:
    """A score from 0 to 100 (higher is better), what it is called, and how it was computed."""

    value: float
    signature: str
    name: str

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return f"{self.name} {self.value:.2f} ({self.signature})"


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> CorpusScore:
    """Corpus BLEU (Papineni et al., 2002) by sacreBLEU (Post, 2018): tokeniser 13a, case kept, one reference a line.

    Raises UserError if there are no lines, or not as many of one as of the other.
    """
    from sacrebleu.metrics import BLEU

    return _score(BLEU(), hypotheses, references, "BLEU")


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> CorpusScore:
    """chrF2 (Popovic, 2015) by sacreBLEU: the F-score, beta = 2, of character n-grams up to 6. Errors as in `bleu`."""
    from sacrebleu.metrics import CHRF

    return _score(CHRF(), hypotheses, references, "chrF2")


def moses_bleu(hypotheses: Sequence[str], references: Sequence[str], lang: str) -> CorpusScore:
    """BLEU of raw text after `moses_preprocess` of both sides, which is how the Multi30k papers score.

    Not comparable with `bleu`, and its name says so. Errors as in `bleu`.
    """
    from sacrebleu.metrics import BLEU

    _check_lengths(hypotheses, references)
    tokenised = moses_preprocess(hypotheses, lang), moses_preprocess(references, lang)
    # force: sacreBLEU would warn that the text is tokenised, which is the point here
    score = _score(BLEU(tokenize="none", force=True), *tokenised, MOSES_LABEL)
    return dataclasses.replace(
        score, signature=f"{score.signature}|moses:lc.norm.tok.{lang}|sacremoses:{_sacremoses()}"
    )


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


def _sacremoses() -> str:
    from importlib.metadata import version

    return version("sacremoses")
