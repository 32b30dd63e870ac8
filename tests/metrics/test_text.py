"""Laws of the scores: sacreBLEU's own numbers, and Moses BLEU by an independent count on text tokenised by hand."""

import collections
import dataclasses
import importlib.util
import math

import pytest
import sacrebleu

from jaxlm.data.sources.transforms import moses_preprocess
from jaxlm.errors import UserError
from jaxlm.metrics.text import CorpusScore, bleu, bleu_tokenizer, chrf, moses_bleu, ter

HYPOTHESES = [
    "The cat sat on the mat.",
    "There is a dog in the garden, isn't there?",
    "He said: “Good-bye, Mr. Smith!”",
]
REFERENCES = [
    "The cat sat on a mat.",
    "There's a dog in the big garden, isn't there?",
    "He said: “Good-bye, Mr. Jones!”",
]


def plain_bleu(hypotheses: list[list[str]], references: list[list[str]]) -> float:
    """BLEU-4 of tokens by its definition (no smoothing)."""
    matches, totals = [0] * 4, [0] * 4
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        for n in range(1, 5):
            grams = [collections.Counter(zip(*[row[i:] for i in range(n)])) for row in (hypothesis, reference)]  # noqa: B905
            matches[n - 1] += sum((grams[0] & grams[1]).values())
            totals[n - 1] += sum(grams[0].values())
    c, r = sum(map(len, hypotheses)), sum(map(len, references))
    precision = sum(math.log(m / t) for m, t in zip(matches, totals, strict=True)) / 4
    return 100 * min(1.0, math.exp(1 - r / c)) * math.exp(precision)


def test_bleu_and_chrf_are_sacrebleu():
    got = bleu(HYPOTHESES, REFERENCES)
    assert got.value == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert got.name == "BLEU" and "tok:13a" in got.signature and "case:mixed" in got.signature
    assert f"version:{sacrebleu.__version__}" in got.signature
    got = chrf(HYPOTHESES, REFERENCES)
    assert got.value == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert got.name == "chrF2" and "nc:6" in got.signature
    got = chrf(HYPOTHESES, REFERENCES, word_order=2)
    assert got.value == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], word_order=2).score
    assert got.name == "chrF2++" and "|nw:2|" in got.signature
    for metric in (bleu, chrf, lambda h, r: moses_bleu(h, r, "en")):
        assert metric(REFERENCES, REFERENCES).value == pytest.approx(100)


def test_ter_is_sacrebleu_and_counts_characters_of_chinese():
    got = ter(HYPOTHESES, REFERENCES)
    assert got.value == sacrebleu.corpus_ter(HYPOTHESES, [REFERENCES]).score > ter(REFERENCES, REFERENCES).value == 0
    assert got.name == "TER" and "|asian:no|" in got.signature
    got = ter(["今天天气很好"], ["今天天气不好"])
    assert got.value == pytest.approx(100 / 6) and "|asian:yes|" in got.signature


ZH = ["今天天气很好，我们去公园散步。", "他昨天买了一本关于历史的书。", "请把门关上，外面很冷。"]


def test_bleu_of_scripts_without_spaces_has_a_tokenizer_of_its_own():
    answers = ["今天天气很好，我们去公园走走。", "他昨天买了一本关于历史的新书。", "请把门关上，外边很冷。"]
    score = bleu(answers, ZH)
    assert score.value == sacrebleu.metrics.BLEU(tokenize="zh").corpus_score(answers, [ZH]).score > 70
    assert "|tok:zh|" in score.signature
    answers[0] += "A1"
    char = bleu(answers, ZH, "char")
    assert char.value == sacrebleu.metrics.BLEU(tokenize="char").corpus_score(answers, [ZH]).score
    assert "|tok:char|" in char.signature and "|tok:13a|" in bleu(answers, ZH, "13a").signature


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b", "13a"),
        ("", "13a"),
        ("1 2 3", "13a"),
        ("Он пришёл", "13a"),
        ("나는 학교에 갔다", "13a"),
        ("他昨天在 London 买了一本书。", "zh"),
        ("he said 你好", "13a"),
        ("ฉันไปโรงเรียน", "char"),
        ("ខ្ញុំទៅសាលា", "char"),
    ],
)
def test_the_tokenizer_is_that_of_the_script(text, expected):
    assert bleu_tokenizer([text]) == expected


