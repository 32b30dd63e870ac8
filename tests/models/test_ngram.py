"""n-gram models against the formulas, by hand and by dictionaries; and on real text."""

import gzip
import math
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references.ngram_oracle import kneser_ney, occurrences, sentences, stupid_backoff, witten_bell

from jaxlm.config.serialization import from_json, to_json
from jaxlm.data.ragged import Ragged
from jaxlm.data.tokenizers.base import BOS, EOS, PAD
from jaxlm.data.tokenizers.simple import Characters, Words
from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.losses import NEVER_LOGIT
from jaxlm.models.ngram import NGram
from jaxlm.ngram.counts import LOG_ZERO, count_ngrams, to_levels, to_tables
from jaxlm.ngram.smoothing import KneserNey, StupidBackoff, WittenBell, adjusted_counts, estimate_discounts
from jaxlm.types import Batch

VOCAB, ORDER = 12, 3
WORDS = [word for word in range(VOCAB) if word not in (PAD, BOS)]
RARE = VOCAB - 1
"""A word of the vocabulary that the text lacks."""


def corpus(rows: int = 60, seed: int = 2) -> list[np.ndarray]:
    """Sentences of Zipf-like words, 1 = `<unk>` and the ids from 4 to RARE - 1, an empty sentence among them."""
    rng = np.random.default_rng(seed)
    ids = np.array([1, *range(4, RARE)])
    odds = 1 / np.arange(1, len(ids) + 1) ** 1.3
    return [rng.choice(ids, length, p=odds / odds.sum()) for length in [0, *rng.integers(1, 9, rows - 1)]]


ROWS = corpus()


def histories(order: int, count: int = 80) -> np.ndarray:
    """Random histories of order - 1 ids: most unseen, some behind `<s>`, some of a place before the text."""
    return np.random.default_rng(5).choice([-1, BOS, *WORDS], (count, order - 1)).astype(np.int32)


def fitted(model: NGram, rows=ROWS):
    return model.fit({"target": Ragged.from_rows(rows)})


def logprobs(model: NGram, params, context_RK: np.ndarray) -> np.ndarray:
    """(R, V) float64 log-probabilities."""
    found = jax.jit(lambda params, x: model.apply({"params": params}, x, method="readout"))(params, context_RK)
    assert found.dtype == jnp.float32
    return np.asarray(found, np.float64)


