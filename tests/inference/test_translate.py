"""Lines in, lines out: as many, in order, and none changed by another."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from fixtures.tiny_run import LETTERS, LSTM, MODEL, VOCAB, Backwards
from fixtures.zoo import params_of

from jaxlm.data.tokenizers.simple import Words
from jaxlm.decode.beam_config import Beam
from jaxlm.inference.base import TrainedModel, to_single_line
from jaxlm.inference.translate import Search, keep_answers, translate

TOKENIZER = Words(VOCAB).fit([text for pair in Backwards(64) for text in pair])
SEARCH = Search(Beam(2), max_len_ratio=1.0, max_len_extra=2, batch_tokens=64, max_source_len=16)
DRAW = Random(0)
LINES = [" ".join(DRAW.choice(LETTERS) for _ in range(DRAW.randint(1, 14))) for _ in range(21)]
MANY = LINES + [" ".join(DRAW.choice(LETTERS) for _ in range(DRAW.randint(1, 14))) for _ in range(64 - len(LINES))]


def answers(lines, search=SEARCH, model=MODEL, progress=None):
    return translate(TrainedModel(model, params_of(model), TOKENIZER), lines, search, progress)


def texts(*arguments, **options):
    return [hypotheses[0].text for hypotheses in answers(*arguments, **options)]


@pytest.fixture(scope="module")
def expected():
    found = texts(LINES)
    assert len({*found}) > 8, "a model that always says the same shows nothing"
    return found


def test_a_line_for_a_line(expected):
    """Blank lines get blank answers, wherever they are, and move nothing."""
    lines, places = ["", "  \t"], []
    for line in LINES:
        places.append(len(lines))
        lines += [line, ""]
    found = answers(lines)
    assert len(found) == len(lines)
    assert [found[place][0].text for place in places] == expected
    for place in set(range(len(lines))) - set(places):
        (blank,) = found[place]
        assert (blank.text, blank.tokens, blank.logprob, blank.reason) == ("", 0, 0.0, "blank")


@pytest.mark.parametrize("lines", [[], [""], ["", " ", "\u3000"]])
def test_nothing_to_translate(lines):
    assert [a[0].text for a in answers(lines)] == [""] * len(lines)


@pytest.mark.parametrize("tokens", [1, 4096])
def test_the_size_of_batches_changes_nothing(expected, tokens):
    assert texts(LINES, replace(SEARCH, batch_tokens=tokens)) == expected


def in_batches(lines, rows):
    """The ids of the two best answers of each line, `rows` lines at a time."""
    search, found = replace(SEARCH, beam=Beam(2, 2), batch_tokens=2048), []
    for at in range(0, len(lines), rows):
        found += [[a.ids for a in answer] for answer in answers(lines[at : at + rows], search)]
    return found


@pytest.fixture(scope="module")
def alone():
    return in_batches(MANY, 1)


@pytest.mark.parametrize("rows", [7, 64])
def test_any_batch_in_any_order_says_what_each_line_alone_gets(alone, rows):
    assert in_batches(MANY, rows) == alone
    order = np.random.default_rng(rows).permutation(len(MANY))
    assert in_batches([MANY[at] for at in order], rows) == [alone[at] for at in order]


def test_the_order_of_lines_changes_nothing(expected):
    order = np.random.default_rng(0).permutation(len(LINES))
    assert texts([LINES[at] for at in order]) == [expected[at] for at in order]
    assert texts(LINES[-1:]) == expected[-1:]


def test_the_scores_are_those_of_any_batch(expected):
    one, other = answers(LINES), answers(LINES, replace(SEARCH, batch_tokens=4096))
    for (a,), (b,) in zip(one, other, strict=True):
        assert (a.tokens, a.reason) == (b.tokens, b.reason) and len(a.token_logprobs) == a.tokens
        np.testing.assert_allclose([a.logprob, a.score], [b.logprob, b.score], rtol=1e-4)
        np.testing.assert_allclose(sum(a.token_logprobs), a.logprob, rtol=1e-5)


def test_long_lines_are_cut(expected):
    """`max_source` positions, EOS included, are read, and the length of the answer is that of what was read."""
    long = " ".join(LETTERS * 5)
    cut = " ".join((LETTERS * 2)[:15])
    found = answers([long, *LINES, cut])
    assert found[0] == found[-1] and found[0][0].tokens <= 16 + 2
    assert [a[0].text for a in found[1:-1]] == expected


def test_several_answers_a_line():
    """Best first; as many for a blank line."""
    found = answers([LINES[0], "", LINES[1]], replace(SEARCH, beam=Beam(3, 3)))
    assert [len(hypotheses) for hypotheses in found] == [3, 3, 3]
    for hypotheses in (found[0], found[2]):
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True) and len({h.text for h in hypotheses}) > 1
    assert [h.text for h in found[1]] == [""] * 3


def test_no_answer_is_longer_than_its_own_limit():
    """A function of the line's own length, whatever the longest line of its batch."""
    for line, (answer,) in zip(LINES, answers(LINES, replace(SEARCH, max_len_extra=0)), strict=True):
        assert answer.tokens <= len(line.split()) + 1


def test_progress_counts_the_lines_that_are_translated():
    seen = []
    answers(["", *LINES, ""], progress=seen.append)
    assert sum(seen) == len(LINES)


def test_unknown_words_and_strange_spaces():
    found = texts(["zebra a \u00e9\u00e8 b", "  a   b  ", "a b"])
    assert found[1] == found[2] and len(found) == 3


def test_a_recurrent_model_translates_too():
    found = texts(LINES, model=LSTM)
    assert texts(LINES[::-1], replace(SEARCH, batch_tokens=4096), LSTM) == found[::-1]


def test_an_answer_is_one_line():
    assert to_single_line(" a\r\nb\nc \r") == "a  b c"


def test_kept_answers(expected, monkeypatch):
    """In the block a line is searched once by each search, and afterwards again."""
    searches = []
    with keep_answers():
        first = answers(LINES)
        monkeypatch.setattr("jaxlm.inference.translate._translate_shared", lambda *arguments: searches.append(1) or [])
        assert answers(LINES[3:9]) == first[3:9] and not searches
        with pytest.raises(ValueError, match="zip"):
            answers(LINES[:1], replace(SEARCH, beam=Beam(1)))
    assert answers(LINES[:1]) == [] and len(searches) == 2
    assert [best_first[0].text for best_first in first] == expected
