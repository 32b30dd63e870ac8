"""Published folders that lie, lead elsewhere or are quantized: refused by name, nothing is left; dtypes are kept."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fixtures.zoo import GPT2, LLAMA, params_of

from jaxlm.errors import UserError
from jaxlm.huggingface.checkpoint_folder import read_safetensors, write_safetensors
from jaxlm.huggingface.convert import load_pretrained, save_pretrained
from jaxlm.huggingface.workdir import export_folder, import_folder
from jaxlm.models.encoder import Encoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.finetune_heads import TextClassifier
from jaxlm.workdir import Workdir

tokenizers = pytest.importorskip("tokenizers")

ENDS = {"bos_token_id": 0, "eos_token_id": 0}
MARIAN = EncoderDecoder(23, 8, 2, 12, 1, 1, position="sinusoidal_halves", max_length=32, logit_bias=True)
T5 = EncoderDecoder(
    23, 8, 2, 12, 1, 1, norm="pre", position="relative", head_dim=4, norm_kind="rms", bias=False, scale_scores=False,
    embedding_scale=1.0, logit_scale=8**-0.5,
)  # fmt: skip


@pytest.fixture
def llama(tmp_path):
    save_pretrained(tmp_path / "llama", LLAMA, params_of(LLAMA), ENDS)
    return tmp_path / "llama"


@pytest.fixture
def gpt2(tmp_path):
    """A folder with a tokenizer, which `import-hf` takes."""
    model, folder = GPT2.clone(vocab=300), tmp_path / "gpt2"
    save_pretrained(folder, model, params_of(model), ENDS)
    byte_level = tokenizers.ByteLevelBPETokenizer()
    byte_level.train_from_iterator(["a b c"], vocab_size=300, special_tokens=["</s>"], show_progress=False)
    byte_level.save(str(folder / "tokenizer.json"))
    return folder


def edit(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    "entries",
    [
        {"rope_theta": -1}, {"rope_theta": "x"}, {"rope_theta": 1e400}, {"num_attention_heads": 0},
        {"num_attention_heads": 2.5}, {"num_attention_heads": True}, {"hidden_size": -8}, {"hidden_size": "8"},
        {"vocab_size": 10**12}, {"num_hidden_layers": 10**7}, {"num_hidden_layers": 2000}, {"rms_norm_eps": "1e-5"},
        {"attention_dropout": 2}, {"attention_dropout": [0.1]}, {"attention_bias": "no"}, {"tie_word_embeddings": 1},
        {"hidden_act": ["silu"]}, {"max_position_embeddings": {}}, {"head_dim": [4]}, {"num_key_value_heads": 0},
        {"rope_scaling": [1]}, {"rope_scaling": {"rope_type": ["linear"], "factor": 2}},
        {"rope_scaling": {"rope_type": "linear", "factor": -2}}, {"rope_scaling": {"rope_type": "linear", "facto": 2}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": "many"}},
        {"architectures": "LlamaForCausalLM"}, {"architectures": [{}]}, {"model_type": 7, "architectures": None},
    ],
)  # fmt: skip
def test_a_value_of_another_type_or_out_of_range(llama, entries):
    edit(llama, **entries)
    name = next(iter(entries if "rope_scaling" not in entries else ["rope|facto|freq|original_max|rule"]))
    with pytest.raises(UserError, match=f"config.json.*({name}|layers|Infinity)"):
        load_pretrained(llama)


@pytest.mark.parametrize(
    "model, entries",
    [
        (GPT2, {"embd_pdrop": 0.3}), (GPT2, {"scale_attn_by_inverse_layer_idx": True}), (GPT2, {"n_inner": -3}),
        (MARIAN, {"encoder_layerdrop": 0.1}), (MARIAN, {"share_encoder_decoder_embeddings": [1]}),
        (MARIAN, {"decoder_ffn_dim": 13}), (MARIAN, {"decoder_vocab_size": "x"}), (MARIAN, {"is_decoder": True}),
        (T5, {"dense_act_fn": "silu"}), (T5, {"feed_forward_proj": "gated-tanh"}), (T5, {"is_decoder": True}),
    ],
)  # fmt: skip
def test_an_entry_is_kept_or_refused_by_name(tmp_path, model, entries):
    save_pretrained(tmp_path, model, params_of(model), ENDS)
    edit(tmp_path, **entries)
    with pytest.raises(UserError, match=f"config.json has.*{next(iter(entries))}"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 2.0}])
def test_rotary_entries_as_transformers_takes_them(llama, scaling):
    """`rope_scaling` is believed before `rope_parameters`, the length outside of it before the one in it."""
    edit(llama, rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}, rope_scaling=scaling)
    transformers = pytest.importorskip("transformers")
    model, _, _ = load_pretrained(llama)
    their = transformers.AutoConfig.from_pretrained(llama).rope_parameters
    assert model.rotary.scaling.factor == their["factor"] and model.rotary.theta == their["rope_theta"]


def header_of(path: Path) -> tuple[dict, bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def rewrite(path: Path, header: str, data: bytes) -> None:
    raw = header.encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


@pytest.mark.parametrize("name", ["config", "side file", "fp8", "int8", "4 bit"])
def test_quantized_weights(llama, name):
    path, key = llama / "model.safetensors", "model.layers.0.self_attn.q_proj.weight"
    tensors = {array: np.array(tensor) for array, tensor in read_safetensors(path).items()}
    if name == "config":
        edit(llama, quantization_config={"quant_method": "gptq", "bits": 4})
    elif name == "side file":
        (llama / "quantize_config.json").write_text("{}")
    elif name == "fp8":
        header, data = header_of(path)
        header[key]["dtype"] = "F8_E4M3"
        rewrite(path, json.dumps(header), data)
    elif name == "int8":
        write_safetensors(path, tensors | {key: tensors[key].astype(np.int8)})
    else:
        del tensors[key]
        packed = {"qweight": np.zeros((2, 8), np.int32), "scales": np.zeros((1, 8), np.float16)}
        tensors |= {key.replace("weight", part): array for part, array in packed.items()}
        write_safetensors(path, tensors)
    with pytest.raises(UserError, match="quantized"):
        load_pretrained(llama)


@pytest.mark.parametrize(
    "entries",
    [
        {"eos_token_id": 300}, {"eos_token_id": [0, -1]}, {"bos_token_id": 10**6}, {"pad_token_id": 300},
        {"suppress_tokens": [-1]}, {"begin_suppress_tokens": [300]}, {"bad_words_ids": [[0, 300]]},
    ],
    ids=lambda entries: next(iter(entries)),
)  # fmt: skip
def test_an_id_that_the_model_does_not_have(gpt2, tmp_path, entries):
    """Llama 1 has no padding, which its config.json writes as -1."""
    edit(gpt2, **entries)
    with pytest.raises(UserError, match=f"{next(iter(entries))} has the id .*, the model has 0 to 299"):
        import_folder(gpt2, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_padding(gpt2, tmp_path):
    edit(gpt2, pad_token_id=-1)
    import_folder(gpt2, tmp_path / "run")
    assert Workdir(tmp_path / "run").load_tokenizer().special.pad is None


def test_an_adapter_in_the_folder(llama):
    """Transformers would add it to them."""
    (llama / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match="adapter_config.json is of an adapter, .*merge"):
        load_pretrained(llama)


def test_an_array_has_one_name_and_digits_that_fit(llama):
    path = llama / "model.safetensors"
    header, data = header_of(path)
    name = next(array for array in header if array != "__metadata__")
    text = json.dumps(header)
    rewrite(path, text[:-1] + f', "{name}": {json.dumps(header[name])}}}', data)
    with pytest.raises(UserError, match=f"the name '{name}' is in an object twice"):
        load_pretrained(llama)
    rewrite(path, text, data)
    tensors = {array: np.array(tensor) for array, tensor in read_safetensors(path).items()}
    exact = {array: tensor.astype(np.float64) for array, tensor in tensors.items()}
    write_safetensors(path, exact)
    load_pretrained(llama)
    write_safetensors(path, exact | {"model.norm.weight": exact["model.norm.weight"] + 1e-12})
    with pytest.raises(UserError, match=r"model.norm.weight is float64 with digits beyond float32"):
        load_pretrained(llama)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_not_a_file_of_the_folder(gpt2, tmp_path, name, kind):
    """Nothing outside of the folder is read or copied, nothing blocks, and no workdir is made."""
    outside, path = tmp_path / "secret.json", gpt2 / name
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text('{"password": 1}')
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(UserError, match=f"{name} is (a link to .*outside|not a regular file)"):
        import_folder(gpt2, tmp_path / "run")
    assert {entry.name for entry in tmp_path.iterdir()} == {"gpt2", "secret.json"}


def test_the_cache_of_the_hub(gpt2, tmp_path):
    """Its files are links from a snapshot to the blobs of the same model, and no further."""
    snapshot, blobs = tmp_path / "cache/snapshots/abc", tmp_path / "cache/blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(gpt2, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    import_folder(snapshot, tmp_path / "run")
    (blobs / "generation_config.json").symlink_to("/etc/hostname")
    (snapshot / "generation_config.json").symlink_to("../../blobs/generation_config.json")
    with pytest.raises(UserError, match="outside of the folder"):
        import_folder(snapshot, tmp_path / "other")
    (tmp_path / "run/published/extra.json").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="outside of the folder"):
        export_folder(tmp_path / "run", tmp_path / "out")
    copy = Workdir(tmp_path / "copy")
    os.mkfifo(tmp_path / "run/published/pipe.json")
    with pytest.raises(UserError, match="pipe.json cannot be copied .*is a named pipe"):
        copy.copy_tokenizer(Workdir(tmp_path / "run"))
    (tmp_path / "run/published/pipe.json").unlink()
    copy.copy_tokenizer(Workdir(tmp_path / "run"))
    assert (copy.published_folder / "extra.json").is_symlink()
    (tmp_path / "run/published").rename(tmp_path / "moved")
    (tmp_path / "run/published").symlink_to(tmp_path / "moved")
    with pytest.raises(UserError, match="published is a link"):
        export_folder(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UserError, match="published is a link"):
        copy.copy_tokenizer(Workdir(tmp_path / "run"))
    assert not (tmp_path / "out").exists() and not (tmp_path / "other").exists()


@pytest.mark.parametrize("stated", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("entry", ["dtype", "torch_dtype"])
def test_export_keeps_the_dtype_of_each_array(gpt2, tmp_path, stated, entry):
    """Arrays come back bit for bit, whatever dtype config.json states; a changed model loses no digits."""
    path = gpt2 / "model.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in read_safetensors(path).items()}
    dtypes = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]
    for index, name in enumerate(sorted(tensors)):
        tensors[name] = tensors[name].astype(dtypes[index % 4])
    write_safetensors(path, tensors)
    config = json.loads((gpt2 / "config.json").read_text())
    del config["dtype"]
    (gpt2 / "config.json").write_text(json.dumps(config | {entry: stated}))
    import_folder(gpt2, tmp_path / "run")
    export_folder(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == path.read_bytes()
    assert json.loads((tmp_path / "out/config.json").read_text()) == config | {entry: stated}
    assert ".dtypes.json" not in os.listdir(tmp_path / "out")
    model, params, config = load_pretrained(gpt2)
    params["last_norm"]["scale"] = params["last_norm"]["scale"] + np.float32(1e-6)
    save_pretrained(tmp_path / "changed", model, params, config)
    again = load_pretrained(tmp_path / "changed")
    np.testing.assert_array_equal(again[1]["last_norm"]["scale"], params["last_norm"]["scale"])
    assert {again[2].get("dtype"), again[2].get("torch_dtype")} == {"float32", None}


@pytest.mark.parametrize("kind, num_labels", [("regression", 3), ("single_label_classification", 1)])
def test_a_head_of_another_kind(tmp_path, kind, num_labels):
    model = TextClassifier(Encoder(23, 8, 2, 12, 1, max_length=16, mlm_head=False), num_labels=num_labels)
    save_pretrained(tmp_path, model, params_of(model), {"problem_type": kind})
    with pytest.raises(UserError, match=f"config.json has problem_type = '{kind}'"):
        load_pretrained(tmp_path)
