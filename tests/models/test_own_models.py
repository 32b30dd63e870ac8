"""Models of a user's own layers: no parameter is taken for one of jaxlm's because of its name."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.data.tokenizers.simple import Characters
from jaxlm.decode.beam_config import Beam, BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.continuous_batching import beam_search_queue
from jaxlm.decode.generate import GenerationConfig, generate, generate_stream
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.score import score_targets
from jaxlm.errors import UserError
from jaxlm.finetuning import FineTuning, LoRA
from jaxlm.inference.base import TrainedModel
from jaxlm.inference.embed import TextEmbedder, attention_maps
from jaxlm.models.properties import dummy_batch
from jaxlm.nn.layers.embedding import vocab_logits
from jaxlm.nn.layers.linear import Linear
from jaxlm.nn.weights import cpu_kernels
from jaxlm.nn.weights.weight_formats import Bfloat16, Int8, PackedKernel, WeightFormat
from jaxlm.pipeline.pipeline import cast_for_inference, prepare_params
from jaxlm.types import Batch, SequenceModel

V, D = 17, 8
NORMAL = nn.initializers.normal(1.0)


class OwnModel(SequenceModel):
    """p(next | last token); a subclass defines `setup` and `hidden`."""

    def start(self, batch: Batch, capacity: int) -> Any:
        return {}

    def extend(self, tokens_BT, state, valid_BT):
        return self.hidden(tokens_BT), state


class Plain(OwnModel):
    """nn.Embed and nn.Dense."""

    def setup(self):
        self.embed, self.up, self.out = nn.Embed(V, D), nn.Dense(2 * D), nn.Dense(V)

    def hidden(self, tokens_BT):
        return jnp.tanh(self.up(self.embed(tokens_BT)))

    def readout(self, features):
        return self.out(features)


class OtherLayers(OwnModel):
    """Kernels of three axes, remat, a tied table, and a table of Flax in a product of jaxlm."""

    ours: bool = False

    def setup(self):
        self.embed = nn.Embed(V, D)
        self.heads, self.merge = nn.DenseGeneral((2, D)), nn.DenseGeneral(D, axis=(-2, -1))
        self.conv, self.again = nn.Conv(D, (1,)), nn.remat(nn.Dense)(D)

    def hidden(self, tokens_BT):
        return self.again(self.conv(self.merge(jnp.tanh(self.heads(self.embed(tokens_BT))))))

    def readout(self, features):
        return vocab_logits(features, self.embed.embedding) if self.ours else self.embed.attend(features)


class OwnNames(OwnModel):
    """Parameters that are called as those of jaxlm are, and mean something else; "layers" is not a stack."""

    def setup(self):
        self.table = self.param("embedding", NORMAL, (D, V))
        self.kernel = self.param("kernel", NORMAL, (D, 2, D))
        self.output = self.param("output", NORMAL, (2, D, V))
        self.layers = nn.Dense(D)

    def hidden(self, tokens_BT):
        return jnp.einsum("btd,dke->btke", self.layers(self.table.T[tokens_BT]), self.kernel)

    def readout(self, features):
        return jnp.einsum("...ke,kev->...v", features, self.output)


class Scaled(Linear):
    """A subclass that multiplies by itself; `Doubled` changes the product."""

    def __call__(self, x):
        kernel, bias = self.kernel_and_bias(x.shape[-1])
        return x @ (2.0 * kernel) + bias[None, None]


class Doubled(Linear):
    def __call__(self, x):
        return 2.0 * super().__call__(x)


class Subclasses(OwnModel):
    def setup(self):
        self.embed, self.scaled, self.doubled, self.out = nn.Embed(V, D), Scaled(D), Doubled(D), Linear(V)

    def hidden(self, tokens_BT):
        return self.doubled(jnp.tanh(self.scaled(self.embed(tokens_BT))))

    def readout(self, features):
        return self.out(features)


class Cell(nn.Module):
    @nn.compact
    def __call__(self, carry, x_BD, valid_B):
        new, y_BD = nn.LSTMCell(D)(carry, x_BD)
        return jax.tree.map(lambda a, b: jnp.where(valid_B[:, None], a, b), new, carry), y_BD


class Recurrence(OwnModel):
    """nn.LSTMCell in nn.scan; the state is that of Flax."""

    def setup(self):
        scan = nn.scan(Cell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        self.embed, self.cell, self.out = nn.Embed(V, D), scan(), nn.Dense(V)

    def start(self, batch, capacity):
        return (jnp.zeros((batch.num_rows, D)), jnp.zeros((batch.num_rows, D)))

    def extend(self, tokens_BT, state, valid_BT):
        state, features_BTD = self.cell(state, self.embed(tokens_BT), valid_BT)
        return features_BTD, state

    def readout(self, features):
        return self.out(features)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(D)(x)), None


class Deep(OwnModel):
    """Layers that nn.scan stacks under the name that jaxlm's stack uses."""

    def setup(self):
        scan = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        self.embed, self.layers, self.out = nn.Embed(V, D), scan(), nn.Dense(V)

    def hidden(self, tokens_BT):
        return self.layers(self.embed(tokens_BT), None)[0]

    def readout(self, features):
        return self.out(features)


