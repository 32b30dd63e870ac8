"""Task heads on encoders and language models: their inputs, invariances and losses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.zoo import GPT2, LLAMA, VOCAB

from jaxlm.data.tokenizers.base import BOS, EOS, OWN_SPECIAL_IDS, SpecialIds
from jaxlm.errors import UserError
from jaxlm.models.encoder import Encoder
from jaxlm.models.finetune_heads import MultipleChoice, TextClassifier, TokenClassifier, sequence_markers
from jaxlm.models.properties import with_special_ids
from jaxlm.models.rnn_lm import RecurrentLM
from jaxlm.models.rnn_seq2seq import Seq2Seq
from jaxlm.nn.rnn.cells import LSTM
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.objectives.labels import Regression, SequenceClassification
from jaxlm.types import Batch

ENCODER = Encoder(VOCAB, 8, 2, 12, 2, max_length=30, dropout=0.0, attention_dropout=0.0, init_std=0.5)
TRUNKS = {
    "encoder": ENCODER,
    "gpt": GPT2.clone(init_std=0.5),
    "llama": LLAMA.clone(vocab=VOCAB, init_std=0.5, window=None),
    "lstm": RecurrentLM(VOCAB, 8, Recurrent(LSTM(8))),
}
X, Y, Z = [7, 8, 9], [10, 11], [12]
PAIR = [BOS, *X, EOS, *Y, EOS]


def batch_of(*texts: list[int], length: int = 24, label=None, layout: str = "right") -> Batch:
    """Rows with random padding, special tokens included."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCAB, (len(texts), length)).astype(np.int32)
    valid = np.zeros((len(texts), length), bool)
    for row, text in enumerate(texts):
        at = np.arange(len(text)) + (length - len(text) if layout == "left" else 0)
        if layout == "holes":
            at = np.sort(rng.choice(length, len(text), replace=False))
        ids[row, at], valid[row, at] = text, True
    return Batch(source_BS=ids, source_valid_BS=valid, class_B=label)


@partial(jax.jit, static_argnums=(0, 3))
def outputs(model, params, batch, method="__call__"):
    return model.apply({"params": params}, batch, method=method)


def made(head, trunk: str, seed: int = 1):
    """A head on a trunk, and parameters without zeros."""
    model = head.with_trunk(TRUNKS[trunk])
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch_of(PAIR))["params"]
    rng = np.random.default_rng(seed)
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(0.0, 0.4, x.shape), x.dtype), shapes)


def test_sequence_markers():
    """Sequences are counted from 1 and parts from 0; padding belongs to none, for any ids there."""
    text = [*PAIR, BOS, *Z, EOS, EOS]
    for layout in ("right", "left", "holes"):
        batch = batch_of(text, layout=layout)
        valid_BS, sequence_BS, part_BS = sequence_markers(batch, OWN_SPECIAL_IDS)
        real = batch.source_valid_BS[0]
        assert (
            np.asarray(sequence_BS)[0][real].tolist() == [1] * 8 + [2] * 4
            and not np.asarray(sequence_BS)[0][~real].any()
        )
        assert np.asarray(part_BS)[0][real].tolist() == [0] * 5 + [1] * 3 + [0] * 3 + [1]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_padding_and_mates_leave_no_trace(trunk):
    pooling = "mean" if trunk == "encoder" else "last"
    model, params = made(TextClassifier(num_labels=3, pooling=pooling, use_pooler=trunk != "gpt"), trunk)
    expected = outputs(model, params, batch_of(PAIR, [BOS, *Z, EOS], PAIR[::-1]))
    assert expected.shape == (3, 3) and np.std(expected) > 0.01 and np.isfinite(expected).all()
    for layout in ("left", "holes"):
        actual = outputs(model, params, batch_of(PAIR, [BOS, *Z, EOS], PAIR[::-1], layout=layout))
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    alone = outputs(model, params, batch_of(PAIR, length=8))
    np.testing.assert_allclose(alone, expected[:1], rtol=1e-4, atol=1e-5)
    assert model.vocab == VOCAB


