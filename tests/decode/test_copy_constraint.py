"""Text between two marks is a substring of the source; the masks equal a definition over lists on random cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.table_model import TableModel, random_cases

from jaxlm.data.tokenizers.base import EOS
from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.copy_constraint import make_copy_constraint
from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_NONE, FINISH_STOP
from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError

OPEN, CLOSE, SIZE = 4, 5, 9  # 6, 7 and 8 are words
ROWS, ROOM = 60, 9


def parts(ids):
    """Return the tokens between each pair of marks, and whether the last pair is closed; marks do not nest."""
    runs, inside = [], None
    for index in ids:
        if inside is None:
            assert index != CLOSE
            inside = [] if index == OPEN else None
        elif index == CLOSE:
            runs.append(inside)
            inside = None
        else:
            inside.append(index)
    return ([*runs, inside], False) if inside is not None else (runs, True)


def is_copied(ids, source):
    runs = [source[i : i + n] for n in range(1, 9) for i in range(9)]
    return ids in [run for run in runs if run and all(i > EOS and i != CLOSE for i in run)]


def may_go_on(tokens, token, remaining, source):
    """The definition, over lists."""
    runs, closed = parts(tokens)
    if closed:
        some = any(i > EOS and i != CLOSE for i in source)
        return token != CLOSE and (token != OPEN or (some and remaining >= 4))
    if token == CLOSE:
        return bool(runs[-1]) and remaining >= 2
    return remaining >= 3 and is_copied([*runs[-1], token], source)


@pytest.fixture(scope="module")
def sources():
    """Sources with padding on either side or none; some contain special ids and marks, some are empty."""
    rng = np.random.default_rng(0)
    source = rng.choice(
        [1, 2, 3, OPEN, CLOSE, 6, 7, 8], p=[0.05, 0.05, 0.05, 0.05, 0.05, 0.25, 0.25, 0.25], size=(ROWS, 7)
    )
    valid = rng.random((ROWS, 7)) < 0.8
    valid[0] = False
    return source, valid, [source[row][valid[row]].tolist() for row in range(ROWS)]


def test_masks_equal_the_definition_over_lists(sources):
    source, valid, lists = sources
    grammar, rng = make_copy_constraint(source, valid, OPEN, CLOSE), np.random.default_rng(1)
    state, tokens = grammar.initial_state(1), [[] for _ in range(ROWS)]
    allowed_of, advance = jax.jit(lambda s, r: grammar.allowed_tokens(s, r, SIZE)), jax.jit(grammar.advance)
    for remaining in range(ROOM, 0, -1):
        allowed = np.asarray(allowed_of(state, jnp.full(ROWS, remaining)))[:, 0]
        expected = [[may_go_on(tokens[row], v, remaining, lists[row]) for v in range(SIZE)] for row in range(ROWS)]
        np.testing.assert_array_equal(allowed, expected)
        assert allowed.any(axis=1).all()
        weight = allowed * np.array([1, 1, 1, 1, 6, 4, 2, 2, 2.0])
        token = [rng.choice(SIZE, p=row / row.sum()) for row in weight]
        tokens = [[*ids, int(one)] for ids, one in zip(tokens, token, strict=True)]
        state = advance(state, jnp.asarray(token)[:, None])


def quoted(tokens, lists, lengths):
    """Return the number of quotations; each is closed, and a substring of its source."""
    count = 0
    for ids, source, length in zip(tokens.tolist(), lists, lengths, strict=True):
        runs, closed = parts([i for i in ids[:length] if i != EOS])
        assert closed and all(is_copied(run, source) for run in runs)
        count += len(runs)
    return count


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(temperature=0.0), Sampler(top_k=1, temperature=3.0)])
def test_generated_quotations(sources, sampler):
    source, valid, lists = sources
    cases = random_cases(TableModel(SIZE, order=1), np.random.default_rng(2), ROWS)
    table = np.where(np.isneginf(cases.table_BCV), -30.0, cases.table_BCV)
    table[:, :, OPEN] += 2
    model, limit = TableModel(SIZE, order=1), np.arange(ROWS) % ROOM + 1
    grammar = make_copy_constraint(source, valid, OPEN, CLOSE)
    request = DecodeRequest(model.batch(table), cases.prompt_BP, cases.prompt_valid_BP, limit, grammar=grammar)
    output = jax.device_get(generate(model, {}, request, GenerationConfig(ROOM, (EOS,), sampler)))
    assert (output.reason_B != FINISH_NONE).all()
    assert quoted(output.tokens_BT, lists, output.length_B) > 20


@pytest.mark.parametrize("limit", ["keep", "force_eos"])
def test_quotations_of_a_beam(sources, limit):
    source, valid, lists = sources
    cases = random_cases(TableModel(SIZE, order=1), np.random.default_rng(3), ROWS)
    model, table = TableModel(SIZE, order=1), np.where(np.isneginf(cases.table_BCV), -30.0, cases.table_BCV)
    table[:, :, OPEN] += 2
    grammar, limit_B = make_copy_constraint(source, valid, OPEN, CLOSE), np.full(ROWS, ROOM)
    request = DecodeRequest(model.batch(table), cases.prompt_BP, cases.prompt_valid_BP, limit_B, grammar=grammar)
    config = BeamSearchConfig(ROOM, beam=Beam(3, 3, at_max_length=limit))
    output = jax.device_get(beam_search(model, {}, request, config))
    assert (output.reason_BN[:, 0] != FINISH_NONE).all() and (
        limit == "keep" or (output.reason_BN[:, 0] == FINISH_STOP).all()
    )
    assert sum(quoted(output.tokens_BNT[:, n], lists, output.length_BN[:, n]) for n in range(3)) > 60


def test_marks_must_differ():
    with pytest.raises(UserError, match="both id 4"):
        make_copy_constraint(np.zeros((1, 1)), np.ones((1, 1)), 4, 4)
