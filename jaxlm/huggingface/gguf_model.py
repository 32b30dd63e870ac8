"""A GGUF file as what `save_pretrained` writes: config.json, tokenizer files, and arrays by the names of Transformers.

The layouts of llama and qwen2 are read. In that of llama the rows of query and key are permuted for another order of
the rotary pairs; it is undone when an array is read.
"""

import importlib
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from jaxlm.errors import UserError
from jaxlm.huggingface.gguf import GGUFArray, GGUFFile, read_gguf
from jaxlm.json_files import check_type
from jaxlm.nn.layers.positions import Llama3Scaling

HF_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

ENTRIES = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim", "rope.freq_base": "rope_theta",
}  # fmt: skip
"""Entry of the metadata, after the name of the layout -> entry of config.json."""

ROPE_SCALING = {
    "rope.scaling.type": "rope_type", "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
}  # fmt: skip

WITHOUT_EFFECT = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")

MODULES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
"""Module in the file, without `blk.N.` -> module of Transformers."""

ROPE_FACTORS = "rope_freqs.weight"

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""Types of tokens; those of a SentencePiece model have the same numbers."""

Tokens = TypedDict("Tokens", {
    "tokenizer.ggml.model": str, "tokenizer.ggml.pre": str, "tokenizer.ggml.tokens": list[str],
    "tokenizer.ggml.token_type": list[int], "tokenizer.ggml.merges": list[str], "tokenizer.ggml.scores": list[float],
    "tokenizer.ggml.bos_token_id": int, "tokenizer.ggml.eos_token_id": int, "tokenizer.ggml.eot_token_id": int,
    "tokenizer.ggml.unknown_token_id": int, "tokenizer.ggml.padding_token_id": int, "tokenizer.chat_template": str,
    "tokenizer.ggml.add_space_prefix": bool,
}, total=False)  # fmt: skip
"""The entries of the metadata that describe the tokenizer."""

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _split(digits: str) -> list[dict[str, Any]]:
    """Parts of Llama 3 and Qwen2: short endings, words, numbers of some digits, punctuation, line breaks, spaces."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    regex = rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            BYTE_LEVEL | {"use_regex": False}]  # fmt: skip


SINGLE_DIGITS = [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]
PRE_TOKENIZERS = {
    "gpt-2": [BYTE_LEVEL], **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), SINGLE_DIGITS),
    "llama-bpe": _split(r"\p{N}{1,3}"), "qwen2": _split(r"\p{N}"),
}  # fmt: skip
"""`tokenizer.ggml.pre` -> the steps that split a text before its bytes are merged. They differ in digits."""


@contextmanager
def unpack_gguf(path: Path) -> Iterator[tuple[Path, dict[str, GGUFArray]]]:
    """A temporary folder with config.json and tokenizer files, and the arrays by the names of Transformers.

    Raises UserError if the file is damaged or has another layout; errors on the folder name the file instead.
    """
    file = read_gguf(path)
    with tempfile.TemporaryDirectory() as name:
        try:
            config = _config(file)
            for name_of_file, content in {"config.json": config, **_tokenizer_files(file.metadata, config)}.items():
                content = content if isinstance(content, bytes) else json.dumps(content, indent=2).encode()
                Path(name, name_of_file).write_bytes(content)
            yield Path(name), _arrays(file, config)
        except UserError as error:
            problem = str(error).replace(f"{name}/", "").replace(name, str(path)).removeprefix(f"{path}: ")
            raise UserError(f"{path}: {problem}") from None


