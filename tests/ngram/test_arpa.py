"""ARPA files: read after writing by hand or by `write_arpa`; invalid files are refused with the line."""

import gzip
import math

import jax
import numpy as np
import pytest

from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import BOS, EOS, UNK
from jaxlm.data.tokenizers.simple import WordTokenizer
from jaxlm.errors import UserError
from jaxlm.models.ngram import NGram
from jaxlm.ngram.arpa import read_arpa, write_arpa
from jaxlm.ngram.counts import LOG_ZERO
from jaxlm.ngram.smoothing import KneserNey, StupidBackoff, WittenBell
from jaxlm.types import Batch

BY_HAND = """made by hand
\\data\\
ngram 1=5
ngram 2=4
ngram 3=2

\\1-grams:
-99\t<s>\t-0.5
-1.0\t<unk>
-0.7\ta\t-0.3
-0.4\tb\t-0.2
-0.6\t</s>

\\2-grams:
-0.25\ta b\t-0.125
-0.5\t<s> a\t-0.0625
-0.75\tb a
-1.5\tb </s>

\\3-grams:
-0.1\t<s> a b
-0.2\ta b a

\\end\\
"""


def write(tmp_path, text: str, name: str = "model.arpa"):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return file


def trained(smoothing, order: int = 4):
    words = ("<pad>", "<unk>", "<s>", "</s>", *(f"w{i}" for i in range(4, 15)), "höhle", "\u3000", "\\end\\")
    rng = np.random.default_rng(0)
    rows = [rng.choice(np.r_[1, 4 : len(words) - 1], length) for length in rng.integers(1, 9, 80)]
    return NGram(len(words), order, smoothing).fit({"target": Ragged.from_rows(rows)}), words


def test_by_hand(tmp_path):
    """log10 p of "a b a b </s>" and of "c", term by term; the perplexity of both."""
    tables, words = read_arpa(write(tmp_path, BY_HAND))
    assert words == ("<pad>", "<unk>", "<s>", "</s>", "a", "b")
    model, tokenizer = NGram(len(words), len(tables)), WordTokenizer(words[4:])
    first = [
        -0.5,  # a | <s>
        -0.1,  # b | <s> a
        -0.2,  # a | a b
        -0.25,  # b | b a: "b a" is known, "b a b" is not: its weight 0 and the bigram
        -0.125 - 1.5,  # </s> | a b: the weight of "a b" and the bigram
    ]
    second = [-0.5 - 1.0, -0.6]  # <unk> | <s>: the weight of <s>; </s> | <s> <unk>: a history nobody knows
    logprob = [score(model, tables, [BOS, *tokenizer.encode([text])[0], EOS]) for text in ("a b a b", "c")]
    for one, expected in zip(logprob, (first, second), strict=True):
        np.testing.assert_allclose(one / math.log(10), expected, rtol=1e-6)
    total = np.concatenate(logprob)
    assert math.exp(-total.mean()) == pytest.approx(10 ** (-sum(first + second) / 7), rel=1e-6)


def score(model: NGram, tables, ids: list[int]) -> np.ndarray:
    """Return the log-probability (natural log) of each id but the first, given those before it."""
    ids_BT = np.array([ids], np.int32)

    @jax.jit
    def read(tables, ids_BT):
        state = model.start(Batch(target_BT=ids_BT), 0)
        context_BTK, _ = model.apply({"params": tables}, ids_BT, state, ids_BT >= 0, method="extend")
        return model.apply({"params": tables}, context_BTK[:, :-1], ids_BT[:, 1:], method="logprob")[0]

    return np.asarray(read(tables, ids_BT))


@pytest.mark.parametrize("name", ["model.arpa", "model.arpa.gz"])
@pytest.mark.parametrize("smoothing", [KneserNey(), KneserNey(prune_thresholds=(0, 1)), WittenBell(), StupidBackoff()])
def test_a_written_file_is_read_back(tmp_path, smoothing, name):
    """The same rows, the same words, logs within 1e-6; writing again gives the same file."""
    tables, words = trained(smoothing)
    file = tmp_path / name
    write_arpa(file, tables, words)
    again, words_again = read_arpa(file)
    assert words_again == words and jax.tree.structure(again) == jax.tree.structure(tables)
    for (path, result), expected in zip(jax.tree.leaves_with_path(again), jax.tree.leaves(tables), strict=True):
        assert result.dtype == expected.dtype and result.shape == expected.shape, path
        impossible = (expected < LOG_ZERO + 1e-3) & (
            result < LOG_ZERO + 1e-3
        )  # a word that was never seen: -99 either way
        np.testing.assert_allclose(result[~impossible], expected[~impossible], rtol=0, atol=1e-6, err_msg=str(path))
    first = file.read_bytes()
    write_arpa(file, again, words_again)
    assert file.read_bytes() == first and [path.name for path in tmp_path.iterdir()] == [name]
    assert first.startswith(b"\x1f\x8b") == name.endswith(".gz")


def test_a_model_without_its_longest_ngrams(tmp_path):
    """A text shorter than the order: orders of no n-grams, and one that cannot be longer than 1."""
    for order in (1, 5):
        model = NGram(5, order)
        tables = model.fit({"target": Ragged.from_rows([[4]])})
        write_arpa(tmp_path / "model.arpa", tables, ("<pad>", "<unk>", "<s>", "</s>", "a"))
        again, _ = read_arpa(tmp_path / "model.arpa")
        jax.tree.map(lambda result, expected: np.testing.assert_allclose(result, expected, atol=1e-6), again, tables)