OWN = {
    "plain": Plain(), "other layers": OtherLayers(), "a table of Flax": OtherLayers(ours=True), "names": OwnNames(),
    "subclasses": Subclasses(), "recurrence": Recurrence(), "scan": Deep(),
}  # fmt: skip


def params_of(model):
    return model.init(jax.random.key(0), dummy_batch())["params"]


def is_format(node):
    return isinstance(node, WeightFormat)


def formats(params):
    return {type(leaf) for leaf in jax.tree.leaves(params, is_leaf=is_format) if is_format(leaf)}


def request(rows=3, length=5):
    bos_B1 = np.arange(2, 2 + rows)[:, None]
    return DecodeRequest(Batch(target_BT=bos_B1), bos_B1, bos_B1 > 0, np.full(rows, length))


def greedy(model, params, first_B, length=5):
    """By the definition: the whole text is read anew for each token."""
    ids = np.asarray(first_B)
    for _ in range(length):
        valid = np.ones(ids.shape, bool)
        logits = model.apply({"params": params}, Batch(target_BT=ids, target_valid_BT=valid))
        ids = np.concatenate([ids, np.asarray(logits[:, -1:].argmax(-1))], 1)
    return ids[:, 1:]


@pytest.mark.parametrize("name", OWN)
def test_every_search(name):
    model, params = OWN[name], params_of(OWN[name])
    expected_BT = greedy(model, params, request().prompt_BP)
    prepared = prepare_params(model, params)
    config = BeamSearchConfig(5, (), Beam(1))
    for weights in (params, prepared):
        tokens = [generate(model, weights, request(), GenerationConfig(5, ())).tokens_BT]
        tokens += [list(generate_stream(model, weights, request(), GenerationConfig(5, ())))[-1].tokens_BT]
        tokens += [beam_search(model, weights, request(), config).tokens_BNT[:, 0]]
        ((_, fields),) = beam_search_queue(model, weights, [(np.arange(3), request())], 3, config)
        tokens += [fields["tokens_BNT"][:, 0]]
        for actual_BT in tokens:
            np.testing.assert_array_equal(actual_BT, expected_BT)
    batch = Batch(target_BT=expected_BT[:, :-1], label_BT=expected_BT[:, 1:], target_valid_BT=expected_BT[:, 1:] >= 0)
    plain, packed = (score_targets(model, weights, batch).logprob_B for weights in (params, prepared))
    np.testing.assert_allclose(packed, plain, rtol=1e-5)