def _config(file: GGUFFile) -> dict[str, Any]:
    """The entries of config.json. Raises UserError for an entry of the layout that jaxlm does not follow."""
    given, layout = file.metadata, file.metadata.get("general.architecture")
    if layout not in HF_CLASSES:
        raise UserError(f"it holds a model of the architecture {layout!r:.40}; jaxlm reads {', '.join(HF_CLASSES)}")
    if given.get("split.count", 1) not in (0, 1):
        raise UserError(f"it is one of {given['split.count']} files of a model: merge them with llama-gguf-split")
    if given.get("general.quantization_version", 2) != 2:
        raise UserError(f"it has quantization version {given['general.quantization_version']}, expected 2: "
                        "convert the model again")  # fmt: skip
    own = {name.removeprefix(f"{layout}."): value for name, value in given.items() if name.startswith(f"{layout}.")}
    config = {name: own.pop(theirs, None) for theirs, name in ENTRIES.items()}
    scaling = {name: own.pop(theirs, None) for theirs, name in ROPE_SCALING.items()}
    heads, width = config["num_attention_heads"], config["hidden_size"]
    if config["head_dim"] is None and type(heads) is int and type(width) is int and heads:
        config["head_dim"] = width // heads
    for name in ("attention.value_length", "rope.dimension_count"):
        if own.pop(name, config["head_dim"]) != config["head_dim"]:
            raise UserError(f"{layout}.{name} = {given[f'{layout}.{name}']!r:.40}, expected the {config['head_dim']} "
                            "dimensions of a head, which jaxlm supports alone")  # fmt: skip
    unknown = [name for name, value in own.items() if name not in WITHOUT_EFFECT and not (
        name in ("expert_count", "expert_used_count") and value == 0)]  # fmt: skip
    if unknown:
        raise UserError(f"{layout}.{unknown[0][:60]} = {own[unknown[0]]!r:.40} is not supported by jaxlm")
    if scaling["rope_type"] not in (None, "none"):
        config["rope_scaling"] = {name: value for name, value in scaling.items() if value is not None}
    if ROPE_FACTORS in file.arrays:
        config["rope_scaling"] = _llama3_scaling(np.asarray(file.arrays[ROPE_FACTORS]), config)
    embedding = file.arrays.get("token_embd.weight")
    ids = {role: given.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos", "eot", "padding")}
    ends = list(dict.fromkeys(ids[role] for role in ("eos", "eot") if ids[role] is not None))
    return {
        **{name: value for name, value in config.items() if value is not None},
        "architectures": [HF_CLASSES[layout]], "model_type": layout, "dtype": "float32", "hidden_act": "silu",
        "vocab_size": embedding.shape[0] if embedding else None,
        "tie_word_embeddings": "output.weight" not in file.arrays,
        "attention_bias": layout == "llama" and "blk.0.attn_q.bias" in file.arrays,
        "mlp_bias": layout == "llama" and "blk.0.ffn_up.bias" in file.arrays,
        "bos_token_id": ids["bos"], "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": ids["padding"],
    }  # fmt: skip


def _llama3_scaling(factor_H: np.ndarray, config: Mapping[str, Any]) -> dict[str, Any]:
    """The rule of Llama 3.1 with which these factors, one for each rotary pair, agree."""
    theta, rule = config.get("rope_theta") or 10000.0, Llama3Scaling(float(factor_H.max()))
    rate_H = float(theta) ** (-np.arange(factor_H.size) / factor_H.size)
    if factor_H.shape != rate_H.shape or not np.allclose(
        rate_H / rule.scale_frequencies(rate_H, theta)[0], factor_H, 1e-3
    ):
        raise UserError(f"{ROPE_FACTORS} scales rotary positions by another rule than Llama 3.1: not supported")
    return {"rope_type": "llama3", "factor": rule.factor, "low_freq_factor": rule.low_freq_factor,
            "high_freq_factor": rule.high_freq_factor,
            "original_max_position_embeddings": rule.original_max_positions}  # fmt: skip


def _arrays(file: GGUFFile, config: Mapping[str, Any]) -> dict[str, GGUFArray]:
    """The arrays by the names of Transformers; a name that is not known stays and has no place in the model."""
    arrays = {}
    for name, array in file.arrays.items():
        match = re.fullmatch(r"(?:blk\.(\d{1,6})\.)?(\w+)\.(weight|bias)", name)
        if match and match[2] in MODULES and name != ROPE_FACTORS:
            layer = f"model.layers.{match[1]}." if match[1] else ""
            if config["model_type"] == "llama" and match[2] in ("attn_q", "attn_k"):
                key = "num_attention_heads" if match[2] == "attn_q" else "num_key_value_heads"
                array = replace(array, rotary_heads=config.get(key) or config["num_attention_heads"])
            name = f"{layer}{MODULES[match[2]]}.{match[3]}"
        if name != ROPE_FACTORS:
            arrays[name] = array
    return arrays


def _tokenizer_files(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The files of the tokenizer. Raises UserError if it is not byte-level BPE or SentencePiece, or is damaged."""
    check_type(metadata, Tokens, "metadata", "fetch the file again")
    given = {name.removeprefix("tokenizer.ggml."): value for name, value in metadata.items()}
    tokens, model = given.get("tokens", []), given.get("model")
    kinds = given.get("token_type", [1] * len(tokens))
    if not tokens or len(set(tokens)) < len(tokens) or len(kinds) != len(tokens) or not set(kinds) <= set(range(1, 7)):
        raise UserError(f"its tokenizer has {len(set(tokens)):,} different ones of {len(tokens):,} tokens and "
                        f"{len(kinds):,} types, expected types from 1 to 6: fetch the file again")  # fmt: skip
    plain = dict.fromkeys(("lstrip", "rstrip", "normalized"), False)
    added = {
        str(index): {"content": token, "special": kind == CONTROL, **plain}
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind in (CONTROL, USER_DEFINED)
    }  # fmt: skip
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: given.get(f"{name}_token_id") for role, name in roles.items()}
    if beyond := [role for role, index in ids.items() if index is not None and not 0 <= index < len(tokens)]:
        raise UserError(
            f"the id {ids[beyond[0]]} of its {beyond[0]} is not one of {len(tokens):,} tokens: fetch it again"
        )
    settings = {role: tokens[index] for role, index in ids.items() if index is not None}
    settings |= {"added_tokens_decoder": added, "tokenizer_class": "PreTrainedTokenizerFast"}
    if "tokenizer.chat_template" in metadata:
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    if model == "llama":
        settings |= {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": given.get("add_space_prefix", True)}
        return {
            "tokenizer_config.json": settings,
            "tokenizer.model": _sentencepiece(tokens, kinds, given.get("scores", [])),
        }
    if model != "gpt2" or given.get("pre") not in PRE_TOKENIZERS:
        raise UserError(
            f"its tokenizer is {model!r:.40} with the pre-tokenizer {given.get('pre')!r:.40}; jaxlm reads llama, and "
            f"gpt2 with {', '.join(PRE_TOKENIZERS)}"
        )
    return {"tokenizer_config.json": settings, "tokenizer.json": _byte_level(tokens, added, given)}


def _byte_level(tokens: Sequence[str], added: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `tokenizer.json`."""
    model = {"type": "BPE", "vocab": {token: index for index, token in enumerate(tokens)},
             "merges": given.get("merges", []), "ignore_merges": given["pre"] == "llama-bpe"}  # fmt: skip
    return {
        "version": "1.0", "model": model, "decoder": BYTE_LEVEL,
        "added_tokens": [{"id": int(index), "single_word": False, **entry} for index, entry in added.items()],
        "normalizer": {"type": "NFC"} if given["pre"] == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[given["pre"]]},
    }  # fmt: skip


def _sentencepiece(tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]) -> bytes:
    """A SentencePiece model, which keeps repeated spaces."""
    protocol: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")

    if len(scores) != len(tokens) or not all(map(math.isfinite, scores)):
        raise UserError(f"its tokenizer has {len(scores):,} scores of {len(tokens):,} tokens, or infinite ones")
    model = protocol.ModelProto()
    for token, kind, score in zip(tokens, kinds, scores, strict=True):
        model.pieces.add(piece=token, score=score, type=kind)
    trainer = model.trainer_spec
    trainer.model_type, trainer.byte_fallback = trainer.BPE, BYTE in kinds
    trainer.unk_id = kinds.index(UNKNOWN) if UNKNOWN in kinds else 0
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()