def test_japanese_is_split_by_mecab_or_into_characters():
    expected = "char" if importlib.util.find_spec("MeCab") is None else "ja-mecab"
    assert bleu_tokenizer(["彼は昨日、歴史の本を買った。"]) == bleu_tokenizer(["カタカナ"]) == expected
    if expected == "char":
        with pytest.raises(UserError, match="'ja-mecab' cannot be used here: .*pip install"):
            bleu(["本"], ["本"], "ja-mecab")
    with pytest.raises(UserError, match="BLEU tokenizer 'zn': expected one of 13a, zh"):
        bleu(["本"], ["本"], "zn")


def test_tokens_are_those_of_multi30k():
    """Tokens as in the task's own `lc.norm.tok` files: hyphens stay, quotes and apostrophes stand alone in German."""
    german = [
        "Ein Mann in einem schwarzen T-Shirt mit dem Aufdruck „Asien 2007“ sitzt.",
        "U-Bahn, Coffee-Shop; Bier – Zapfhähne?",
    ]
    assert moses_preprocess(german, "de") == [
        "ein mann in einem schwarzen t-shirt mit dem aufdruck &quot; asien 2007 &quot; sitzt .",
        "u-bahn , coffee-shop ; bier - zapfhähne ?",
    ]
    assert moses_preprocess(["The man's T-shirt isn't red & it cost 3.50.", ""], "en") == [
        "the man &apos;s t-shirt isn &apos;t red &amp; it cost 3.50 .",
        "",
    ]


def test_moses_bleu_by_hand():
    tokens = [
        ["the cat sat on the mat .", "the cat sat on a mat ."],
        ["there is a dog in the garden , isn 't there ?", "there 's a dog in the big garden , isn 't there ?"],
        ['he said : " good-bye , mr. smith ! "', 'he said : " good-bye , mr. jones ! "'],
    ]
    expected = plain_bleu(*[[row[side].split() for row in tokens] for side in (0, 1)])
    got = moses_bleu(HYPOTHESES, REFERENCES, "en")
    assert got.value == pytest.approx(expected, abs=1e-9)
    assert got.name == "lower-cased Moses-tokenized BLEU, not comparable with sacreBLEU"
    assert "tok:none" in got.signature and "moses:lc.norm.tok.en" in got.signature
    assert moses_bleu([h.upper() for h in HYPOTHESES], REFERENCES, "en").value == got.value
    assert got.value != pytest.approx(bleu(HYPOTHESES, REFERENCES).value, abs=0.1)


def test_border():
    got = chrf(HYPOTHESES, REFERENCES, word_order=2)
    assert got.value == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], word_order=2).score
    assert got.name == "chrF2++" and "|nw:2|" in got.signature
    for metric in (bleu, chrf, lambda h, r: moses_bleu(h, r, "en")):
        with pytest.raises(UserError, match="2 hypotheses and 3 references"):
            metric(HYPOTHESES[:2], REFERENCES)
        with pytest.raises(UserError, match="no lines to score"):
            metric([], [])
        with pytest.raises(TypeError, match="not one string"):
            metric("a", "b")
        assert metric(["", ""], ["a b", "c d"]).value == 0


def test_score_is_data():
    score = CorpusScore(12.345, "sig", "BLEU")
    assert score.to_json() == {"value": 12.345, "signature": "sig", "name": "BLEU"}
    assert str(score) == "BLEU 12.35 (sig)" or str(score) == "BLEU 12.34 (sig)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        score.value = 1.0
