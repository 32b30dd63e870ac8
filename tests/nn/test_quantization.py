"""Reduced precision is close to float32, and an ensemble is the mean of its members."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.cli_runs import command  # noqa: F401 (a fixture)
from fixtures.tiny_run import EXPERIMENT
from fixtures.zoo import ZOO, batch_of, examples, logits, params_of

from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.request import DecodeRequest
from jaxlm.errors import UserError
from jaxlm.models.encoder import Encoder
from jaxlm.models.ensemble import Ensemble, ensemble_params
from jaxlm.nn.layers.embedding import embed_ids, vocab_logits
from jaxlm.nn.transformer.layer_stack import decoding_params
from jaxlm.nn.weights.weight_formats import Int8, kernel_matmul, quantize_rows
from jaxlm.pipeline.pipeline import cast_for_inference, prepare_params
from jaxlm.training.loop import train

BATCH = batch_of(examples(6), 6, 6)


def test_rounding_is_to_the_nearest_of_255_levels():
    weights = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    weights[0, :, 0] = 0
    values, scale = quantize_rows(jnp.asarray(weights).swapaxes(1, 2))
    assert values.dtype == jnp.int8 and scale.shape == (3, 7)
    np.testing.assert_allclose(scale[1], abs(weights[1]).max(0) / 127, rtol=1e-6)
    assert (abs(values.swapaxes(1, 2) * scale[:, None] - weights) <= scale[:, None] * 0.501 + 1e-30).all()


@pytest.mark.parametrize("dynamic", [False, True])
def test_int8_products(dynamic):
    rng = np.random.default_rng(1)
    x, kernel, table = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 32), (32, 9), (9, 32)))
    small, wide = (Int8(*quantize_rows(jnp.asarray(w)), dynamic) for w in (kernel.T, table))
    np.testing.assert_allclose(kernel_matmul(jnp.asarray(x), small, jnp.float32), x @ kernel, atol=0.25)
    np.testing.assert_allclose(vocab_logits(jnp.asarray(x), wide), x @ table.T, atol=0.25)
    np.testing.assert_allclose(embed_ids(wide, jnp.array([[3, 3], [0, 8]])), table[[[3, 3], [0, 8]]], atol=0.02)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("pre", "bfloat16"),
        ("pre", "int8"),
        ("llama", "int8"),
        ("llama", "int8_dynamic"),
        ("feedforward_lm", "int8"),
        ("lstm_lm", "int8"),
    ],
)
def test_reduced_precision_is_close(name, precision):
    model, params = ZOO[name].model, params_of(ZOO[name].model)
    expected_BTV = logits(model, params, BATCH)
    found_BTV = logits(*cast_for_inference(model, params, precision), BATCH)
    error = abs(found_BTV - expected_BTV)[BATCH.target_valid_BT].mean() / expected_BTV.std()
    assert 1e-5 < error < 0.05


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_prepared_parameters_are_not_prepared_again(precision):
    """Nor is a call of the model traced for it, in each program that decodes: there is none here."""
    model, params = cast_for_inference(ZOO["pre"].model, params_of(ZOO["pre"].model), precision)
    prepared = prepare_params(model, params)
    assert decoding_params(prepared, None) is prepared
    with pytest.raises(TypeError):
        decoding_params(params, None)


def test_an_unknown_precision():
    with pytest.raises(UserError, match="precision='fp4' must be one of float32, bfloat16"):
        cast_for_inference(ZOO["pre"].model, {}, "fp4")


@pytest.mark.parametrize("mean", ["probabilities", "logarithms"])
def test_an_ensemble_is_the_mean_of_its_members(mean):
    """With models of different kinds; beam search works with it."""
    members = [ZOO[name].model for name in ("pre", "seq2seq_dot")]
    params = [params_of(model) for model in members]
    model, both = Ensemble(tuple(members), mean), ensemble_params(params)
    parts = [jax.nn.log_softmax(logits(*part, BATCH)) for part in zip(members, params, strict=True)]
    expected = np.mean(parts, 0) if mean == "logarithms" else np.log(np.mean(np.exp(parts), 0))
    actual = jax.nn.log_softmax(logits(model, both, BATCH))
    valid_BT = BATCH.target_valid_BT
    np.testing.assert_allclose(actual[valid_BT], jax.nn.log_softmax(expected)[valid_BT], atol=1e-4)
    bos_B1 = np.full((6, 1), 2)
    request = DecodeRequest(BATCH, bos_B1, bos_B1 > 0, np.full(6, 4))
    hypotheses = beam_search(model, both, request, BeamSearchConfig(4, beam=Beam(2)))
    assert (np.asarray(hypotheses.length_BN) > 0).all()


@pytest.mark.slow
def test_the_commands(tmp_path, command):  # noqa: F811
    """An ensemble of a model with itself is that model; reduced precision works; another tokenizer is refused."""
    train(replace(EXPERIMENT, steps=1), tmp_path / "a")
    tokenizer = tmp_path / "a" / "tokenizer"
    plain = command("score", tmp_path / "a", stdin=b"a b c\tB\n")
    twice = command("score", tmp_path / "a", "--ensemble", tmp_path / "a", stdin=b"a b c\tB\n")
    small = command("score", tmp_path / "a", "--precision", "int8", stdin=b"a b c\tB\n")
    assert plain.code == small.code == 0
    numbers = [float(actual.lines[0].split()[0]) for actual in (plain, twice, small)]
    assert abs(numbers[0] - numbers[1]) < 1e-4 and 1e-5 < abs(numbers[0] - numbers[2]) < 0.5
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    other = tmp_path / "b" / "tokenizer"
    next(path for path in other.iterdir()).write_bytes(next(path for path in tokenizer.iterdir()).read_bytes() + b" ")
    refused = command("predict", tmp_path / "a", "--ensemble", tmp_path / "b", stdin=b"a\n")
    assert refused.code == 1 and "another tokenizer than" in refused.err


def test_reduced_precision_of_an_encoder():
    model = Encoder(23, 8, 2, 12, 1, max_length=16, dropout=0.0, attention_dropout=0.0)
    params = params_of(model)
    expected_BSV = jax.jit(model.apply)({"params": params}, BATCH)
    model, narrow = cast_for_inference(model, params, "int8_dynamic")
    error = abs(jax.jit(model.apply)({"params": narrow}, BATCH) - expected_BSV).mean() / expected_BSV.std()
    assert 1e-5 < error < 0.05


def test_gradients_of_bfloat16_logits():
    """Products of bfloat16, the incoming gradient included, accumulated in float32."""
    keys = jax.random.split(jax.random.key(0), 3)
    x_RD, table_VD, d_RV = (
        jax.random.normal(key, shape) for key, shape in zip(keys, ((5, 16), (23, 16), (5, 23)), strict=True)
    )
    x_RD = x_RD.astype(jnp.bfloat16)

    @jax.jit
    def gradients(x_RD, table_VD, d_RV):
        return jax.vjp(vocab_logits, x_RD, table_VD)[1](d_RV)

    d_x_RD, d_table_VD = gradients(x_RD, table_VD, d_RV)
    x, table, d = (np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x_RD, table_VD, d_RV))
    assert d_x_RD.dtype == jnp.bfloat16 and d_table_VD.dtype == np.float32
    np.testing.assert_allclose(d_table_VD, d.T @ x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(d_x_RD, np.float64), d @ table, rtol=2**-8, atol=1e-5)
    assert abs(np.asarray(d_table_VD) - np.asarray(d_RV, np.float64).T @ x).max() > 1e-3, "d was rounded"
