"""A GPU looks at the end of a search every few steps only: the steps after the end leave no trace."""

import dataclasses

import jax
import numpy as np
import pytest
from fixtures.zoo import ZOO, batch_of, examples, params_of, sharpened

from jaxlm.decode import beam_search, continuous_batching, generate, prefill
from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.generate import GenerationConfig
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.sampling import Sampler

ROWS = examples(6, low=1, high=6)
LIMIT_B = np.array([1, 11, 3, 12, 0, 7], np.int32)


def request_of(name):
    bos_B1 = np.full((len(ROWS), 1), 2)
    batch = dataclasses.replace(batch_of(ROWS, 6, 6), target_BT=None, target_valid_BT=None, label_BT=None)
    return DecodeRequest(batch, bos_B1, bos_B1 > 0, LIMIT_B, seed=np.int32(1))


@pytest.fixture
def on_a_gpu(monkeypatch):
    """A function that lets the searches be traced as for a GPU."""
    programs = [generate._generate, beam_search._beam_search, continuous_batching._run_steps]

    def pretend():
        monkeypatch.setattr(prefill, "platform_of", lambda x: "gpu")
        for program in programs:
            program.clear_cache()

    yield pretend
    for program in programs:
        program.clear_cache()


@pytest.mark.parametrize("name", ["pre", "gpt2", "lstm_lm"])
@pytest.mark.parametrize("sampler", [Sampler(0.0), Sampler(0.9, repetition_penalty=1.7)], ids=["greedy", "sampled"])
def test_generate(name, sampler, on_a_gpu):
    model, request, config = ZOO[name].model, request_of(name), GenerationConfig(13, (3,), sampler)
    params = sharpened(params_of(model), 3)
    expected = jax.device_get(generate.generate(model, params, request, config))
    on_a_gpu()
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(generate.generate(model, params, request, config)), expected
    )
    assert expected.length_B.max() > 8


@pytest.mark.parametrize("length", [13, 27])
def test_beam_search(length, on_a_gpu):
    """The cache of the first half of the steps may have another size: its sums then have another order."""
    model = ZOO["pre"].model.clone(max_length=64)
    request, config = request_of("pre"), BeamSearchConfig(length, (3,), Beam(3, 2))
    request = dataclasses.replace(request, limit_B=np.minimum(2 * LIMIT_B, length))
    params = sharpened(params_of(model), 3)
    expected = jax.device_get(beam_search.beam_search(model, params, request, config))
    on_a_gpu()
    actual = jax.device_get(beam_search.beam_search(model, params, request, config))
    for field in dataclasses.fields(expected):
        ours, theirs = getattr(actual, field.name), getattr(expected, field.name)
        if length == 27 and ours.dtype == np.float32:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