def test_files_of_other_tools(tmp_path):
    """Windows line ends, spaces for tabs, no `<unk>`, no `</s>`, weights of 0 left out, -inf; gzip by its content."""
    text = "\\data\\\r\nngram  1 = 2\r\nngram 2=1\r\n\\1-grams:\r\n-inf <s>  -0.5\r\n-0.1 x\r\n\r\n"
    text += "\\2-grams:\r\n-0.3 <s> x\r\n\\end\\\r\n"
    for content in (text.encode(), gzip.compress(text.encode())):
        file = tmp_path / "model"
        file.write_bytes(content)
        tables, words = read_arpa(file)
        assert words == ("<pad>", "<unk>", "<s>", "</s>", "x")
        np.testing.assert_allclose(tables["order1"]["logprob"][[UNK, BOS, EOS]], LOG_ZERO, rtol=1e-6)
        np.testing.assert_allclose(tables["order1"]["backoff"] / math.log(10), [0, 0, -0.5, 0, 0])
        np.testing.assert_allclose(tables["order2"]["logprob"] / math.log(10), [-0.3], rtol=1e-6)


@pytest.mark.parametrize(
    "old, new, line, message",
    [
        ("ngram 2=4", "ngram 2=5", 20, "4 2-grams end here, but the header says 5"),
        ("ngram 3=2", "ngram 3=1", 24, "2 3-grams end here, but the header says 1"),
        ("ngram 2=4", "ngram 3=4", 4, "expected the count of 2-grams"),
        ("ngram 1=5\nngram 2=4\nngram 3=2\n", "", 4, "expected 'ngram 1=...'"),
        ("\\2-grams:", "\\3-grams:", 14, "expected \\2-grams:"),
        ("-0.75\tb a", "-0.75\ta", 17, "2 columns, expected 3 or 4"),
        ("-0.75\tb a", "-0.75\tb a b -0.1", 17, "5 columns, expected 3 or 4"),
        ("-0.1\t<s> a b", "-0.1\t<s> a b\t-0.5", 21, "-0.5: no n-gram of the highest order has one but 0"),
        ("ngram 2=4", "ngram 2=" + "9" * 5000, 4, "expected \\1-grams:"),
        ("ngram 3=2", "ngram 3=2\n" + "\n".join(f"ngram {n}=0" for n in range(4, 70)), 67, "at most 64 words"),
        ("-1.0\t<unk>", "-1.0\t<unk>\n-1.0\t<UNK>", 10, "the 1-gram '<UNK>' once more"),
        ("-0.75\tb a", "-7_5\tb a", 17, "'-7_5', expected a log10"),
        ("\\end\\", "", 24, "the file ends before"),
        ("\\end\\", "\\4-grams:", 24, "expected \\end\\"),
        ("-0.75\tb a", "0.75\tb a", 17, "'0.75', expected a log10 of a probability"),
        ("-0.75\tb a", "nan\tb a", 17, "'nan', expected a log10"),
        ("-0.75\tb a", "much\tb a", 17, "'much', expected a log10"),
        ("a b\t-0.125", "a b\tinf", 15, "'inf', expected a log10 of a weight"),
        ("-0.6\t</s>", "-0.6\tc", 18, "the word '</s>' is not among the 1-grams"),
        ("-0.75\tb a", "-0.75\tb c", 17, "the word 'c' is not among the 1-grams"),
        ("-0.2\ta b a", "-0.2\tb b a", 22, "begins with 'b b', which is not among the shorter"),
        ("-0.75\tb a", "-0.75\ta b", 17, "the 2-gram of line 15 once more"),
        ("-0.4\tb\t-0.2", "-0.4\ta\t-0.2", 11, "the 1-gram 'a' once more"),
    ],
)
def test_errors_name_the_line(tmp_path, old, new, line, message):
    assert BY_HAND.count(old) == 1
    file = write(tmp_path, BY_HAND.replace(old, new))
    with pytest.raises(UserError) as caught:
        read_arpa(file)
    assert str(caught.value).startswith(f"{file}, line {line}: ") and message in str(caught.value)


def test_a_file_that_is_not_arpa(tmp_path):
    with pytest.raises(UserError, match="or is not an ARPA file"):
        read_arpa(write(tmp_path, "a\nb\n"))
    with pytest.raises(UserError, match="was not found"):
        read_arpa(tmp_path / "absent.arpa")


def test_the_unknown_word_in_capitals_and_zeros_at_the_highest_order(tmp_path):
    """Both as KenLM reads them, and white space that does not separate words."""
    expected, words = read_arpa(write(tmp_path, BY_HAND))
    text = BY_HAND.replace("<unk>", "<UNK>").replace("<s> a b\n", "<s> a b\t0\n").replace("b a b\n", "b a b\t-0.0\n")
    tables, words_again = read_arpa(write(tmp_path, text.replace("b", "10\u00a0000")))
    assert words_again == tuple(word.replace("b", "10\u00a0000") for word in words)
    jax.tree.map(np.testing.assert_array_equal, tables, expected)
    assert WordTokenizer(words_again[4:]).encode(["a 10\u00a0000 a"])[0].tolist() == [4, 5, 4]


@pytest.mark.parametrize("word", ["", "a b", "\t", "\n", "<s>", "w4", "<UNK>", "\0"])
def test_words_that_an_arpa_file_cannot_hold(tmp_path, word):
    tables, words = trained(WittenBell(), 2)
    with pytest.raises(UserError, match="id 9 is the word"):
        write_arpa(tmp_path / "model.arpa", tables, (*words[:9], word, *words[10:]))
    with pytest.raises(UserError, match="17 words for a model of 18 ids"):
        write_arpa(tmp_path / "model.arpa", tables, words[:-1])
    assert not list(tmp_path.iterdir())
