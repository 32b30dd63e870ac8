"""The parts of a state that the slots share and those of each slot: caches, prompts, coverage."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from fixtures.zoo import ZOO, batch_of, examples, params_of, sharpened

from jaxlm.decode import beam_search as search_module
from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError

ROWS = examples(6, low=2, high=5)
LIMIT_B = np.array([6, 5, 4, 6, 1, 6], np.int32)
PROMPTED = ["transformer", "mistral", "seq2seq_additive_feeding"]


def prompts(name):
    """A model, its parameters, and a request: sources, and prompts of different lengths padded on the left."""
    batch = batch_of(ROWS, 6, 5, "right", "left")
    source = batch.replace(target_BT=None, target_valid_BT=None, label_BT=None)
    request = DecodeRequest(source if ZOO[name].source else batch, batch.target_BT, batch.target_valid_BT, LIMIT_B)
    return ZOO[name].model, sure(name), request


def sure(name):
    return sharpened(params_of(ZOO[name].model), 3)


@pytest.mark.parametrize("name", ["pre", pytest.param("mistral", marks=pytest.mark.slow)])
def test_shared_caches_equal_gathered_caches(name, monkeypatch):
    """Shared caches under the writer mask give the same hypotheses as caches that are gathered."""
    search = (*prompts(name), BeamSearchConfig(6, beam=Beam(4, 4, length_penalty=0.6, stopping_rule="full")))
    side_by_side = jax.device_get(beam_search(*search))
    monkeypatch.setattr(search_module, "MAX_SHARED_CACHE_BEAMS", 0)
    search_module._beam_search.clear_cache()
    gathered = jax.device_get(beam_search(*search))
    search_module._beam_search.clear_cache()
    np.testing.assert_array_equal(side_by_side.tokens_BNT, gathered.tokens_BNT)
    np.testing.assert_allclose(side_by_side.score_BN, gathered.score_BN, atol=1e-5)
    assert len(np.unique(gathered.tokens_BNT)) > 6


@pytest.mark.parametrize("name", PROMPTED)
def test_samples_of_one_prompt_are_samples_of_equal_prompts(name):
    """A prompt is read once for three samples; each equals the sample of a prompt of its own."""
    model, params, request = prompts(name)
    config = GenerationConfig(6, sampler=Sampler(2.0, top_k=9))
    addressed = {"limit_B": np.repeat(LIMIT_B, 3), "seed": 5, "line_B": np.arange(18)}
    together = generate(model, params, replace(request, **addressed), config)
    apart = jax.tree.map(lambda leaf: np.repeat(leaf, 3, axis=0), replace(request, seed=None))
    expected = generate(model, params, replace(apart, **addressed), config)
    np.testing.assert_array_equal(together.tokens_BT, expected.tokens_BT)
    np.testing.assert_allclose(together.logprob_B, expected.logprob_B, rtol=1e-3, atol=ZOO[name].tolerance)
    assert len(np.unique(together.tokens_BT, axis=0)) > 9


@pytest.mark.parametrize("name", [pytest.param("transformer", marks=pytest.mark.slow), "seq2seq_dot"])
def test_coverage_equals_the_attention_of_a_second_pass(name):
    """S = s / L + beta * sum log min(c, 1), with c summed over the tokens of the hypothesis in a second pass."""
    model, params = ZOO[name].model, sure(name)
    batch = batch_of(ROWS, 6, 5)
    source = batch.replace(target_BT=None, target_valid_BT=None, label_BT=None)
    bos_B1 = np.full((len(ROWS), 1), 2, np.int32)
    ask = (model, params, DecodeRequest(source, bos_B1, bos_B1 > 0, LIMIT_B))
    beam = Beam(3, 2, coverage_penalty=0.7)
    hypotheses = jax.device_get(beam_search(*ask, BeamSearchConfig(6, beam=beam)))
    attention = jax.jit(lambda params, batch: model.apply({"params": params}, batch, method="cross_attention_weights"))
    for n in range(2):
        target_BT = np.concatenate([bos_B1, hypotheses.tokens_BNT[:, n, :-1]], 1)
        valid_BT = np.arange(6)[None] < hypotheses.length_BN[:, n, None]
        covered_BS = np.asarray(attention(params, batch.replace(target_BT=target_BT, target_valid_BT=valid_BT))).sum(1)
        logs_BS = np.where(batch.source_valid_BS, np.log(np.minimum(covered_BS + 1e-30, 1)), 0)
        expected_B = hypotheses.logprob_BN[:, n] / hypotheses.length_BN[:, n] + 0.7 * logs_BS.sum(1)
        real_B = hypotheses.length_BN[:, n] > 0
        np.testing.assert_allclose(hypotheses.score_BN[real_B, n], expected_B[real_B], rtol=1e-4, atol=1e-4)
    plain = beam_search(*ask, BeamSearchConfig(6, beam=replace(beam, coverage_penalty=0.0)))
    assert (np.asarray(plain.score_BN) > hypotheses.score_BN).any()


def test_coverage_needs_attention():
    with pytest.raises(
        UserError, match="coverage_penalty > 0 needs attention to a source, which RecurrentLM does not have"
    ):
        beam_search(*prompts("lstm_lm"), BeamSearchConfig(6, beam=Beam(2, coverage_penalty=0.1)))