@pytest.mark.skipif(cpu_kernels.panel_width() == 0, reason="no C compiler, or JAXLM_NATIVE=0")
def test_only_what_jaxlm_multiplies_with_is_packed():
    for name, model in OWN.items():
        params = prepare_params(model, params_of(model))
        assert formats(params) == ({PackedKernel} if name == "subclasses" else set())
        if name == "subclasses":
            packed = {layer for layer, weights in params.items() if is_format(weights.get("kernel"))}
            assert packed == {"doubled", "out"}


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int8_dynamic"])
@pytest.mark.parametrize("name", [name for name in OWN if name != "names"])
def test_reduced_precision(name, precision):
    model, params = OWN[name], params_of(OWN[name])
    batch = Batch(target_BT=np.arange(V)[None], target_valid_BT=np.ones((1, V), bool))
    expected = model.apply({"params": params}, batch)
    narrow_model, narrow = cast_for_inference(model, params, precision)
    assert formats(narrow) == {Bfloat16 if precision == "bfloat16" else Int8}
    prepared = prepare_params(narrow_model, narrow)
    error = abs(narrow_model.apply({"params": prepared}, batch) - expected).mean() / expected.std()
    assert 1e-5 < error < 0.05
    assert (generate(narrow_model, prepared, request(), GenerationConfig(5, ())).length_B == 5).all()


def test_parameters_of_other_modules_stay():
    model, params = OWN["names"], params_of(OWN["names"])
    _, narrow = cast_for_inference(model, params, "int8")
    assert isinstance(narrow["layers"]["kernel"], Int8)
    for name in ("kernel", "embedding", "output"):
        assert narrow[name] is params[name] or (narrow[name] == params[name]).all()


def test_embeddings():
    """The features of each token; a model that has no layers or no attention to look at is refused by a sentence."""
    tokenizer = Characters().fit(["abcdefghij"])
    for name in ("plain", "subclasses", "recurrence"):
        trained = TrainedModel(OWN[name], prepare_params(OWN[name], params_of(OWN[name])), tokenizer)
        (vectors,) = TextEmbedder("token")(trained, ["abca"])
        ids_1T = np.concatenate([[[2]], tokenizer.encode(["abca"])], 1)

        def features(model, ids_1T=ids_1T):
            return model.extend(ids_1T, model.start(Batch(target_BT=ids_1T), 0), ids_1T > 0)[0]

        expected_1TD = OWN[name].apply({"params": params_of(OWN[name])}, method=features)
        np.testing.assert_allclose(vectors, expected_1TD[0], atol=1e-5)
        with pytest.raises(UserError, match="layer 1: a .* has no stack of layers"):
            TextEmbedder("mean", 1)(trained, ["ab"])
        with pytest.raises(UserError, match="has no self-attention weights"):
            attention_maps(trained, "ab")


def test_lora_of_other_layers_is_refused():
    """Their layers would not use it; a subclass that calls `Linear` does."""

    def check(target, model):
        tuning = FineTuning(lora=LoRA(targets=(target,)))
        tuning.check_targets(params_of(model), lambda params: model.apply({"params": params}, dummy_batch()))

    check("^doubled$", OWN["subclasses"])
    for target, name in (("^up$", "plain"), ("^scaled$", "subclasses"), ("^layers$", "names")):
        with pytest.raises(UserError, match="finetuning.lora.targets: '[a-z]*' is not a `Linear` of jaxlm"):
            check(target, OWN[name])


class NoLayers(OwnModel):
    def setup(self):
        self.output = self.param("output", NORMAL, (V, V))

    def hidden(self, tokens_BT):
        return tokens_BT[..., None]

    def readout(self, features):
        return self.output[features[..., 0]]


class RawReader(Plain):
    def hidden(self, tokens_BT):
        return self.embed(tokens_BT)

    def readout(self, features):
        return features @ self.variables["params"]["embed"]["embedding"].T


def test_what_cannot_be_done_is_refused():
    model = NoLayers()
    with pytest.raises(UserError, match="no weights of NoLayers are in a layer of jaxlm or Flax.*--precision int8"):
        cast_for_inference(model, params_of(model), "int8")
    model = RawReader()
    with pytest.raises(UserError, match="RawReader cannot compute with int8 weights .*: leave out --precision int8"):
        cast_for_inference(model, params_of(model), "int8")
