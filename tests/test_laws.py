"""The laws of all sequence models, see `jaxlm.types`: cached or not, in pieces or at once, packed, sharded."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from fixtures.zoo import (
    ZOO,
    Animal,
    batch_of,
    by_example,
    examples,
    extend,
    logits,
    one_by_one,
    packed,
    params_of,
    start,
)

from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.request import DecodeRequest
from jaxlm.distributed.sharding import data_mesh, replicated_sharding, row_sharding
from jaxlm.objectives.next_token import NextToken

TIGHT, WIDE = 5, 8
ROWS = examples(8, high=TIGHT)


@pytest.fixture(params=ZOO)
def animal(request) -> Animal:
    return ZOO[request.param]


def close(animal: Animal, actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, rtol=animal.tolerance, atol=animal.tolerance)


def alone(animal: Animal, source: str = "right", target: str = "right") -> np.ndarray:
    """The logits of all examples without a cache, padded to WIDE."""
    batch = batch_of(ROWS, WIDE, WIDE, source, target)
    return in_order(logits(animal.model, params_of(animal.model), batch), batch)


def in_order(logits_BTV, batch) -> np.ndarray:
    actual = by_example(logits_BTV, batch.target_valid_BT)
    assert actual.dtype == np.float32 and np.isfinite(actual).all() and actual.std() > 0.01
    return actual


@pytest.mark.parametrize("layout", ["right", pytest.param("left", marks=pytest.mark.slow), "holes"])
def test_with_a_cache_equals_without(animal, layout):
    """All at once into a cache, and a token at a time, with any padding."""
    batch, params = batch_of(ROWS, WIDE, WIDE, "right", layout), params_of(animal.model)
    state = start(animal.model, params, batch, WIDE)
    at_once, _ = extend(animal.model, params, state, batch.target_BT, batch.target_valid_BT)
    close(animal, in_order(at_once, batch), alone(animal))
    close(animal, in_order(one_by_one(animal.model, params, batch), batch), alone(animal))


def test_two_pieces_equal_the_whole(animal):
    """Cut at every position, also with an empty side: by masks, and by slices."""
    batch, params = batch_of(ROWS, WIDE, WIDE, "right", "holes"), params_of(animal.model)
    begin = start(animal.model, params, batch, WIDE)
    for cut in range(WIDE + 1):
        first_BT = batch.target_valid_BT & (np.arange(WIDE) < cut)[None]
        a, state = extend(animal.model, params, begin, batch.target_BT, first_BT)
        b, _ = extend(animal.model, params, state, batch.target_BT, batch.target_valid_BT & ~first_BT)
        close(animal, in_order(np.where(first_BT[..., None], a, b), batch), alone(animal))
        actual, state, at = [], begin, 0
        for length in (*pieces(cut), *pieces(WIDE - cut)):
            piece = (slice(None), slice(at, at + length))
            now, state = extend(animal.model, params, state, batch.target_BT[piece], batch.target_valid_BT[piece])
            actual, at = [*actual, now], at + length
        close(animal, in_order(np.concatenate(actual, 1), batch), alone(animal))


def pieces(length: int) -> list[int]:
    """`length` as a sum of few different shapes: each is a compilation."""
    return [4] * (length // 4) + [1] * (length % 4)


def test_every_leaf_of_a_state_has_the_batch_first(animal):
    """And a continuation depends on its row of the state only, as beam search requires."""
    batch, params = batch_of(ROWS, WIDE, WIDE), params_of(animal.model)
    tokens_BT, valid_BT, order = batch.target_BT, batch.target_valid_BT, np.array([3, 3, 0, 7, 1, 1, 1, 5])
    _, state = extend(animal.model, params, start(animal.model, params, batch, WIDE), tokens_BT[:, :2], valid_BT[:, :2])
    assert all(leaf.shape[0] == len(ROWS) for leaf in jax.tree.leaves(state))
    taken = jax.tree.map(lambda leaf: leaf[order], state)
    actual, _ = extend(animal.model, params, taken, tokens_BT[order, 2:3], valid_BT[order, 2:3])
    expected, _ = extend(animal.model, params, state, tokens_BT[:, 2:3], valid_BT[:, 2:3])
    close(animal, actual, expected[order])


@pytest.mark.parametrize("layout", ["left", "holes"])
def test_target_padding_leaves_no_trace(animal, layout):
    close(animal, alone(animal, target=layout), alone(animal))


@pytest.mark.parametrize("layout", ["left", "holes"])
def test_source_padding_leaves_no_trace(animal, layout):
    close(animal, alone(animal, source=layout), alone(animal))


def test_only_the_future_is_masked(animal):
    """Another last token changes its own logits and none before it; another source changes all, if it is read."""
    batch, params = batch_of(examples(8, TIGHT), WIDE, WIDE), params_of(animal.model)
    expected_BTV = logits(animal.model, params, batch)
    other_BT = np.array(batch.target_BT)
    other_BT[:, TIGHT - 1] = (other_BT[:, TIGHT - 1] + 1) % 19 + 4
    found_BTV = logits(animal.model, params, batch.replace(target_BT=other_BT))
    np.testing.assert_array_equal(found_BTV[:, : TIGHT - 1], expected_BTV[:, : TIGHT - 1])
    assert (abs(found_BTV - expected_BTV)[:, TIGHT - 1].max(1) > 1e-3).all()
    other_BS = np.where(batch.source_valid_BS, (batch.source_BS + 1) % 23, batch.source_BS)
    moved_BT = abs(logits(animal.model, params, batch.replace(source_BS=other_BS)) - expected_BTV).max(2)[:, :TIGHT]
    assert (moved_BT > 1e-5).all() if animal.source else (moved_BT == 0).all()


def test_batch_mates_leave_no_trace(animal):
    """Another order of the rows, and a smaller batch with less padding."""
    params, order = params_of(animal.model), np.random.default_rng(0).permutation(len(ROWS))
    expected_BTV = logits(animal.model, params, batch_of(ROWS, WIDE, WIDE))[order]
    for rows, length in ((order, WIDE), (order[:3], TIGHT)):
        batch = batch_of([ROWS[row] for row in rows], length, length)
        expected = by_example(expected_BTV[: len(rows), :length], batch.target_valid_BT)
        close(animal, in_order(logits(animal.model, params, batch), batch), expected)


QUICK = {"transformer", "llama", "lstm_lm", "ngram"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ZOO])
def test_sharded_equals_unsharded(name):
    """Eight rows on eight devices: the same sums and, if the model has gradients, the same gradients."""
    animal = ZOO[name]
    batch, params, mesh = batch_of(ROWS, WIDE, WIDE), params_of(animal.model), data_mesh(8)

    def total(params, batch):
        return NextToken(0.1)(animal.model, params, batch, None).total

    counted = hasattr(animal.model, "fit")  # fitted by counting: tables of integers, no gradients
    gradients = jax.jit((lambda *given: (total(*given), ())) if counted else jax.value_and_grad(total))
    expected, expected_grads = gradients(params, batch)
    actual, grads = gradients(
        jax.device_put(params, replicated_sharding(mesh)), jax.device_put(batch, row_sharding(mesh))
    )
    np.testing.assert_allclose(actual, expected, rtol=animal.tolerance)
    for (path, grad), like in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(grad, like, animal.tolerance, animal.tolerance, err_msg=jax.tree_util.keystr(path))


DECODED = ["transformer", "gpt2", "mistral", "lstm_lm", "ngram", "feedforward_lm", "seq2seq_additive_feeding"]


@pytest.mark.parametrize("name", DECODED)
def test_greedy_tokens_are_the_most_likely_ones(name):
    """Each token of greedy search is the most likely one after all before it, computed without a cache."""
    model, params = ZOO[name].model, params_of(ZOO[name].model)
    prompt, limit_B = batch_of(ROWS, WIDE, WIDE, target_layout="holes"), np.full(len(ROWS), 3)
    request = DecodeRequest(prompt, prompt.target_BT, prompt.target_valid_BT, limit_B)
    actual = generate(model, params, request, GenerationConfig(3, ())).tokens_BT
    outputs = [
        replace(row, target=np.append(row.target, ids[:-1])) for row, ids in zip(ROWS, np.asarray(actual), strict=True)
    ]
    batch = batch_of([replace(row, label=row.target) for row in outputs], WIDE, WIDE)
    likeliest_BT = np.asarray(logits(model, params, batch)).argmax(2)
    for likeliest, valid, ids in zip(likeliest_BT, batch.target_valid_BT, actual, strict=True):
        np.testing.assert_array_equal(likeliest[valid][-3:], ids)


@pytest.mark.parametrize("name", [name for name, animal in ZOO.items() if animal.segments])
def test_packed_equals_unpacked(name):
    """Several examples packed in a row, with segment numbers, have the same logits as in rows of their own."""
    animal, order = ZOO[name], np.argsort([-len(e.source) - len(e.target) for e in ROWS])
    rows = [order[:1], order[[1, 7]], order[2:4], order[4:7]]
    batch = packed([[ROWS[i] for i in row] for row in rows], 3 * TIGHT)
    single = batch_of([ROWS[i] for i in np.concatenate(rows)], WIDE, WIDE)
    params = params_of(animal.model)
    expected = in_order(logits(animal.model, params, single), single)
    close(animal, in_order(logits(animal.model, params, batch), batch), expected)
