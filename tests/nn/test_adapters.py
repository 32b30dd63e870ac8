"""LoRA and bottleneck adapters of any linear map: their formulas, and merging without a change of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.zoo import ZOO, batch_of, examples, logits, params_of

from jaxlm.errors import UserError
from jaxlm.finetuning import Adapters, FineTuning, LoRA
from jaxlm.nn.layers.adapters import merge_lora
from jaxlm.nn.layers.linear import Linear, fused_projection
from jaxlm.pipeline.pipeline import cast_for_inference, prepare_params
from jaxlm.pytree import named_leaves

BATCH = batch_of(examples(4), 6, 6)
EVERYWHERE = LoRA((".",), rank=2, alpha=6.0)


def randomized(params, seed: int = 0):
    """Random adapter parameters instead of zeros, so that every one of them has an effect."""
    rng = np.random.default_rng(seed)
    names = iter(named_leaves(params))

    def draw(leaf):
        added = {"low_rank", "bottleneck"} & set(next(names).split("/"))
        return jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype) if added else leaf

    return jax.tree.map(draw, params)


@pytest.mark.parametrize("name", ["llama", "gpt2", "seq2seq_dot"])
def test_merging_lora_changes_nothing(name):
    """With LoRA on every linear map of the model, inside and outside of the stack of layers."""
    model, params = ZOO[name].model, params_of(ZOO[name].model)
    fresh = FineTuning(lora=EVERYWHERE).add_adapters(params, jax.random.key(0))
    assert len(named_leaves(fresh)) > len(named_leaves(params))
    np.testing.assert_array_equal(logits(model, fresh, BATCH), logits(model, params, BATCH))
    adapted = randomized(fresh)
    actual, expected = logits(model, merge_lora(adapted), BATCH), logits(model, adapted, BATCH)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - logits(model, params, BATCH)).max() > 0.1
    assert jax.tree.structure(merge_lora(adapted)) == jax.tree.structure(params)


def test_the_formulas():
    """y + (alpha / R) x A B, and then y + gelu(y V + c) U + d, in NumPy."""
    rng = np.random.default_rng(0)
    x, layer = rng.normal(size=(3, 5)).astype(np.float32), Linear(4)
    plain = layer.init(jax.random.key(0), x)["params"]
    tuning = FineTuning(lora=LoRA((".*",), 2, 6.0), adapters=Adapters((".*",), 3))
    params = jax.tree.map(np.asarray, randomized(tuning.add_adapters({"map": plain}, jax.random.key(1)))["map"])
    low, neck = params["low_rank"], params["bottleneck"]
    y = x @ params["kernel"] + params["bias"] + 3.0 * (x @ low.down) @ low.up
    hidden = np.asarray(jax.nn.gelu(y @ neck.down + neck.down_bias[None]))
    expected = y + hidden @ neck.up + neck.up_bias[None]
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


def test_fused_projections_apply_the_adapters_of_each_map():
    x, maps = np.ones((2, 5), np.float32), (Linear(4, parent=None), Linear(3, parent=None))

    class Two(Linear):
        def setup(self):
            self.one, self.other = Linear(4), Linear(3)

        def __call__(self, x):
            return fused_projection(x, self.one, self.other)

    made = Two(1)
    params = made.init(jax.random.key(0), x)["params"]
    adapted = randomized(FineTuning(lora=LoRA(("other",), 2)).add_adapters(params, jax.random.key(1)))
    assert set(adapted["one"]) == {"kernel", "bias"} and set(adapted["other"]) == {"kernel", "bias", "low_rank"}
    for actual, name, one in zip(made.apply({"params": adapted}, x), ("one", "other"), maps, strict=True):
        np.testing.assert_allclose(actual, one.apply({"params": adapted[name]}, x), rtol=1e-5)


def test_lora_dropout():
    """Active if and only if there is a key; the mean over keys equals the output without a key."""
    x, layer = np.ones((400, 5), np.float32), Linear(4)
    params = randomized(FineTuning(lora=LoRA(dropout=0.5, targets=(".*",))).add_adapters(
        {"map": layer.init(jax.random.key(0), x)["params"]}, jax.random.key(1)))["map"]  # fmt: skip
    without = layer.apply({"params": params}, x)
    dropped = layer.apply({"params": params}, x, rngs={"dropout": jax.random.key(2)})
    assert np.ptp(without, axis=0).max() < 1e-5 < 0.1 < np.ptp(dropped, axis=0).max()
    np.testing.assert_allclose(dropped.mean(0), without[0], atol=0.15)


def test_bottlenecks_survive_inference_formats():
    """Unstacked layers and reduced precision keep adapters unchanged."""
    model, params = ZOO["gpt2"].model, params_of(ZOO["gpt2"].model)
    fresh = FineTuning(adapters=Adapters(bottleneck_dim=3)).add_adapters(params, jax.random.key(0))
    np.testing.assert_array_equal(logits(model, fresh, BATCH), logits(model, params, BATCH))
    adapted = randomized(fresh)
    expected = logits(model, adapted, BATCH)
    np.testing.assert_allclose(logits(model, prepare_params(model, adapted), BATCH), expected, rtol=1e-5, atol=1e-5)
    narrow = logits(*cast_for_inference(model, adapted, "bfloat16"), BATCH)
    assert 0 < np.abs(narrow - expected).max() < 0.2
    assert np.abs(expected - logits(model, params, BATCH)).max() > 0.1


def test_patterns_without_a_match():
    params = params_of(ZOO["gpt2"].model)
    with pytest.raises(UserError, match=r"'querry' matches no linear layer; the model has\n  stack/layers/attention"):
        FineTuning(lora=LoRA(("querry",))).add_adapters(params, jax.random.key(0))
    with pytest.raises(UserError, match="finetuning.trainable: 'heads/' matches no parameter"):
        FineTuning(trainable=("heads/",)).add_adapters(params, jax.random.key(0))
    with pytest.raises(UserError, match="not a regular expression"):
        FineTuning(adapters=Adapters(("(",))).add_adapters(params, jax.random.key(0))
    with pytest.raises(UserError, match="rank 0"):
        LoRA(rank=0)
