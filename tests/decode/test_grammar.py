"""Under a grammar every model generates complete texts within the limit, independent of the batch."""

import re

import jax
import numpy as np
import pytest
from fixtures.table_model import TableModel, random_cases

from jaxlm.data.tokenizers.base import EOS
from jaxlm.data.tokenizers.simple import Characters
from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.generate import GenerationConfig, generate, generate_stream
from jaxlm.decode.grammar import batch_dfa
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_NONE, FINISH_STOP
from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.grammar.regex import regex_to_dfa
from jaxlm.grammar.token_dfa import build_token_dfa

TOKENIZER = Characters().fit(["aaabbc"])  # ids 4, 5, 6
MODEL = TableModel(9, order=1)  # two ids more than the tokenizer has
PATTERNS = ["a*b", "(a|bc){2,}", "c|ab", "[abc]*", "(?:abc)+"]
AUTOMATA = [build_token_dfa(regex_to_dfa(pattern), TOKENIZER) for pattern in PATTERNS]
ROWS, ROOM = 40, 8
OF_ROW = np.arange(ROWS) % len(PATTERNS)
LIMIT = np.array([AUTOMATA[row].shortest_length for row in OF_ROW]) + np.arange(ROWS) // len(PATTERNS) % 4


@pytest.fixture(scope="module")
def cases():
    output = random_cases(MODEL, np.random.default_rng(0), ROWS)
    output.table_BCV[np.isneginf(output.table_BCV)] = -30.0  # a model that can say everything
    return output


def requests_of(cases, **fields):
    """For each pattern: itself, its rows, and their request."""
    for number, pattern in enumerate(PATTERNS):
        rows = np.flatnonzero(OF_ROW == number)
        yield pattern, rows, request_of(cases, rows, **fields)


def request_of(cases, rows, **fields):
    some, grammar = cases.take(rows), batch_dfa(AUTOMATA[OF_ROW[rows[0]]], LIMIT[rows])
    lines = rows.astype(np.uint32)
    return DecodeRequest(
        some.batch, some.prompt_BP, some.prompt_valid_BP, LIMIT[rows], grammar=grammar, line_B=lines, **fields
    )


SAMPLERS = {
    "greedy": Sampler(temperature=0.0),
    "sampling": Sampler(),
    "hot": Sampler(temperature=8.0),
    "filters": Sampler(temperature=1.5, top_k=1, top_p=0.1, min_p=0.9),
    "penalty": Sampler(temperature=0.7, top_p=0.5, repetition_penalty=1.5),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_texts_are_complete_and_fit(cases, name):
    config = GenerationConfig(ROOM, sampler=SAMPLERS[name])
    for pattern, rows, request in requests_of(cases, seed=3):
        output = jax.device_get(generate(MODEL, {}, request, config))
        assert (output.reason_B == FINISH_STOP).all() and (output.length_B <= LIMIT[rows]).all()
        assert all(re.fullmatch(pattern, text) for text in TOKENIZER.decode(output.tokens_BT.tolist()))
        *_, streamed = generate_stream(MODEL, {}, request, config)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(streamed), output)


@pytest.mark.parametrize("limit", ["keep", "force_eos", "drop"])
@pytest.mark.parametrize("size", [1, 3])
def test_beams_are_complete_and_fit(cases, limit, size):
    beam = Beam(size, size, at_max_length=limit, stopping_rule="full")
    for pattern, rows, request in requests_of(cases):
        output = jax.device_get(beam_search(MODEL, {}, request, BeamSearchConfig(ROOM, beam=beam)))
        assert (output.reason_BN[:, 0] == FINISH_STOP).all() and (output.length_BN <= LIMIT[rows][:, None]).all()
        some = output.tokens_BNT[output.reason_BN != FINISH_NONE]
        assert all(re.fullmatch(pattern, text) for text in TOKENIZER.decode(some.tolist()))
        if size == 1:
            greedy = jax.device_get(generate(MODEL, {}, request, GenerationConfig(ROOM)))
            np.testing.assert_array_equal(output.tokens_BNT[:, 0], greedy.tokens_BT)


def test_a_wide_beam_finds_the_best_text(cases):
    """Against all texts, each scored by the model; the automaton state of a slot moves with it."""
    row, limit = 1 * len(PATTERNS) + 3, 4
    one = cases.take(np.array([row]))
    logprob = one.logprob(0)
    texts = [list(ids) for n in range(limit) for ids in np.ndindex(*(3,) * n)]
    texts = [[i + 4 for i in ids] for ids in texts if re.fullmatch("(a|bc)*", "".join("abc"[i] for i in ids))]
    scores = {tuple(ids): sum(logprob(ids[:at])[t] for at, t in enumerate([*ids, EOS])) for ids in texts}
    ranked = sorted(scores, key=lambda ids: -scores[ids])
    automaton = build_token_dfa(regex_to_dfa("(a|bc)*"), TOKENIZER)
    beam, grammar = Beam(16, 4, length_penalty_kind="none", stopping_rule="never"), batch_dfa(automaton, [limit])
    request = DecodeRequest(one.batch, one.prompt_BP, one.prompt_valid_BP, np.array([limit]), grammar=grammar)
    output = beam_search(MODEL, {}, request, BeamSearchConfig(limit, beam=beam))
    for n in range(4):
        size = int(output.length_BN[0, n])
        assert tuple(np.asarray(output.tokens_BNT)[0, n, : size - 1].tolist()) == ranked[n]
        np.testing.assert_allclose(output.logprob_BN[0, n], scores[ranked[n]], atol=1e-4)


def test_batch_mates_and_their_limits_leave_no_trace(cases):
    config = GenerationConfig(ROOM, sampler=Sampler())
    for _, rows, request in requests_of(cases):
        both = jax.device_get(generate(MODEL, {}, request, config))
        output = jax.device_get(generate(MODEL, {}, request_of(cases, rows[::3]), config))
        jax.tree.map(lambda some, all_: np.testing.assert_array_equal(some, all_[::3]), output, both)


def test_masks_equal_the_table():
    """Exactly the ids that are forbidden or too far from the end are masked; ids beyond the tokenizer are, too."""
    remaining_B = np.arange(ROWS) % 6
    for table in AUTOMATA:
        state_BK = np.random.default_rng(1).integers(0, len(table.next_QC), (ROWS, 3))
        allowed = np.asarray(batch_dfa(table, [ROOM] * ROWS).allowed_tokens(state_BK, remaining_B, 9))
        after = table.next_QC[state_BK][:, :, table.class_V]
        expected = (after >= 0) & (table.distance_Q[after] < remaining_B[:, None, None])
        np.testing.assert_array_equal(allowed[:, :, :7], expected)
        assert not allowed[:, :, 7:].any()


def test_limits_and_sizes_that_do_not_fit(cases):
    with pytest.raises(UserError, match="the shortest text that matches has 4 tokens"):
        batch_dfa(AUTOMATA[4], [3])
    batch_dfa(AUTOMATA[4], [0])
    with pytest.raises(UserError, match="a tokenizer of 7 ids, but the model has 5"):
        batch_dfa(AUTOMATA[4], [9]).allowed_tokens(np.zeros((1, 1), int), np.array([9]), 5)