def assert_agrees(model: NGram, params, probability) -> None:
    """All words after many histories, the seen ones too, as the reference says."""
    seen = [gram[:-1] for gram in occurrences(sentences(ROWS), model.order) if len(gram) == model.order][::3]
    context_RK = np.concatenate([histories(model.order), np.array(seen, np.int32)])
    found = logprobs(model, params, context_RK)[:, WORDS]
    for row, context in zip(found, context_RK.tolist(), strict=True):
        known = max((i for i, word in enumerate(context) if word in (-1, BOS)), default=-1)
        history = tuple(context[known + (known >= 0 and context[known] == -1) :] if known >= 0 else context)
        expected = [probability(word, history) for word in WORDS]
        np.testing.assert_allclose(np.exp(row), expected, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("prune", [(), (0, 1, 1), (0, 0, 2)])
def test_kneser_ney_is_the_formula(prune):
    model = NGram(VOCAB, ORDER, KneserNey(prune_thresholds=prune))
    assert_agrees(model, fitted(model), kneser_ney(sentences(ROWS), ORDER, WORDS, prune or (0, 0, 0)))


def test_both_kinds_of_discounts_were_tried():
    found = [estimate_discounts(count) for count in adjusted_counts(count_ngrams(Ragged.from_rows(ROWS), VOCAB, ORDER))]
    assert found[0] is None and found[1] is not None and found[2] is not None


@pytest.mark.parametrize("order", [1, 2])
def test_kneser_ney_of_low_order(order):
    model = NGram(VOCAB, order)
    assert_agrees(model, fitted(model), kneser_ney(sentences(ROWS), order, WORDS, (0, 0)))


def test_witten_bell_is_the_formula():
    model = NGram(VOCAB, ORDER, WittenBell())
    assert_agrees(model, fitted(model), witten_bell(sentences(ROWS), ORDER, WORDS))


def test_stupid_backoff_is_the_formula():
    model = NGram(VOCAB, ORDER, StupidBackoff(0.3))
    params = fitted(model)
    assert_agrees(model, params, stupid_backoff(sentences(ROWS), ORDER, 0.3))
    context = np.array([[4, 4]], np.int32)
    assert logprobs(model, params, context)[0, RARE] <= LOG_ZERO / 2  # never seen, not even alone


def test_a_stream_is_one_sentence_without_end():
    """The texts one after the other behind one <s>, each with </s> at its end or not."""
    rows = [row for row in ROWS[:20] if len(row)]
    for end in (True, False):
        text = [BOS] + [int(word) for row in rows for word in [*row, *[EOS] * end]]
        for smoothing, reference in (
            (KneserNey(), kneser_ney([text], ORDER, WORDS, (0, 0, 0))),
            (WittenBell(), witten_bell([text], ORDER, WORDS)),
        ):
            model = NGram(VOCAB, ORDER, smoothing, continuous_text=True, append_eos=end)
            found = logprobs(model, fitted(model, rows), np.array([[4, 5], [-1, BOS], [EOS, 4], [5, RARE]], np.int32))
            for row, history in zip(found, [(4, 5), (BOS,), (EOS, 4), (5, RARE)], strict=True):
                expected = [reference(word, history) for word in WORDS]
                np.testing.assert_allclose(np.exp(row[WORDS]), expected, rtol=2e-6, atol=1e-9)


def test_by_hand():
    """Three sentences: a b, a b, c b. Bigrams: D1 = 1/3, D2 = 3/2, D3 = 3; words: 1/2, 1, 3/2 for want of n3.

    Different words before a, b, c, </s>: 1, 2, 1, 1. p(b) = (2 - 1)/5 + (1/2) (1/5), p(a) = p(c) = p(</s>) = 1/5.
    """
    a, b, c = 4, 5, 6
    model = NGram(7, 2)
    params = fitted(model, [[a, b], [a, b], [c, b]])
    found = np.exp(logprobs(model, params, np.array([[a], [b], [c], [BOS], [-1]], np.int32)))
    by_hand = [
        (0, b, 0.475), (0, c, 0.15), (1, EOS, 0.2), (2, b, 23 / 30), (3, a, 13 / 45), (3, c, 31 / 90),
        (4, b, 0.3), (4, a, 0.2), (4, 1, 0.1), (4, EOS, 0.2),
    ]  # fmt: skip
    for row, word, p in by_hand:
        assert found[row, word] == pytest.approx(p, rel=1e-6)


@pytest.mark.parametrize(
    "smoothing",
    [KneserNey(), KneserNey(prune_thresholds=(0, 1, 1, 2)), WittenBell(), WittenBell(prune_thresholds=(0, 0, 1))],
)
def test_probabilities_sum_to_one(smoothing):
    """So the logits are log-probabilities, and softmax leaves them as they are."""
    model = NGram(VOCAB, 4, smoothing)
    found = logprobs(model, fitted(model), histories(4, 300))
    np.testing.assert_allclose(np.exp(found).sum(1), 1.0, rtol=1e-6)
    assert (found[:, [PAD, BOS]] == np.float32(NEVER_LOGIT)).all() and (found[:, WORDS] > -20).all()


def test_a_common_history_is_written_in_blocks(monkeypatch):
    """More words after a history than a block holds."""
    model = NGram(VOCAB, ORDER)
    params, context_RK = fitted(model), histories(ORDER)
    expected = logprobs(model, params, context_RK)
    monkeypatch.setattr("jaxlm.models.ngram.WORDS_PER_BLOCK", 2)
    np.testing.assert_array_equal(logprobs(model, params, context_RK), expected)


@pytest.mark.parametrize("order", [1, ORDER])
def test_looked_up_labels_are_the_logits(order):
    model = NGram(VOCAB, order)
    params = fitted(model)
    context_BTK = histories(order, 60).reshape(5, 12, order - 1)
    label_BT = np.random.default_rng(1).integers(0, VOCAB, (5, 12)).astype(np.int32)
    found = model.apply({"params": params}, context_BTK, label_BT, method="logprob")
    logits = model.apply({"params": params}, context_BTK, method="readout")
    assert logits.shape == (5, 12, VOCAB)
    np.testing.assert_array_equal(found, np.take_along_axis(np.asarray(logits), label_BT[..., None], 2)[..., 0])


def test_before_the_first_token():
    """A sentence begins after <s>; of a stream nothing is known."""
    for stream, like in ((False, BOS), (True, -1)):
        model = NGram(VOCAB, ORDER, continuous_text=stream)
        state = model.start(Batch(target_BT=np.zeros((2, 4), np.int32)), 0)
        params = fitted(model)
        found, expected = logprobs(model, params, state.token_BK), logprobs(model, params, np.array([[-1, like]] * 2))
        np.testing.assert_array_equal(found, expected)


def test_init_is_uniform_and_any_sizes_fit():
    """`init` knows no text; the same model takes the tables of any text, also of one shorter than the order."""
    model, batch = NGram(VOCAB, 4), Batch(target_BT=np.array([[BOS, 4]]), target_valid_BT=np.ones((1, 2), bool))
    params = model.init(jax.random.key(0), batch)["params"]
    found = np.asarray(model.apply({"params": params}, batch))[..., WORDS]
    np.testing.assert_allclose(found, -math.log(VOCAB - 2), rtol=1e-6)
    short = fitted(model, [[4]])
    assert jax.tree.structure(short) == jax.tree.structure(params)
    assert all(leaf.size and leaf.dtype in (np.int32, np.float32) for leaf in jax.tree.leaves(short))
    found = np.exp(np.asarray(model.apply({"params": short}, batch), np.float64))
    np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-6)
    assert found[0, 0, 4] > 0.6 and found[0, 1, EOS] > 0.6


