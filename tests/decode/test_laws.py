"""Laws of the searches: the exhaustive optimum, harmless stopping, independent rows, one slot is greedy, one score."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from fixtures.table_model import TableModel, random_cases
from references.decode_oracle import S

from jaxlm.decode import score
from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.logit_masks import ForcedPrefix, LogitMasks
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_LENGTH, FINISH_NONE, FINISH_STOP
from jaxlm.decode.sampling import Sampler
from jaxlm.decode.score import score_targets
from jaxlm.errors import UserError
from jaxlm.types import Batch

MODEL, ROWS, LENGTH_ROOM, STOPS = TableModel(5), 96, 8, (3,)
CASES = random_cases(MODEL, np.random.default_rng(7), ROWS, prompt=3)
LIMITS = np.random.default_rng(8).integers(0, LENGTH_ROOM + 1, ROWS).astype(np.int32)


def request_of(cases, limit_B, **fields):
    return DecodeRequest(cases.batch, cases.prompt_BP, cases.prompt_valid_BP, limit_B, **fields)


def search(cases=CASES, limit_B=LIMITS, beam=None, length=LENGTH_ROOM, stop=STOPS, **fields):
    config = BeamSearchConfig(length, stop, beam or Beam(4, 2))
    return jax.device_get(beam_search(MODEL, {}, request_of(cases, limit_B, **fields), config))


def write(cases=CASES, limit_B=LIMITS, **options):
    config = GenerationConfig(LENGTH_ROOM, STOPS, **options)
    return jax.device_get(generate(MODEL, {}, request_of(cases, limit_B), config))


def assert_same(actual, expected):
    for field in dataclasses.fields(expected):
        np.testing.assert_array_equal(getattr(actual, field.name), getattr(expected, field.name), err_msg=field.name)


@pytest.mark.parametrize("size, length, rows", [(4, 4, 6), (2, 5, 24)])
def test_a_wide_beam_is_exhaustive(size, length, rows):
    model, stop = TableModel(size), (size - 1,)
    cases = random_cases(model, np.random.default_rng(size), rows)
    limit_B = np.full(rows, length, np.int32)
    strings = [t for n in range(1, length + 1) for t in itertools.product(range(size), repeat=n)]
    strings = [t for t in strings if stop[0] not in t[:-1] and (t[-1] in stop or len(t) == length)]
    logprobs = [cases.logprob(row) for row in range(rows)]
    s = [[sum(p(list(t[:i]))[t[i]] for i in range(len(t))) for t in strings] for p in logprobs]
    for penalty, alpha in [("none", 1), *itertools.product(("power", "gnmt"), (-1, 0, 0.6, 1, 2))]:
        beam = Beam(size**length, length_penalty_kind=penalty, length_penalty=float(alpha))
        hypotheses = beam_search(model, {}, request_of(cases, limit_B), BeamSearchConfig(length, stop, beam))
        for row in range(rows):
            scores = [S(beam, s[row][i], len(strings[i])) for i in range(len(strings))]
            tokens = tuple(np.asarray(hypotheses.tokens_BNT[row, 0, : hypotheses.length_BN[row, 0]]))
            np.testing.assert_allclose(hypotheses.score_BN[row, 0], max(scores), atol=1e-5)
            np.testing.assert_allclose(scores[strings.index(tokens)], max(scores), atol=1e-5)


@pytest.mark.parametrize("reward", [0.0, -0.25, 0.75])
def test_exact_stop_changes_nothing(reward):
    """A positive reward invalidates the bound; the search must then run to the limit."""
    for penalty, alpha in [("none", 1), ("gnmt", -1), ("gnmt", 2), ("power", -1), ("power", 0.6), ("power", 1)]:
        beam = Beam(4, 2, length_penalty_kind=penalty, length_penalty=float(alpha), length_reward=reward)
        assert_same(search(beam=beam), search(beam=dataclasses.replace(beam, stopping_rule="never")))


def test_a_row_does_not_depend_on_its_batch():
    expected = search()
    order = np.random.default_rng(1).permutation(ROWS)
    assert_same(search(CASES.take(order), LIMITS[order]), jax.tree.map(lambda leaf: leaf[order], expected))
    some = order[:8]
    assert_same(search(CASES.take(some), LIMITS[some]), jax.tree.map(lambda leaf: leaf[some], expected))
    other = np.where(np.arange(ROWS) % 2 == 0, LIMITS, LENGTH_ROOM).astype(np.int32)
    assert_same(
        jax.tree.map(lambda leaf: leaf[::2], search(limit_B=other)), jax.tree.map(lambda leaf: leaf[::2], expected)
    )


def test_prompt_padding_and_spare_length_leave_no_trace():
    wide = ((0, 0), (2, 1))
    padded = dataclasses.replace(
        CASES,
        prompt_BP=np.pad(CASES.prompt_BP, wide, constant_values=4),
        prompt_valid_BP=np.pad(CASES.prompt_valid_BP, wide),
    )
    expected, hypotheses = search(), search(padded, length=LENGTH_ROOM + 3)
    assert_same(
        dataclasses.replace(
            hypotheses,
            tokens_BNT=hypotheses.tokens_BNT[:, :, :LENGTH_ROOM],
            token_logprob_BNT=hypotheses.token_logprob_BNT[:, :, :LENGTH_ROOM],
        ),
        expected,
    )


@pytest.mark.parametrize("min_length, no_repeat_ngram", [(0, 0), (3, 2)])
def test_one_slot_is_greedy(min_length, no_repeat_ngram):
    hypotheses = search(beam=Beam(1, min_length=min_length, no_repeat_ngram_size=no_repeat_ngram))
    sampler = Sampler(temperature=0.0, top_k=min_length)  # the filters do not matter
    greedy = write(sampler=sampler, logit_masks=LogitMasks(min_length=min_length, no_repeat_ngram_size=no_repeat_ngram))
    written = greedy.reason_B != FINISH_NONE
    np.testing.assert_array_equal(hypotheses.reason_BN[:, 0], greedy.reason_B)
    np.testing.assert_array_equal(hypotheses.tokens_BNT[written, 0], greedy.tokens_BT[written])
    np.testing.assert_array_equal(hypotheses.token_logprob_BNT[written, 0], greedy.token_logprob_BT[written])
    np.testing.assert_array_equal(hypotheses.logprob_BN[written, 0], greedy.logprob_B[written])
    assert set(greedy.reason_B) >= {FINISH_STOP, FINISH_LENGTH}


def test_a_likely_stop_is_not_the_likeliest():
    """P(stop) = .40, P(a) = .60: accepting every stop among the top 2k would give an empty string."""
    table_BCV = np.full((ROWS, MODEL.contexts, MODEL.size), -np.inf, np.float32)
    table_BCV[:, :, 1], table_BCV[:, :, 3] = np.log(0.6), np.log(0.4)
    trap, limit_B = dataclasses.replace(CASES, table_BCV=table_BCV), np.full(ROWS, 4, np.int32)
    hypotheses, greedy = search(trap, limit_B, beam=Beam(1)), write(trap, limit_B)
    assert (hypotheses.tokens_BNT[:, 0, :4] == 1).all() and (hypotheses.reason_BN == FINISH_LENGTH).all()
    np.testing.assert_array_equal(hypotheses.tokens_BNT[:, 0], greedy.tokens_BT)


def test_scoring_a_hypothesis_gives_its_s(monkeypatch):
    hypotheses = search()
    room = CASES.prompt_BP.shape[1] + LENGTH_ROOM
    target_BT, label_BT, generated_BT = np.zeros((3, ROWS, room), np.int32)
    for row in range(ROWS):
        prompt = CASES.prompt_BP[row][CASES.prompt_valid_BP[row]]
        tokens = hypotheses.tokens_BNT[row, 0, : hypotheses.length_BN[row, 0]]
        target_BT[row, : len(prompt) + len(tokens)] = [*prompt, *tokens]
        label_BT[row, len(prompt) - 1 : len(prompt) - 1 + len(tokens)] = tokens
        generated_BT[row, len(prompt) - 1 : len(prompt) - 1 + len(tokens)] = 1
    valid_BT = np.arange(room)[None, :] < CASES.prompt_valid_BP.sum(1)[:, None] + hypotheses.length_BN[:, :1]
    monkeypatch.setattr(score, "MAX_LOGITS", 3 * MODEL.size * ROWS)
    batch = Batch(CASES.batch.source_BS, target_BT=target_BT, target_valid_BT=valid_BT, label_BT=label_BT)
    scored = jax.device_get(score_targets(MODEL, {}, batch))
    np.testing.assert_array_equal(scored.count_B, valid_BT.sum(axis=1))
    written = hypotheses.length_BN[:, 0] > 0
    s_B = np.where(generated_BT, scored.token_logprob_BT, 0.0).sum(axis=1)
    np.testing.assert_allclose(s_B[written], hypotheses.logprob_BN[written, 0], atol=1e-4, rtol=0)


def test_empty_rows():
    """Limit 0, everything banned, and live hypotheses dropped at the limit: no hypothesis, and no NaN."""
    hypotheses = search()
    blank = LIMITS == 0
    assert blank.any() and (hypotheses.reason_BN[blank] == FINISH_NONE).all()
    assert (hypotheses.length_BN[blank] == 0).all()
    assert (hypotheses.reason_BN[~blank, 0] != FINISH_NONE).all()
    forced = ForcedPrefix(np.full((ROWS, 1), 4, np.int32), np.ones((ROWS, 1), bool))
    nothing = search(beam=Beam(2, suppress_tokens=(4,), at_max_length="drop"), forced_prefix=forced)
    for result in (jax.tree.map(lambda leaf: leaf[blank], hypotheses), nothing):
        assert not result.tokens_BNT.any() and not result.length_BN.any()
        assert np.isneginf(result.score_BN).all() and np.isneginf(result.logprob_BN).all()
    greedy = write()
    assert not greedy.length_B[blank].any() and not greedy.logprob_B[blank].any()


def test_invalid_options_are_refused():
    for options in (
        {"num_beams": 0},
        {"num_beams": 2, "num_return_sequences": 3},
        {"stopping_rule": "early"},
        {"length_penalty": np.inf},
        {"suppress_tokens": (-1,)},
    ):
        with pytest.raises(UserError):
            Beam(**options)
    with pytest.raises(UserError, match="force_eos"):
        search(beam=Beam(at_max_length="force_eos"), stop=())
    with pytest.raises(UserError, match="limit_B"):
        search(limit_B=LIMITS[1:])
    with pytest.raises(UserError, match="label_BT"):
        score_targets(MODEL, {}, Batch(target_BT=CASES.prompt_BP, target_valid_BT=CASES.prompt_valid_BP))
