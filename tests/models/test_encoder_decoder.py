"""The encoder-decoder Transformer: against PyTorch's layers, the paper's sizes, and several ways to run it."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from fixtures.zoo import TRANSFORMER, VOCAB, batch_of, examples, logits, params_of
from references.torch_transformer import named, reference

from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.properties import abstract_params
from jaxlm.nn.layers.positions import sinusoids
from jaxlm.objectives.next_token import NextToken

MODEL = EncoderDecoder(VOCAB, 16, 4, 24, 2, 2, dropout=0.0)
BATCH = batch_of(examples(6, high=7), 9, 8)
LOSS = NextToken(0.1)


def count(model) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)))


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "post", "activation": "relu", "tie_embeddings": "all"},
        {"norm": "pre", "activation": "gelu", "tie_embeddings": "none", "encoder_layers": 1},
        {"norm": "post", "activation": "gelu", "tie_embeddings": "target", "decoder_layers": 1},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_against_torch(options):
    """Logits at every real position, the loss, and the gradient of every parameter, with padded rows."""
    torch = pytest.importorskip("torch")
    model = replace(MODEL, **options)
    params = params_of(model)
    module = reference(model, params)
    expected = module(BATCH)
    actual = jax.jit(model.apply)({"params": params}, BATCH)
    valid = BATCH.target_valid_BT
    np.testing.assert_allclose(actual[valid], expected.detach().numpy()[valid], rtol=1e-5, atol=1e-5)

    label = torch.tensor(np.where(valid, BATCH.label_BT, -100)).long()
    total = torch.nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum")(expected.flatten(0, 1), label.flatten())
    total.backward()
    gradient = jax.jit(jax.value_and_grad(lambda p: LOSS(model, p, BATCH, None).total))
    loss, grads = gradient(params)
    np.testing.assert_allclose(loss, total.item(), rtol=1e-5)
    grads, theirs = named(grads), dict(module.named_parameters())
    assert set(grads) == set(theirs)
    for name, parameter in theirs.items():
        np.testing.assert_allclose(grads[name], parameter.grad.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("width", [8, 7, 2])
def test_sinusoids(width):
    """PE(pos, 2i) = sin(pos / 10000^(2i / d)), PE(pos, 2i + 1) = cos(pos / 10000^(2i / d)): section 3.5."""
    position, channel = np.mgrid[:400, :width]
    angle = position / 10000.0 ** (channel // 2 * 2 / width)
    expected = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    np.testing.assert_allclose(sinusoids(np.arange(400), width), expected, atol=3e-5)


def test_the_sizes_of_the_paper():
    """Table 3: 65 and 213 million parameters, rounded, with 37,000 tokens; here counted by hand."""

    def by_hand(vocab, d, f):
        attention, ffn, norm = 4 * (d * d + d), 2 * d * f + f + d, 2 * d
        return vocab * d + 6 * (attention + ffn + 2 * norm) + 6 * (2 * attention + ffn + 3 * norm)

    base = EncoderDecoder(37_000, scan=True)
    big = replace(base, width=1024, heads=16, hidden=4096)
    assert count(base) == by_hand(37_000, 512, 2048) == 63_082_496
    assert count(big) == by_hand(37_000, 1024, 4096) == 214_245_376
    assert count(replace(base, tie_embeddings="target")) == count(base) + 37_000 * 512
    assert count(replace(base, tie_embeddings="none")) == count(base) + 2 * 37_000 * 512
    assert count(replace(base, norm="pre")) == count(base) + 4 * 512
    assert count(replace(base, position="learned")) == count(base) + 2 * 1024 * 512


@pytest.mark.slow
def test_scan_and_remat_change_nothing():
    """Of the parameters, the loss, its gradients and the dropout masks."""
    rates = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.3)
    plain, key = replace(MODEL, **rates, norm="pre"), jax.random.key(5)
    params, expected = params_of(plain), None
    for scan, remat in ((False, False), (True, False), (False, True)):
        model = replace(plain, scan=scan, remat=remat)
        gradient = jax.jit(jax.value_and_grad(lambda p, model=model: LOSS(model, p, BATCH, key).total))
        loss, grads = gradient(params)
        expected = expected or (loss, grads)
        assert jax.tree.structure(abstract_params(model)) == jax.tree.structure(params)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected[1]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("field", ["source_valid_BS", "target_valid_BT"])
def test_learned_positions_end(field):
    """Padding needs none. Only a row with a token beyond the last one has no logits that look right."""
    full, batch = replace(TRANSFORMER, position="learned", max_length=16), batch_of(examples(6, high=4), 12, 12)
    params = params_of(full)
    tables = {name: {"table": params[name]["table"][:4]} for name in ("source_position", "target_position")}

    def actual(batch):
        return np.asarray(logits(replace(full, max_length=4), params | tables, batch))

    valid = np.array(batch.target_valid_BT)
    np.testing.assert_allclose(actual(batch)[valid], np.asarray(logits(full, params, batch))[valid], rtol=1e-5)
    longer = np.array(getattr(batch, field))
    longer[0, :5] = True
    beyond = actual(replace(batch, **{field: longer}))
    assert np.isnan(beyond[0, 3 if field == "source_valid_BS" else 4]).all()
    assert np.isfinite(beyond[1:][valid[1:]]).all()


def test_half_precision_affects_activations_only():
    """Parameters, their gradients, logits and loss stay float32; the features between them are bfloat16."""
    full, half = (replace(TRANSFORMER, norm="pre", dtype=dtype) for dtype in ("float32", "bfloat16"))
    params = params_of(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_params(half))} == {np.dtype("float32")}

    def gradients(model):
        gradient = jax.jit(jax.value_and_grad(lambda p: LOSS(model, p, BATCH, None).total))
        return gradient(params)

    def features(module):
        return module.extend(BATCH.target_BT, module.start(BATCH, 0), BATCH.target_valid_BT)[0]

    assert jax.eval_shape(lambda: half.apply({"params": params}, method=features)).dtype == jax.numpy.bfloat16
    assert jax.eval_shape(half.apply, {"params": params}, BATCH).dtype == np.float32
    (loss, grads), (expected, expected_grads) = gradients(half), gradients(full)
    assert loss.dtype == np.float32 and {leaf.dtype for leaf in jax.tree.leaves(grads)} == {np.dtype("float32")}
    np.testing.assert_allclose(loss, expected, rtol=0.01)
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (grads, expected_grads))
    assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


def test_a_row_without_a_source_or_a_target_is_finite():
    """Filler rows of a batch must not produce NaN gradients."""
    nothing = np.zeros_like(BATCH.source_valid_BS)
    nothing[1:] = BATCH.source_valid_BS[1:]
    silent = np.where(np.arange(6)[:, None] > 1, BATCH.target_valid_BT, False)
    batch, params = BATCH.replace(source_valid_BS=nothing, target_valid_BT=silent), params_of(MODEL)
    gradient = jax.jit(jax.grad(lambda p: LOSS(MODEL, p, batch, None).total))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(params)))