def test_tables_and_levels_are_the_same():
    for rows in (ROWS, [[4]]):
        params = fitted(NGram(VOCAB, 4), rows)
        again = to_tables(to_levels(params))
        jax.tree.map(np.testing.assert_array_equal, again, params)


def test_greedy_and_sampled_text():
    """A text that only ever says 4 5 6 7 is continued so, and samples follow the probabilities."""
    model = NGram(VOCAB, 3, continuous_text=True, append_eos=False)
    params = fitted(model, [[4, 5, 6, 7] * 30])
    prompt = np.array([[4, 5], [6, 7]], np.int32)
    batch = Batch(target_BT=prompt, target_valid_BT=prompt > 0)
    found = generate(model, params, DecodeRequest(batch, prompt, prompt > 0, np.full(2, 6)), GenerationConfig(6, ()))
    np.testing.assert_array_equal(found.tokens_BT, [[6, 7, 4, 5, 6, 7], [4, 5, 6, 7, 4, 5]])
    rows = 2000
    prompt = np.full((rows, 1), 4, np.int32)
    model = NGram(VOCAB, 2)
    params = fitted(model)
    batch = Batch(target_BT=prompt, target_valid_BT=prompt > 0)
    request = DecodeRequest(batch, prompt, prompt > 0, np.full(rows, 1))
    sampled = generate(model, params, request, GenerationConfig(1, (), Sampler(temperature=1.0)))
    share = np.bincount(np.asarray(sampled.tokens_BT)[:, 0], minlength=VOCAB) / rows
    np.testing.assert_allclose(share, np.exp(logprobs(model, params, np.array([[4]])))[0], atol=0.05)