@pytest.mark.parametrize("trunk", ["encoder", "gpt"])
def test_sequences_of_a_row_do_not_see_each_other(trunk):
    """Choices in one row equal separate rows; both orders are the sum of two rows; missing choices have no logit."""
    chooser, params = made(MultipleChoice(num_labels=3, pooling="last"), trunk)
    other = [BOS, *X, EOS, *Z, EOS]
    both = outputs(chooser, params, batch_of([*PAIR, *other]))
    for at, text in enumerate((PAIR, other)):
        np.testing.assert_allclose(outputs(chooser, params, batch_of(text))[0, 0], both[0, at], rtol=1e-4, atol=1e-5)
    assert both[0, 2] < -1e8 and np.abs(both[0, 0] - both[0, 1]) > 1e-3
    summed, params = made(TextClassifier(num_labels=2, pooling="last", num_orders=2, use_pooler=False), trunk)
    single = summed.clone(num_orders=1, parent=None)
    turned = [BOS, *Y, EOS, *X, EOS]
    actual = outputs(summed, params, batch_of([*PAIR, *turned]))
    parts = (
        outputs(single, params, batch_of(PAIR))
        + outputs(single, params, batch_of(turned))
        - params["head"]["bias"][None]
    )
    np.testing.assert_allclose(actual, parts, rtol=1e-4, atol=1e-5)


def test_a_language_model_sees_delimiter_and_extract_token():
    """Their rows of the table matter, that of EOS does not; the auxiliary loss is the mean of -log p(next)."""
    model, params = made(TextClassifier(num_labels=2, pooling="last", use_pooler=False), "gpt")
    assert model.num_extra_ids == 2 and params["model"]["embedding"].shape[0] == VOCAB + 2
    batch = batch_of(PAIR, [BOS, *Z, EOS], length=10)
    before = outputs(model, params, batch)
    for row, counts in ((EOS, False), (VOCAB, True), (VOCAB + 1, True)):
        table = params["model"]["embedding"].at[row].add(jnp.arange(8.0))
        after = outputs(model, params | {"model": params["model"] | {"embedding": table}}, batch)
        assert np.allclose(after[0], before[0], atol=1e-6) != counts
    _, nll_B = outputs(model, params, batch, "logits_and_lm_loss")
    read = np.array([BOS, *X, VOCAB, *Y, VOCAB + 1], np.int32)[None]
    own = Batch(target_BT=read, target_valid_BT=np.ones_like(read, bool))
    log_p = jax.nn.log_softmax(outputs(TRUNKS["gpt"].clone(vocab=VOCAB + 2, parent=None), params["model"], own))
    expected = -np.mean([log_p[0, t, read[0, t + 1]] for t in range(read.shape[1] - 1)])
    np.testing.assert_allclose(nll_B[0], expected, rtol=1e-4)


@pytest.mark.slow
def test_losses():
    """Filler rows do not count; the auxiliary loss is weighted; regression is a squared error."""
    model, params = made(TextClassifier(num_labels=2, pooling="last"), "gpt")
    batch = batch_of(PAIR, [BOS, *Z, EOS], [EOS], label=np.array([1, 0, -1], np.int32))
    plain, more = (SequenceClassification(lm_weight=weight)(model, params, batch, None) for weight in (0.0, 0.5))
    logits, nll_B = outputs(model, params, batch, "logits_and_lm_loss")
    log_p = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(plain.total, -(log_p[0, 1] + log_p[1, 0]), rtol=1e-5)
    np.testing.assert_allclose(more.total - plain.total, 0.5 * nll_B[:2].sum(), rtol=1e-4)
    assert float(plain.count) == 2.0
    model, params = made(TextClassifier(num_labels=1), "encoder")
    loss = Regression()(model, params, batch.replace(value_B=np.array([0.5, 2.0, np.nan], np.float32)), None)
    said = outputs(model, params, batch)[:2, 0]
    np.testing.assert_allclose(loss.total, ((said - np.array([0.5, 2.0])) ** 2).sum(), rtol=1e-5)
    assert float(loss.count) == 2.0
    with pytest.raises(UserError, match="an encoder predicts no next token"):
        SequenceClassification(lm_weight=0.5)(model, params, batch, None)


