"""Scores of text: BLEU, chrF, chrF++ and TER against references, each with its signature, and perplexity.

`bleu`, `chrf` and `ter` are sacreBLEU's, on detokenized text with its case (TER: without): the figures to report.
`moses_bleu` is the figure of the Multi30k papers, on lower-cased tokenized text: some points higher, and not comparable
with the others.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal, get_args

from jaxlm.data.sources.transforms import moses_preprocess
from jaxlm.errors import UserError

KANA, HAN = "\u3041-\u30ff", "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
OTHERS_WITHOUT_SPACES = "\u0e01-\u0fff\u1000-\u109f\u1780-\u17ff"

BleuTokenizer = Literal["13a", "zh", "ja-mecab", "ko-mecab", "char", "intl", "flores101", "flores200", "none"]
"""The tokenizers of sacreBLEU; those of Japanese, Korean and FLORES need further packages or files. With one of FLORES
the score is spBLEU (Goyal et al. 2022)."""

MOSES_LABEL = "lower-cased Moses-tokenized BLEU, not comparable with sacreBLEU"


@dataclasses.dataclass(frozen=True)
class CorpusScore:
    """A score in percent (higher is better, but of TER) with its name and the signature of its computation."""

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


def distinct_ngrams(texts: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(different n-grams of words, all of them) for n = 1 and 2, whose ratio is distinct-n (Li et al. 2016)."""
    words = [text.split() for text in texts]
    ngrams = {n: [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)] for n in (1, 2)}
    return {f"distinct/{n}": (len(set(rows)), len(rows)) for n, rows in ngrams.items()}


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenizer: BleuTokenizer | None = None) -> CorpusScore:
    """Corpus BLEU (Papineni et al., 2002) by sacreBLEU (Post, 2018), case kept, one reference a line.

    `tokenizer` is one of sacreBLEU's; by default that of the references' script (`bleu_tokenizer`). Raises UserError
    for empty inputs, if the numbers of lines differ, and for a tokenizer that is unknown or not installed.
    """
    from sacrebleu.metrics import BLEU

    _check_lengths(hypotheses, references)
    if tokenizer not in (None, *get_args(BleuTokenizer)):
        raise UserError(f"BLEU tokenizer {tokenizer!r}: expected one of {', '.join(get_args(BleuTokenizer))}")
    name = tokenizer or bleu_tokenizer(references)
    try:
        return _score(BLEU(tokenize=name), hypotheses, references, "spBLEU" if name[:6] == "flores" else "BLEU")
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(f"BLEU tokenizer {name!r} cannot be used here: {' '.join(str(error).split())}") from error


def bleu_tokenizer(references: Sequence[str]) -> BleuTokenizer:
    """The sacreBLEU tokenizer of the script that most letters belong to.

    Japanese: ja-mecab if MeCab is installed, else char; Chinese: zh; other scripts without spaces between words (Thai,
    Lao, Khmer, Burmese, Tibetan): char; all others: 13a.
    """
    text = "".join(references)
    kana, han, other = (len(re.findall(f"[{ranges}]", text)) for ranges in (KANA, HAN, OTHERS_WITHOUT_SPACES))
    if 2 * (kana + han + other) <= sum(map(str.isalpha, text)):
        return "13a"
    if other > kana + han:
        return "char"
    return "zh" if 10 * kana < kana + han else "ja-mecab" if find_spec("MeCab") else "char"


def chrf(hypotheses: Sequence[str], references: Sequence[str], word_order: int = 0) -> CorpusScore:
    """chrF2 (Popovic, 2015) by sacreBLEU: the F-score, beta = 2, of character n-grams up to 6. Errors as in `bleu`.

    With n-grams of words up to `word_order` = 2 it is chrF2++ (Popovic, 2017).
    """
    from sacrebleu.metrics import CHRF

    return _score(CHRF(word_order=word_order), hypotheses, references, "chrF2" + "+" * word_order)


def ter(hypotheses: Sequence[str], references: Sequence[str]) -> CorpusScore:
    """Translation edit rate (Snover et al., 2006) by sacreBLEU, lower-cased; lower is better. Errors as in `bleu`.

    In Chinese and Japanese text a character counts as a word.
    """
    from sacrebleu.metrics import TER

    _check_lengths(hypotheses, references)
    is_asian = bleu_tokenizer(references) != "13a"
    return _score(TER(normalized=is_asian, asian_support=is_asian), hypotheses, references, "TER")


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


def last_number(text: str) -> str:
    """The last number in a text, without the commas between its digits; "" without one."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return numbers[-1].replace(",", "") if numbers else ""


def token_f1(answer: str, reference: str) -> float:
    """F1 of the words of two texts, lower-cased and without punctuation, as bags (Rajpurkar et al. 2016), 0 to 1."""
    bags = [Counter(re.findall(r"\w+", text.lower())) for text in (answer, reference)]
    common, sizes = (bags[0] & bags[1]).total(), [bag.total() for bag in bags]
    return 2.0 * common / sum(sizes) if all(sizes) else float(sizes[0] == sizes[1])