def test_the_object_is_the_config():
    model = NGram(VOCAB, 4, KneserNey(prune_thresholds=(0, 0, 1)), continuous_text=True)
    assert from_json(to_json(model)) == model and hash(replace(model)) == hash(model)


@pytest.mark.parametrize(
    "model, rows, message",
    [
        (NGram(VOCAB, 0), [[4]], "order 0"),
        (NGram(VOCAB), [[4, VOCAB]], f"id {VOCAB}, but the model has ids 0 to {VOCAB - 1}"),
        (NGram(VOCAB), [[4, -7]], "id -7"),
        (NGram(VOCAB), [[], []], "every row is empty"),
        (NGram(VOCAB), [[4, BOS]], "remove these ids"),
        (NGram(VOCAB), [[PAD, 4]], "remove these ids"),
        (NGram(VOCAB, 2, KneserNey(prune_thresholds=(1,))), [[4]], "start with 0"),
        (NGram(VOCAB, 3, WittenBell(prune_thresholds=(0, 2, 1))), [[4]], "never fall"),
        (NGram(VOCAB, 2, WittenBell(prune_thresholds=(0, 1, 1))), [[4]], "at most 2"),
        (NGram(VOCAB, 2, StupidBackoff(0.0)), [[4]], "alpha"),
    ],
)
def test_errors(model, rows, message):
    with pytest.raises(UserError, match=message):
        fitted(model, rows)


def score(model: NGram, params, ids: np.ndarray) -> np.ndarray:
    """Log-probability of each id but the first, given those before it."""

    def read(params, ids_BT):
        state = model.start(Batch(target_BT=ids_BT), 0)
        context_BTK, _ = model.apply({"params": params}, ids_BT, state, jnp.ones_like(ids_BT, bool), method="extend")
        return model.apply({"params": params}, context_BTK[:, :-1], ids_BT[:, 1:], method="logprob")[0]

    return np.asarray(jax.jit(read)(params, ids[None].astype(np.int32)), np.float64)


@pytest.mark.data
def test_tiny_shakespeare(data_root):
    """Nats a character of the last tenth, after the first nine: 1.669 is the published figure of a 5-gram."""
    with gzip.open(data_root / "tinyshakespeare/input.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read()
    tokenizer = Characters().fit([text])
    ids = tokenizer.encode([text])[0]
    train, valid = ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]
    found = {}
    for smoothing in (WittenBell(), KneserNey()):
        model = NGram(tokenizer.vocab_size, 5, smoothing, continuous_text=True, append_eos=False)
        params = fitted(model, [train])
        found[type(smoothing)] = -score(model, params, valid).mean()
    assert found[WittenBell] <= 1.669  # 1.6688
    assert found[KneserNey] <= 1.562  # 1.5611


@pytest.mark.data
def test_wikitext2(data_root):
    """Kneser-Ney 5-grams of 2 million words in seconds; perplexity with <unk> as a word, every line a sentence."""
    sides = []
    for split in ("train", "valid"):
        with gzip.open(data_root / f"wikitext2/{split}.txt.gz", "rt", encoding="utf-8") as lines:
            sides.append([line for line in lines if line.strip()])
    tokenizer = Words(vocab_size=10**6).fit(sides[0])
    train, valid = (tokenizer.encode(side) for side in sides)
    model = NGram(tokenizer.vocab_size, 5)
    began = time.process_time()
    params = fitted(model, train)
    assert time.process_time() - began < 30
    ids = np.concatenate([[BOS, *row, EOS] for row in valid])
    logprob, label = score(model, params, ids), ids[1:]
    assert 200_000 < (label != BOS).sum() < 220_000 and (logprob[label == BOS] == np.float32(NEVER_LOGIT)).all()
    assert math.exp(-logprob[label != BOS].mean()) < 240  # 239.98; KenLM says the same of the same tables
