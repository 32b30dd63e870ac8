"""One network for source and target equals a language model on both in one row."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.zoo import ZOO, Example, batch_of, by_example, examples, extend, logits, params_of, sharpened, start

from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.request import DecodeRequest
from jaxlm.errors import UserError
from jaxlm.models.prefix_lm import PrefixLM
from jaxlm.objectives.next_token import NextToken

JOINED = ZOO["joined"].model
ROWS = examples(6, high=5)


@pytest.mark.parametrize("layout", ["right", "holes"])
def test_it_is_a_language_model_of_source_and_target(layout):
    """The logits at the target of a row "source target", read by the inner model alone."""
    batch = batch_of(ROWS, 7, 6, layout, layout)
    both = [Example(row.source, *[np.append(row.source, row.target)] * 2) for row in ROWS]
    whole = batch_of(both, 5, 10)
    whole_BTV = np.asarray(logits(JOINED.model, params_of(JOINED)["model"], whole))
    expected = [whole_BTV[i, len(row.source) : len(row.source) + len(row.target)] for i, row in enumerate(ROWS)]
    actual = by_example(logits(JOINED, params_of(JOINED), batch), batch.target_valid_BT)
    np.testing.assert_allclose(actual, np.concatenate(expected), rtol=1e-5, atol=1e-5)


def test_the_loss_is_on_the_target_alone():
    """Its count is that of the target's tokens, and it is the target's part of the inner model's loss."""
    batch = batch_of(ROWS, 7, 6)
    params = params_of(JOINED)
    loss = NextToken()(JOINED, params, batch, None)
    assert loss.count == sum(len(row.target) for row in ROWS)
    logprob_BTV = jax.nn.log_softmax(logits(JOINED, params, batch))
    expected = np.take_along_axis(np.asarray(logprob_BTV), batch.label_BT[..., None], 2)[..., 0][batch.target_valid_BT]
    np.testing.assert_allclose(loss.total, -expected.sum(), rtol=1e-5)


class Counter(nn.Module):
    """A model whose features are the sum of the ids in its cache, which has `capacity` positions."""

    size: int = 23

    def start(self, batch, capacity):
        rows = batch.source_BS.shape[0]
        return {"slots_BC": jnp.zeros((rows, capacity), jnp.int32), "used_B": jnp.zeros(rows, jnp.int32)}

    def extend(self, tokens_BT, state, valid_BT):
        slot_BT = state["used_B"][:, None] + jnp.cumsum(valid_BT, 1) - 1
        row_B1 = jnp.arange(tokens_BT.shape[0])[:, None]
        slot_BT = jnp.where(valid_BT, slot_BT, state["slots_BC"].shape[1])
        slots_BC = state["slots_BC"].at[row_B1, slot_BT].set(tokens_BT, mode="drop")
        return slots_BC.sum(1, keepdims=True) + 0 * tokens_BT, {
            "slots_BC": slots_BC,
            "used_B": state["used_B"] + valid_BT.sum(1),
        }

    def readout(self, features):
        return jax.nn.one_hot(features, self.size)


def test_capacity_counts_the_source():
    """A token beyond the capacity is lost: with room for 3 target tokens, source and target fit."""
    batch = batch_of([replace(row, target=row.target[:3], label=row.target[:3]) for row in ROWS], 7, 3)
    model = PrefixLM(Counter())
    state = start(model, {}, batch, 3)
    assert state.model_state["slots_BC"].shape == (len(ROWS), 7 + 3)
    (total_BT, after) = model.apply({}, batch.target_BT, state, batch.target_valid_BT | True, method="extend")
    source_B = np.where(batch.source_valid_BS, batch.source_BS, 0).sum(1)
    np.testing.assert_array_equal(total_BT[:, -1], source_B + batch.target_BT.sum(1))
    assert after.source_BS is None


def test_the_source_is_read_once():
    """Also if the first `extend` reads it: a second one continues with the target."""
    batch, params = batch_of(ROWS, 7, 6), params_of(JOINED)
    state, actual = start(JOINED, params, batch, 0), []
    for piece in (slice(0, 2), slice(2, 6)):
        now, state = extend(JOINED, params, state, batch.target_BT[:, piece], batch.target_valid_BT[:, piece])
        actual.append(now)
    expected = by_example(logits(JOINED, params, batch), batch.target_valid_BT)
    actual = by_example(np.concatenate(actual, 1), batch.target_valid_BT)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_beam_and_greedy_search():
    params = sharpened(params_of(JOINED), 4)
    limit_B = np.full(len(ROWS), 4)
    source = batch_of(ROWS, 7, 6).replace(target_BT=None, target_valid_BT=None, label_BT=None)
    bos_B1 = np.full((len(ROWS), 1), 2, np.int32)
    request = DecodeRequest(source, bos_B1, np.ones_like(bos_B1, bool), limit_B)
    greedy = generate(JOINED, params, request, GenerationConfig(4))
    one = beam_search(JOINED, params, request, BeamSearchConfig(4, beam=Beam(1)))
    np.testing.assert_array_equal(one.tokens_BNT[:, 0], greedy.tokens_BT)
    assert len(np.unique(greedy.tokens_BT)) > 4


def test_unsupported_batches():
    batch = batch_of(ROWS, 7, 6)
    with pytest.raises(UserError, match="no source"):
        logits(JOINED, params_of(JOINED), batch.replace(source_BS=None))
    with pytest.raises(UserError, match="Buckets, not Packing"):
        logits(JOINED, params_of(JOINED), batch.replace(target_segment_BT=np.ones_like(batch.target_BT)))
