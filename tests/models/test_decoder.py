"""The decoder-only Transformer: published sizes, sliding window, beam search, and invalid options."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from fixtures.zoo import GPT2, LLAMA, ZOO, batch_of, examples, extend, logits, params_of, start

from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.request import DecodeRequest
from jaxlm.errors import UserError
from jaxlm.models.decoder import Decoder
from jaxlm.models.properties import abstract_params
from jaxlm.nn.layers.positions import LinearScaling, Llama3Scaling, Rotary, Yarn
from jaxlm.objectives.next_token import NextToken
from jaxlm.types import Batch

LLAMA_3_8B = Decoder(
    128_256, 4096, 32, 14_336, 32, kv_heads=8, position="rotary", norm_kind="rms", activation="swiglu",
    qkv_bias=False, out_bias=False, ffn_bias=False, tie_embeddings=False,
)  # fmt: skip
SIZES = [
    (Decoder(50_257, 768, 12, 3072, 12), 124_439_808),
    (Decoder(50_257, 1024, 16, 4096, 24), 354_823_168),
    (Decoder(50_257, 1280, 20, 5120, 36), 774_030_080),
    (Decoder(50_257, 1600, 25, 6400, 48), 1_557_611_200),
    (LLAMA_3_8B, 8_030_261_248),
    (replace(LLAMA_3_8B, vocab=32_000, window=4096), 7_241_732_096),
]


@pytest.mark.parametrize("model, count", SIZES, ids=["124M", "355M", "774M", "1558M", "Llama-3-8B", "Mistral-7B"])
def test_the_published_sizes(model, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model))) == count


def test_the_reach_of_a_window():
    """With w positions a layer and L layers, a token sees L (w - 1) tokens back."""
    model, batch = replace(LLAMA, window=2, layers=2), batch_of(examples(4, 8, 8), 8, 8)
    other_BT = np.array(batch.target_BT)
    other_BT[:, 2] = (other_BT[:, 2] + 1) % 19 + 4
    actual = [logits(model, params_of(model), batch.replace(target_BT=ids)) for ids in (batch.target_BT, other_BT)]
    moved_BT = abs(actual[0] - actual[1]).max(2) > 0
    np.testing.assert_array_equal(moved_BT, np.broadcast_to([0, 0, 1, 1, 1, 0, 0, 0], moved_BT.shape))


@pytest.mark.parametrize("name", [pytest.param("llama", marks=pytest.mark.slow), "mistral"])
def test_beam_scores_equal_the_scores_of_the_text(name):
    """With ragged prompts, reordered beams and a window: each score equals that of the text without a cache."""
    model, params = ZOO[name].model, params_of(ZOO[name].model)
    batch, limit_B = batch_of(examples(5), 8, 8, target_layout="holes"), np.array([6, 5, 6, 1, 3])
    request = DecodeRequest(batch, batch.target_BT, batch.target_valid_BT, limit_B)
    actual = beam_search(model, params, request, BeamSearchConfig(6, (3,), Beam(4, 3, length_penalty_kind="none")))
    read_BT, valid_BT = np.zeros((15, 16), np.int32), np.zeros((15, 16), bool)
    spoken, prompts = np.asarray(actual.length_BN).reshape(-1), batch.target_valid_BT.sum(1).repeat(3)
    for row in range(15):
        prompt = batch.target_BT[row // 3][batch.target_valid_BT[row // 3]]
        text = np.concatenate([prompt, actual.tokens_BNT[row // 3, row % 3, : spoken[row]]])
        read_BT[row, : len(text)], valid_BT[row, : len(text)] = text, True
    logprob_BTV = jax.nn.log_softmax(logits(model, params, Batch(target_BT=read_BT, target_valid_BT=valid_BT)))
    for row, (begin, count) in enumerate(zip(prompts, spoken, strict=True)):
        places = np.arange(begin, begin + count)
        expected = np.asarray(logprob_BTV)[row, places - 1, read_BT[row, places]].sum()
        np.testing.assert_allclose(actual.logprob_BN[row // 3, row % 3], expected, rtol=1e-5, atol=1e-5)


def test_dropout_is_on_with_a_key():
    """Everywhere, with scan and remat; and none without a key."""
    sites, batch, params = ("dropout", "attention_dropout", "activation_dropout"), batch_of(examples(4), 8, 8), None
    for site in sites:
        model = replace(LLAMA, scan=True, remat=True, **{site: 0.4})
        params = params_of(model)
        actual = [NextToken()(model, params, batch, key).total for key in (None, *jax.random.split(jax.random.key(0)))]
        assert len({float(total) for total in actual}) == 3 and np.isfinite(actual).all(), site
        np.testing.assert_allclose(actual[0], NextToken()(LLAMA, params, batch, None).total, rtol=1e-5)


def test_scaled_rates():
    """Fast channels are kept, slow ones divided by the factor; scaled positions rotate like near ones."""
    rate_H = 10_000.0 ** (-np.arange(0, 64, 2) / 64)
    for scaling in (Llama3Scaling(factor=4.0, original_max_positions=256), Yarn(4.0, 256)):
        scaled_H, _ = scaling.scale_frequencies(rate_H, 10_000.0)
        np.testing.assert_allclose(scaled_H[[0, -1]], rate_H[[0, -1]] / [1.0, 4.0])
        assert (np.diff(scaled_H) < 0).all()
    far = Rotary(scaling=LinearScaling(4.0)).rotation(np.array([[40]]), 8)
    np.testing.assert_allclose(far, Rotary().rotation(np.array([[10]]), 8), rtol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"heads": 3}, "width of 8 does not divide into 3 heads"),
        ({"heads": 4, "kv_heads": 3}, "4 heads of queries cannot share 3"),
        ({"position": "rotary", "head_dim": 3}, "make it even"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(replace(GPT2, **options).init, jax.random.key(0), batch_of(examples(2), 8, 8))


def test_padding_has_no_position():
    """Rows and caches may be longer than the learned positions: the tokens in them count."""
    model, params, batch = replace(GPT2, max_length=5), params_of(GPT2), batch_of(examples(4), 8, 8, "left", "left")
    params = params | {"absolute_position": {"table": params["absolute_position"]["table"][:5]}}
    expected = np.asarray(logits(GPT2, params_of(GPT2), batch))[batch.target_valid_BT]
    np.testing.assert_allclose(np.asarray(logits(model, params, batch))[batch.target_valid_BT], expected, rtol=1e-5)
    state = start(model, params, batch, 30)
    cached_BTV, _ = extend(model, params, state, batch.target_BT, batch.target_valid_BT)
    np.testing.assert_allclose(np.asarray(cached_BTV)[batch.target_valid_BT], expected, rtol=1e-4, atol=1e-5)
