"""Files of published models: what is refused and how it is said, and the format against its own library."""

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from fixtures.zoo import GPT2, LLAMA, TRANSFORMER, params_of

from jaxlm.errors import UserError
from jaxlm.huggingface.architecture import Architecture
from jaxlm.huggingface.checkpoint_folder import read_safetensors, write_safetensors
from jaxlm.huggingface.convert import ARCHITECTURES, load_pretrained, save_pretrained
from jaxlm.models.encoder import Encoder

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 23, "hidden_size": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 12, "num_hidden_layers": 2,
}  # fmt: skip
TENSORS = {
    "a.single": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.half": np.arange(4, dtype=np.float16),
    "c.brain": np.arange(5, dtype=ml_dtypes.bfloat16),
    "d.scalar": np.array(3, np.int64),
    "e.none": np.zeros((0, 2), np.float32),
    "f.flags": np.array([True, False, True]),
}


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama, as published."""
    save_pretrained(tmp_path, LLAMA, params_of(LLAMA), max_shard_bytes=4000)
    return tmp_path


def edit(path, **entries):
    content = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def test_the_format_is_that_of_its_library(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    write_safetensors(tmp_path / "ours", TENSORS)
    library.save_file({name: x for name, x in TENSORS.items() if x.dtype != ml_dtypes.bfloat16}, tmp_path / "theirs")
    for found in (library.load_file(tmp_path / "ours"), read_safetensors(tmp_path / "ours")):
        assert set(found) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert found[name].dtype == tensor.dtype
            np.testing.assert_array_equal(found[name], tensor)
    for name, tensor in read_safetensors(tmp_path / "theirs").items():
        np.testing.assert_array_equal(tensor, TENSORS[name])


@pytest.mark.parametrize("keep", [0, 5, 8, 30, -1, -24])
def test_a_file_that_is_cut_short(tmp_path, keep):
    write_safetensors(tmp_path / "x", TENSORS)
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(whole[:keep])
    with pytest.raises(UserError, match=r"x.*(bytes|damaged).*fetch"):
        read_safetensors(tmp_path / "x")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [1]},
        7,
    ],
)
def test_a_header_that_lies(tmp_path, entry):
    raw = json.dumps({"x": entry}).encode()
    (tmp_path / "x").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
    with pytest.raises(UserError, match="fetch"):
        read_safetensors(tmp_path / "x")


def test_all_that_does_not_fit_is_listed(folder):
    edit(folder / "config.json", num_hidden_layers=3, intermediate_size=13, mlp_bias=None, tie_word_embeddings=True)
    with pytest.raises(UserError) as caught:
        load_pretrained(folder)
    message = str(caught.value)
    assert "lm_head.weight and" not in message and "differ" in message
    edit(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(UserError) as caught:
        load_pretrained(folder)
    message = str(caught.value)
    assert "model.layers.2.input_layernorm.weight (8,) is missing" in message
    assert "model.layers.0.mlp.up_proj.weight has shape (12, 8), expected (13, 8)" in message
    edit(folder / "config.json", num_hidden_layers=1, intermediate_size=12)
    with pytest.raises(UserError, match=r"model.layers.1.input_layernorm.weight \(8,\) has no place in the model"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"architectures": ["BloomForCausalLM"]}, "'BloomForCausalLM'; jaxlm reads GPT2LMHeadModel, LlamaFor"),
        ({"vocab_size": None}, "no vocab_size"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rule 'dynamic'; jaxlm has default, linear, llama3, yarn"),
        ({"rope_scaling": {"type": "linear"}}, "no factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_a_config_that_it_cannot_do(folder, entries, message):
    edit(folder / "config.json", **entries)
    with pytest.raises(UserError, match=message):
        load_pretrained(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "a\\b", "", 7])
def test_a_shard_elsewhere(folder, name):
    path = folder / "model.safetensors.index.json"
    edit(path, weight_map={"model.norm.weight": name})
    with pytest.raises(UserError, match=r"expected a (file of that folder|string)"):
        load_pretrained(folder)


def test_a_shard_that_is_missing(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors, which is missing"):
        load_pretrained(folder)


def test_pickles_are_left_alone(folder):
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(UserError, match="pytorch_model.bin would have to be unpickled"):
        load_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json"):
        load_pretrained(folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_in_half(tmp_path, dtype):
    """Half precision in, float32 parameters, the same half precision out."""
    save_pretrained(tmp_path / "a", GPT2, params_of(GPT2), dtype=dtype)
    model, params, config = load_pretrained(tmp_path / "a", scan=True)
    assert model.scan and params["embedding"].dtype == np.float32
    save_pretrained(tmp_path / "b", model, params, config)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_trunk_without_its_head(tmp_path):
    """As gpt2 itself is stored: names without `transformer.`, and masks among the arrays."""
    save_pretrained(tmp_path, GPT2, params_of(GPT2))
    tensors = {
        name.removeprefix("transformer."): np.array(x)
        for name, x in read_safetensors(tmp_path / "model.safetensors").items()
    }
    write_safetensors(tmp_path / "model.safetensors", {**tensors, "h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8)})
    _, params, _ = load_pretrained(tmp_path)
    np.testing.assert_array_equal(params["embedding"], params_of(GPT2)["embedding"])


def test_names_of_old(tmp_path):
    """As bert-base-uncased is stored: gamma and beta, and a head for pairs of sentences."""
    model = Encoder(23, 8, 2, 12, 2)
    save_pretrained(tmp_path, model, params_of(model))
    tensors = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): np.array(x)
        for name, x in read_safetensors(tmp_path / "model.safetensors").items()
    }
    more = {"bert.pooler.dense.weight": np.ones((8, 8)), "cls.seq_relationship.bias": np.ones(2)}  # neither is whole
    write_safetensors(tmp_path / "model.safetensors", {**tensors, **more})
    found, params, _ = load_pretrained(tmp_path)
    assert found == model
    np.testing.assert_array_equal(params["embedding_norm"]["scale"], params_of(model)["embedding_norm"]["scale"])


@pytest.mark.parametrize("model", [TRANSFORMER, replace(LLAMA, logit_soft_cap=3.0), replace(GPT2, norm="post")])
def test_what_no_family_can_say(tmp_path, model):
    with pytest.raises(UserError, match="no config.json of gpt2, llama"):
        save_pretrained(tmp_path, model, {})


def test_every_family_has_a_name_of_its_own():
    assert all(isinstance(family, Architecture) for family in ARCHITECTURES)
    assert len({family.hf_class for family in ARCHITECTURES}) == len(ARCHITECTURES)