def test_trunks_that_cannot_have_a_head():
    with pytest.raises(UserError, match="Seq2Seq cannot have a head"):
        TextClassifier().with_trunk(Seq2Seq(VOCAB, 8, Recurrent(LSTM(6)), Recurrent(LSTM(6))))
    with pytest.raises(UserError, match="has nothing to read with"):
        TokenClassifier().init(jax.random.key(0), batch_of(PAIR))
    assert not TextClassifier().with_trunk(ENCODER).model.mlm_head, "the head that fills gaps is left out"


@pytest.mark.parametrize("trunk", ["encoder", "gpt"])
def test_the_markers_are_the_special_ids_of_the_tokenizer(trunk):
    """With a permuted vocabulary, and its special ids, a head says the same."""
    model, params = made(TextClassifier(num_labels=3, num_orders=2, dropout=0.0), trunk)
    batch = batch_of([*PAIR, BOS, *Y, EOS, *X, EOS])
    expected = outputs(model, params, batch)
    moved = np.arange(model.model.vocab)
    moved[[BOS, 11, EOS, 4]] = moved[[11, BOS, 4, EOS]]
    params["model"]["embedding"] = params["model"]["embedding"][jnp.asarray(moved)]  # two swaps: their own inverse
    there = with_special_ids(model, SpecialIds(start=11, eos=4))
    np.testing.assert_allclose(
        outputs(there, params, batch.replace(source_BS=moved[batch.source_BS])), expected, rtol=1e-6
    )


@pytest.mark.slow
def test_against_transformers(tmp_path):
    """A pair through BERT's first position, pooler and classifier."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    from jaxlm.huggingface.convert import load_pretrained, save_pretrained

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=VOCAB, max_position_embeddings=30, num_labels=3, **sizes)
    their = transformers.BertForSequenceClassification(config).eval()
    for value in their.parameters():
        value.data.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(1))
    their.bert.save_pretrained(tmp_path / "trunk")
    trunk, params, kept = load_pretrained(tmp_path / "trunk")
    assert not trunk.mlm_head
    model = TextClassifier(num_labels=3).with_trunk(trunk)
    head = {
        name: {"kernel": module.weight.detach().numpy().T, "bias": module.bias.detach().numpy()}
        for name, module in (("pooler", their.bert.pooler.dense), ("head", their.classifier))
    }
    actual = outputs(model, {"model": params, **head}, batch_of(PAIR, [BOS, *Z, EOS], length=10))
    ids = torch.tensor([PAIR, [BOS, *Z, EOS, 0, 0, 0, 0, 0]])
    asked = {"attention_mask": torch.tensor([[1] * 8, [1] * 3 + [0] * 5])}
    asked["token_type_ids"] = torch.tensor([[0] * 5 + [1] * 3, [0] * 8])
    expected = their(ids, **asked).logits.detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    pair = batch_of(PAIR, length=8)
    pair = pair.replace(token_type_BS=np.array([[0] * 5 + [1] * 3]))
    actual = outputs(model.model, params, pair, "self_attention_weights")
    their.set_attn_implementation("eager")
    seen = their.bert(ids[:1], token_type_ids=asked["token_type_ids"][:1], output_attentions=True).attentions
    expected = np.stack([one.detach().numpy() for one in seen], 1)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    save_pretrained(tmp_path / "again", trunk, params, kept)
    again = transformers.BertModel.from_pretrained(tmp_path / "again").eval()
    ours = outputs(trunk, params, batch_of([5, 6], length=2))
    theirs = again(torch.tensor([[5, 6]])).last_hidden_state.detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
