"""Against Hugging Face Transformers, family by family: logits, greedy continuations, and files in both directions."""

from typing import Any

import jax
import numpy as np
import pytest
from fixtures.zoo import logits

from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.request import DecodeRequest
from jaxlm.huggingface.convert import load_pretrained, save_pretrained
from jaxlm.types import Batch

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from references.published_models import GPT2, MARIAN, T5, VOCAB, tensors, theirs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

LENGTH, MORE = 9, 64
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": VOCAB}
BERT = {**SMALL, "num_attention_heads": 2, "max_position_embeddings": 20}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 16, "rope_theta": 500.0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 20, "rope_theta": 100.0}

ONE_SIDED = {
    "gpt2": ("GPT2", GPT2),
    "gpt2_odd": ("GPT2", {**GPT2, "n_inner": 20, "activation_function": "relu", "tie_word_embeddings": False}),
    "llama": ("Llama", {**SMALL, "num_attention_heads": 2}),
    "llama_odd": (
        "Llama",
        {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "attention_bias": True,
         "mlp_bias": True, "tie_word_embeddings": True, "rope_parameters": LLAMA_3},
    ),
    "llama_linear": (
        "Llama",
        {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 1,
         "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "mistral": ("Mistral", {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4}),
    "mistral_full": ("Mistral", {**SMALL, "num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": None,
                                 "rope_parameters": YARN}),
    "qwen2": ("Qwen2", {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}),
}  # fmt: skip
FILLING = {
    "bert": ("Bert", {**BERT, "type_vocab_size": 3, "hidden_act": "gelu_new"}),
    "roberta": ("Roberta", {**BERT, "pad_token_id": 1, "type_vocab_size": 1}),
}
TWO_SIDED = {
    "marian": ("MarianMT", MARIAN),
    "marian_odd": (
        "MarianMT",
        {**MARIAN, "decoder_vocab_size": 53, "share_encoder_decoder_embeddings": False, "scale_embedding": True,
         "activation_function": "swish", "pad_token_id": 50, "decoder_start_token_id": 50},
    ),
    "t5": ("T5", T5),
    "t5_1.1": ("T5", {**T5, "num_decoder_layers": 1, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(request, tmp_path_factory):
    """Their model, and ours read from the folder that theirs was saved to."""
    family, options = {**ONE_SIDED, **TWO_SIDED, **FILLING}[request.param]
    model = theirs(family, options)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder, *load_pretrained(folder)


def rows(side: str, vocab: int = VOCAB) -> tuple[np.ndarray, np.ndarray]:
    """Ids and which are valid, padded on one side."""
    rng = np.random.default_rng(0)
    size_B1 = np.array([LENGTH, 1, 4, LENGTH - 1])[:, None]
    at_1T = np.arange(LENGTH)[None]
    valid_BT = at_1T < size_B1 if side == "right" else at_1T >= LENGTH - size_B1
    return rng.integers(1, vocab - 12, (4, LENGTH)), valid_BT


@pytest.mark.parametrize("pair", ONE_SIDED, indirect=True)
def test_decoder_only(pair):
    """Padding on either side, then 64 tokens from ragged prompts."""
    their, _, model, params, _ = pair
    for side in ("right", "left"):
        ids_BT, valid_BT = rows(side)
        position_BT = np.maximum(valid_BT.cumsum(1) - 1, 0)
        ids, valid, position = tensors(ids_BT, valid_BT, position_BT)
        with torch.no_grad():
            expected = their(ids, attention_mask=valid, position_ids=position).logits.numpy()
        found = logits(model, params, Batch(target_BT=ids_BT, target_valid_BT=valid_BT))
        assert expected.std() > 0.1
        np.testing.assert_allclose(found[valid_BT], expected[valid_BT], rtol=0, atol=1e-4)
    with torch.no_grad():
        expected = their.generate(ids, attention_mask=valid, **greedily(their)).numpy()[:, LENGTH:]
    batch = Batch(target_BT=ids_BT, target_valid_BT=valid_BT)
    request = DecodeRequest(batch, ids_BT, valid_BT, np.full(4, MORE))
    found = generate(model, params, request, GenerationConfig(MORE, ())).tokens_BT
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("pair", TWO_SIDED, indirect=True)
def test_encoder_decoder(pair):
    """Source padding on either side, and 64 tokens from nothing but the token that begins."""
    their, _, model, params, config = pair
    target_BT, target_valid_BT = rows("right", model.vocab)
    for side in ("right", "left") if "marian" not in type(their).__module__ else ("right",):
        source_BS, source_valid_BS = rows(side)
        source, source_valid, target = tensors(source_BS, source_valid_BS, target_BT)
        with torch.no_grad():
            expected = their(source, attention_mask=source_valid, decoder_input_ids=target).logits.numpy()
        batch = Batch(source_BS, source_valid_BS, None, target_BT, target_valid_BT)
        found = logits(model, params, batch)
        np.testing.assert_allclose(found[target_valid_BT], expected[target_valid_BT], rtol=0, atol=1e-4)
    with torch.no_grad():
        expected = their.generate(source, attention_mask=source_valid, **greedily(their)).numpy()[:, 1:]
    first = np.full((4, 1), config["decoder_start_token_id"])
    request = DecodeRequest(batch, first, np.ones((4, 1), bool), np.full(4, MORE))
    found = generate(model, params, request, GenerationConfig(MORE, ())).tokens_BT
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("pair", FILLING, indirect=True)
def test_encoder_only(pair):
    their, _, model, params, _ = pair
    ids_BS, valid_BS = rows("right")
    ids_BS = np.where(valid_BS, ids_BS + 1, 1)
    with torch.no_grad():
        expected = their(*tensors(ids_BS, valid_BS)).logits.numpy()
    found = logits(model, params, Batch(ids_BS, valid_BS))
    np.testing.assert_allclose(found[valid_BS], expected[valid_BS], rtol=0, atol=1e-4)


def greedily(model: Any) -> dict[str, Any]:
    model.generation_config.eos_token_id = model.generation_config.forced_eos_token_id = None
    return {"do_sample": False, "num_beams": 1, "max_new_tokens": MORE, "min_new_tokens": MORE, "pad_token_id": 0}


@pytest.mark.parametrize("pair", {**ONE_SIDED, **TWO_SIDED, **FILLING}, indirect=True)
def test_out_and_in_again(pair, tmp_path):
    """Bit for bit, and Transformers says the same with what we wrote, in one file and in several."""
    their, folder, model, params, config = pair
    for shard_bytes in (10**9, 5_000):
        save_pretrained(tmp_path, model, params, config, max_shard_bytes=shard_bytes)
        if shard_bytes == 10**9:
            assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        again, same, _ = load_pretrained(tmp_path)
        assert again == model
        jax.tree.map(np.testing.assert_array_equal, same, params)
        back, report = type(their).from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
        for name, value in their.state_dict().items():
            np.testing.assert_array_equal(back.state_dict()[name].numpy(), value.numpy(), err_msg=name)
