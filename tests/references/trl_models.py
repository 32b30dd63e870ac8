"""Tiny random models in the form of Transformers, and the comparison of a loss of jaxlm with one of TRL 1.16."""

import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest

os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
torch = pytest.importorskip("torch")
pytest.importorskip("trl", minversion="1.16")
import tokenizers  # noqa: E402
import transformers  # noqa: E402

VOCAB, ROWS = 40, 4
ARGUMENTS = {
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
    "per_device_train_batch_size": ROWS,
}  # fmt: skip


def tiny_models(tmp_path_factory):
    """A tokenizer of words, and the folders of two random models and of a reward model."""
    words = ["<pad>", "<unk>", "<s>", "</s>", *(f"w{index}" for index in range(4, VOCAB))]
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.5, pad_token_id=0, bos_token_id=2, eos_token_id=3, max_position_embeddings=64, num_labels=1,
    )  # fmt: skip
    folders = {}
    for seed, name in enumerate(("policy", "reference", "reward")):
        torch.manual_seed(seed)
        kind = transformers.LlamaForSequenceClassification if name == "reward" else transformers.LlamaForCausalLM
        folders[name] = tmp_path_factory.mktemp("trl") / name
        kind(config).eval().save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return SimpleNamespace(tokenizer=tokenizer, folder=tmp_path_factory.mktemp("out"), **folders)


def compare(objective, batch, model, params, loss, theirs, head="model."):
    """Loss to 1e-5; the gradients of the embeddings and of one attention kernel to 1e-4 of their size."""

    def mean(params):
        prepare = getattr(objective, "prepare_batch", lambda model, params, batch: batch)
        sums = objective(model, params, prepare(model, params, batch), None)
        return sums.total / sums.count

    value, gradient = jax.jit(jax.value_and_grad(mean))(params)
    np.testing.assert_allclose(value, loss.item(), atol=1e-5, rtol=1e-5)
    loss.backward()
    named = dict(theirs.named_parameters())
    gradient = gradient.get("model", gradient)
    query = gradient["stack"]["layer_0"] if "layer_0" in gradient["stack"] else gradient["stack"]["layers"]
    query = query["attention"]["query"]["kernel"]
    query = query[0] if query.ndim == 3 else query
    for ours, name in ((gradient["embedding"], "embed_tokens"), (query.T, "layers.0.self_attn.q_proj")):
        expected = named[f"{head}{name}.weight"].grad.numpy()
        assert abs(np.asarray(ours) - expected).max() <= 1e-4 * abs(expected).max()


def fresh(tiny, name="policy"):
    kind = transformers.LlamaForSequenceClassification if name == "reward" else transformers.LlamaForCausalLM
    return kind.from_pretrained(getattr(tiny, name), dtype=torch.float32)
