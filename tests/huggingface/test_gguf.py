"""GGUF files: values of every block type, rows in the order of Transformers, tokenizers, and files that lie."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.gguf_files import TYPES, gguf_bytes, random_blocks, reference_values, write_gguf
from fixtures.zoo import logits

from jaxlm.cli.main import main
from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.errors import UserError
from jaxlm.huggingface.convert import load_pretrained
from jaxlm.huggingface.gguf import read_gguf
from jaxlm.huggingface.gguf_model import MODULES, unpack_gguf
from jaxlm.huggingface.tokenizer_files import read_tokenizer
from jaxlm.huggingface.workdir import export_folder, import_model
from jaxlm.types import Batch
from jaxlm.workdir import Workdir

tokenizers = pytest.importorskip("tokenizers")

WIDTH, HEADS, KV_HEADS, HIDDEN, LAYERS, VOCAB = 32, 4, 2, 64, 2, 320
SHAPES = {
    "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH // 2, WIDTH), "attn_v": (WIDTH // 2, WIDTH),
    "attn_output": (WIDTH, WIDTH), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "ffn_gate": (HIDDEN, WIDTH),
    "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN),
}  # fmt: skip
TEXTS = ["the green witch arrived in 2024", "a dog runs, and a cat sleeps.", "¿quién llegó? 東京 🙂", "two  spaces", ""]


def byte_level_tokens() -> dict[str, Any]:
    """The metadata of a byte-level BPE with one control token and 320 ids."""
    learnt = tokenizers.ByteLevelBPETokenizer()
    learnt.train_from_iterator(TEXTS * 4, vocab_size=VOCAB - 1, special_tokens=["<|end|>"], show_progress=False)
    parsed = learnt.get_vocab()
    content = json.loads(learnt.to_str())
    tokens = sorted(parsed, key=lambda token: parsed[token])
    tokens += [f"<|pad{i}|>" for i in range(VOCAB - len(tokens))]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    kinds = [3, *[1] * (len(parsed) - 1), *[5] * (VOCAB - len(parsed))]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": merges, "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0, "tokenizer.chat_template": "{{ messages }}",
    }  # fmt: skip


BYTE_LEVEL = byte_level_tokens()


def metadata(layout: str = "llama", **entries: Any) -> dict[str, Any]:
    own = {
        "block_count": LAYERS, "context_length": 64, "embedding_length": WIDTH, "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "rope.freq_base": 500.0,
        "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": WIDTH // HEADS,
    } | entries  # fmt: skip
    given = {"general.architecture": layout, "general.alignment": 32, **BYTE_LEVEL}
    return given | {f"{layout}.{name}": value for name, value in own.items() if value is not None}


def arrays(kind: str = "F32", layout: str = "llama", tied: bool = True) -> dict[str, Any]:
    shapes = {"token_embd.weight": (VOCAB, WIDTH), "output_norm.weight": (WIDTH,)}
    shapes |= {} if tied else {"output.weight": (VOCAB, WIDTH)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in SHAPES.items()}
        if layout == "qwen2":
            shapes |= {f"blk.{layer}.{name}.bias": SHAPES[name][:1] for name in ("attn_q", "attn_k", "attn_v")}
    kinds = {name: "F32" if len(shape) == 1 else kind for name, shape in shapes.items()}
    return {
        name: (kinds[name], shape, random_blocks(kinds[name], shape, seed))
        for seed, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("kind", TYPES)
def test_values_of_blocks(tmp_path, kind):
    """Each value is that of the definition, computed one by one in float64."""
    shape = (3, 512)
    content = random_blocks(kind, shape)
    file = read_gguf(write_gguf(tmp_path / "x.gguf", {}, {"a": (kind, shape, content), "b": ("F32", (1,), b"\0" * 4)}))
    values = np.asarray(file.arrays["a"])
    assert values.dtype == np.float32 == file.arrays["a"].dtype and file.arrays["b"].shape == (1,)
    reference = reference_values(kind, content, shape)
    np.testing.assert_allclose(values, reference, rtol=3e-7, atol=3e-7 * np.abs(reference).max())


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind != "BF16"])
def test_values_of_blocks_against_the_gguf_package(kind):
    gguf = pytest.importorskip("gguf")
    content = random_blocks(kind, (4, 512), seed=1)
    ours = np.asarray(read_array(kind, content))
    raw = np.frombuffer(content, np.uint8).reshape(4, -1)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(ours, theirs.view(np.float32).reshape(4, 512))


def read_array(kind: str, content: bytes) -> Any:
    from jaxlm.huggingface.gguf import BLOCK_TYPES, GGUFArray

    return GGUFArray(np.frombuffer(content, np.uint8), BLOCK_TYPES[TYPES[kind][0]], (4, 512))


def expected_arrays(stored: dict[str, Any], layout: str) -> dict[str, np.ndarray]:
    """The arrays under the names of Transformers; head by head, rows of llama are taken apart: even, then odd ones."""
    expected = {}
    for name, (kind, shape, content) in stored.items():
        values = reference_values(kind, content, shape).astype(np.float32)
        *layer, module, part = name.split(".")
        if layout == "llama" and module in ("attn_q", "attn_k"):
            size = WIDTH // HEADS
            heads = [values[at : at + size] for at in range(0, len(values), size)]
            values = np.concatenate([np.concatenate([head[::2], head[1::2]]) for head in heads])
        prefix = f"model.layers.{layer[1]}." if layer else ""
        expected[f"{prefix}{MODULES[module]}.{part}"] = values
    return expected


@pytest.mark.parametrize("layout, tied", [("llama", True), ("llama", False), ("qwen2", True)])
def test_the_model_is_that_of_the_same_arrays_in_a_folder(tmp_path, layout, tied):
    """Bit for bit, and so are its logits; written by an export, the folder is read as the same model."""
    stored = arrays(layout=layout, tied=tied)
    path = write_gguf(tmp_path / "x.gguf", metadata(layout), stored)
    import_model(path, tmp_path / "run")
    trained = Workdir(tmp_path / "run").load()
    export_folder(tmp_path / "run", tmp_path / "folder")
    from jaxlm.huggingface.checkpoint_folder import read_safetensors

    written = read_safetensors(tmp_path / "folder" / "model.safetensors")
    expected = expected_arrays(stored, layout)
    assert written.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(written[name], values, err_msg=name)
    model, params, config = load_pretrained(tmp_path / "folder")
    assert model == trained.model and (model.norm_epsilon, model.rotary.theta) == (1e-5, 500.0)
    ids_BT = np.random.default_rng(0).integers(0, VOCAB, (2, 7))
    batch = Batch(target_BT=ids_BT, target_valid_BT=np.ones((2, 7), bool))
    np.testing.assert_array_equal(logits(model, params, batch), logits(trained.model, trained.params, batch))


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_1"])
def test_quantized_models_have_the_values_of_their_blocks(tmp_path, kind):
    stored = arrays(kind)
    with unpack_gguf(write_gguf(tmp_path / "x.gguf", metadata(), stored)) as (folder, read):
        for name, values in expected_arrays(stored, "llama").items():
            np.testing.assert_allclose(np.asarray(read[name]), values, rtol=1e-6, atol=1e-7, err_msg=name)
        load_pretrained(folder, read)


def test_the_command_makes_a_workdir_that_generates(tmp_path, capsys):
    path = write_gguf(tmp_path / "x.gguf", metadata(), arrays("Q8_0"))
    assert main(["import-hf", str(path), "--workdir", str(tmp_path / "run")]) == 0
    assert "jaxlm generate" in capsys.readouterr().err
    assert main(["generate", str(tmp_path / "run"), "--prompt", "the", "--max-tokens", "3"]) == 0
    published = Workdir(tmp_path / "run").published_folder
    assert "{{ messages }}" in (published / "tokenizer_config.json").read_text()


def tokenizer_of(path: Path, entries: dict[str, Any]) -> Any:
    stored = {"token_embd.weight": ("F32", (VOCAB, WIDTH), random_blocks("F32", (VOCAB, WIDTH)))}
    with unpack_gguf(write_gguf(path, metadata() | entries, stored)) as (folder, _):
        from jaxlm.huggingface.checkpoint_folder import read_config

        return read_tokenizer(folder, read_config(folder), VOCAB)


@pytest.mark.parametrize("pre, pieces", [("gpt-2", 1), ("smollm", 4), ("llama-bpe", 2), ("qwen2", 4)])
def test_byte_level_tokens(tmp_path, pre, pieces):
    """Ids are those of the tokenizer; digits are split by the kind of the tokenizer; control tokens have their ids."""
    tokenizer = tokenizer_of(tmp_path / "x.gguf", {"tokenizer.ggml.pre": pre})
    assert tokenizer.decode(tokenizer.encode(TEXTS)) == TEXTS
    splits = tokenizer._tokenizer.pre_tokenizer.pre_tokenize_str("a 2024")
    assert len([piece for piece, _ in splits if any(c.isdigit() for c in piece)]) == pieces
    assert tokenizer.encode(["<|end|>a"])[0][0] == 0 == tokenizer.special.eos


def test_sentencepiece_tokens(tmp_path):
    """The pieces, scores and types of a SentencePiece model give its ids and texts."""
    learnt = SentencePiece(VOCAB, model_type="bpe").fit(TEXTS * 4)
    processor: Any = learnt._processor
    kinds = [6 if processor.is_byte(i) else 3 if processor.is_control(i) else 2 if processor.is_unknown(i) else 1
             for i in range(processor.get_piece_size())]  # fmt: skip
    entries = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in range(len(kinds))],
        "tokenizer.ggml.scores": [float(processor.get_score(i)) for i in range(len(kinds))],
        "tokenizer.ggml.bos_token_id": processor.bos_id(), "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
    }  # fmt: skip
    tokenizer = tokenizer_of(tmp_path / "x.gguf", entries)
    for text in ("the green witch", "a dog sleeps"):
        assert tokenizer.encode([text])[0].tolist() == processor.encode(text)
        assert tokenizer.decode(tokenizer.encode([text])) == [text]


LIES = [
    ({"magic": b"GGML"}, "does not begin with GGUF"), ({"version": 1}, "version 1"), ({"version": 3 << 24}, "version"),
    ({"num_arrays": 1 << 40}, "arrays"), ({"num_arrays": 9}, "has 0 axes"),
    ({"num_entries": 1 << 50}, "entries"), ({"value_kind": 13}, "type 13"), ({"value_kind": 8}, "string of"),
    ({"kind": 13}, "Q5_K"), ({"kind": 99}, "99"), ({"axes": 9}, "9 axes"), ({"sizes": (0, 4)}, "sizes of 1"),
    ({"sizes": (1 << 60, 1 << 60)}, "ends at byte"), ({"offset": 32}, "begins at byte 32"),
    ({"offset": 1 << 62}, "begins at byte"), ({"sizes": (33,)}, "ends at byte|has the shape"),
    ({"sizes": (8,)}, "and its last array ends"),
]  # fmt: skip


@pytest.mark.parametrize("lie, message", LIES, ids=[f"{key}={value}" for lie, _ in LIES for key, value in lie.items()])
def test_files_that_lie(tmp_path, lie, message):
    path = write_gguf(tmp_path / "x.gguf", {"a": 1}, {"t": ("F32", (16,), b"\0" * 64)}, **lie)
    with pytest.raises(UserError, match=message) as error:
        read_gguf(path)
    assert re.fullmatch(f"{path}: .*: (fetch|convert|name) .*", str(error.value))


def test_every_cut_and_every_changed_byte_is_an_error_or_the_same_kind_of_file(tmp_path):
    """Nothing but UserError, for any prefix of a file and for any damaged byte of its header."""
    content = gguf_bytes({"general.alignment": 32, "a": ["x", "y"], "b": True}, {"t": ("Q8_0", (32,), b"\0" * 34)})
    path = tmp_path / "x.gguf"
    for size in range(len(content) - 31):
        path.write_bytes(content[:size])
        with pytest.raises(UserError):
            read_gguf(path)
    for at in range(len(content) - 64):
        for flip in (1, 0x80):
            path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
            try:
                read_gguf(path)
            except UserError:
                pass


BAD = {
    "architecture": ({"general.architecture": "mamba"}, "mamba"),
    "unknown entry": (metadata(**{"attention.sliding_window": 4}), "sliding_window"),
    "experts": (metadata(expert_count=8), "expert_count"),
    "part of a head": (metadata(**{"rope.dimension_count": 4}), "dimension_count"),
    "no layers": (metadata(block_count=None), "num_hidden_layers"),
    "layers": (metadata(block_count=3), "missing"),
    "many layers": (metadata(block_count=1_000_000), "layers"),
    "heads": (metadata(**{"attention.head_count": 3}), "."),
    "list of heads": (metadata(**{"attention.head_count_kv": [2, 2]}), "num_key_value_heads"),
    "width": (metadata(embedding_length=64), "shape|dimension"),
    "scaling": (metadata(**{"rope.scaling.type": "longrope"}), "longrope"),
    "split": (metadata() | {"split.count": 3}, "merge"),
    "tokens": (metadata() | {"tokenizer.ggml.tokens": ["a", "a"]}, "different"),
    "types": (metadata() | {"tokenizer.ggml.token_type": [1]}, "types"),
    "kind of token": (metadata() | {"tokenizer.ggml.token_type": [-1] * VOCAB}, "types"),
    "merges": (metadata() | {"tokenizer.ggml.merges": ["zz qq"]}, "tokenizer.json"),
    "type of merges": (metadata() | {"tokenizer.ggml.merges": 3}, "merges"),
    "no eos": ({k: v for k, v in metadata().items() if "eos" not in k}, "eos_token_id"),
    "eos": (metadata() | {"tokenizer.ggml.eos_token_id": 4000}, "4000"),
    "pre": (metadata() | {"tokenizer.ggml.pre": "default"}, "default"),
    "tokenizer": (metadata() | {"tokenizer.ggml.model": "bert"}, "bert"),
    "scores": (metadata() | {"tokenizer.ggml.model": "llama"}, "scores"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_models_that_are_not_read(tmp_path, name):
    """The error names the file, and nothing is left."""
    given, message = BAD[name]
    path = write_gguf(tmp_path / "x.gguf", given, arrays())
    with pytest.raises(UserError, match=message) as error:
        import_model(path, tmp_path / "run")
    assert str(error.value).startswith(str(path)) and not (tmp_path / "run").exists()
    assert "/tmp" not in str(error.value).replace(str(path), "")


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"none\.gguf does not exist: name a GGUF file, or a folder"):
        import_model(tmp_path / "none.gguf", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_factors_of_rotary_rates(tmp_path):
    """Factors that Llama 3.1 computes are its rule; others are refused, also linear and YaRN rules are read."""
    from jaxlm.nn.layers.positions import LinearScaling, Llama3Scaling, Yarn

    rate_H = 5e5 ** -np.linspace(0, 1, WIDTH // HEADS // 2, endpoint=False)
    rule = Llama3Scaling(8.0)
    factor_H = rate_H / rule.scale_frequencies(rate_H, 5e5)[0]
    given = {}
    for name, factors in (("same", factor_H), ("other", factor_H + 0.5)):
        stored = arrays() | {"rope_freqs.weight": ("F32", factor_H.shape, factors.astype("<f4").tobytes())}
        given[name] = write_gguf(tmp_path / f"{name}.gguf", metadata(**{"rope.freq_base": 5e5}), stored)
    with unpack_gguf(given["same"]) as (folder, read):
        assert load_pretrained(folder, read)[0].rotary.scaling == rule
    with pytest.raises(UserError, match="Llama 3.1"), unpack_gguf(given["other"]):
        pass
    for kind, expected in (("linear", LinearScaling(2.0)), ("yarn", Yarn(2.0, 32))):
        entries = {"rope.scaling.type": kind, "rope.scaling.factor": 2.0}
        entries |= {"rope.scaling.original_context_length": 32} if kind == "yarn" else {}
        with unpack_gguf(write_gguf(tmp_path / "x.gguf", metadata(**entries), arrays())) as (folder, read):
            assert load_pretrained(folder, read)[0].rotary.scaling == expected
