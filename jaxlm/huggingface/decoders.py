"""Decoder-only families: GPT-2, Llama, Mistral, Qwen2, Qwen3.

Rotary positions in a config.json: `rope_parameters`, or `rope_theta` and `rope_scaling` as before.
"""

import math
from collections.abc import Callable
from typing import Any

from jaxlm.errors import UserError
from jaxlm.huggingface.architecture import (
    Architecture,
    HFConfig,
    from_hf_activation,
    map_attention,
    map_linear,
    map_norm,
    require_entry,
    require_value,
    to_hf_activation,
)  # fmt: skip
from jaxlm.huggingface.weight_map import WeightMap
from jaxlm.models.decoder import Decoder
from jaxlm.nn.layers.positions import LinearScaling, Llama3Scaling, Rotary, Yarn

ORIGINAL_LENGTH = "original_max_position_embeddings"

SCALING_TYPES: dict[type, str] = {LinearScaling: "linear", Llama3Scaling: "llama3", Yarn: "yarn"}
"""Our scaling rule -> `rope_type` in config.json."""

ROPE_TYPES = ("default", *SCALING_TYPES.values())


def rotary_from_config(config: HFConfig, max_length: int) -> Rotary:
    """The rotary positions of a config; `max_length` is its max_position_embeddings.

    Raises UserError for a scaling rule that `jaxlm.nn.layers.positions` lacks.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(given.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = given.get("rope_type", given.get("type", "default"))
    original_length = int(given.get(ORIGINAL_LENGTH) or max_length)
    if kind not in ROPE_TYPES:
        raise UserError(f"config.json scales rotary positions by the rule {kind!r}; jaxlm has {', '.join(ROPE_TYPES)}")
    if given.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UserError("config.json rotates a part of each head (partial_rotary_factor); jaxlm rotates all of it")
    if kind == "default":
        return Rotary(theta)
    factor = given.get("factor")
    if factor is None:
        raise UserError(f"config.json has rope_type {kind!r} and no factor: fetch it again")
    if kind == "linear":
        return Rotary(theta, LinearScaling(float(factor)))
    if kind == "llama3":
        low, high = given.get("low_freq_factor", 1.0), given.get("high_freq_factor", 4.0)
        return Rotary(theta, Llama3Scaling(float(factor), float(low), float(high), original_length))
    return Rotary(theta, _yarn_from_config(given, float(factor), original_length))


def _yarn_from_config(rope_config: HFConfig, factor: float, original_length: int) -> Yarn:
    sharpness = rope_config.get("attention_factor")
    if sharpness is None and rope_config.get("mscale") and rope_config.get("mscale_all_dim"):
        parts = [0.1 * rope_config[name] * math.log(max(factor, 1.0)) + 1 for name in ("mscale", "mscale_all_dim")]
        sharpness = parts[0] / parts[1]
    fast, slow = rope_config.get("beta_fast") or 32.0, rope_config.get("beta_slow") or 1.0
    return Yarn(factor, original_length, float(fast), float(slow), sharpness, rope_config.get("truncate", True))


def rotary_to_config(rotary: Rotary) -> dict[str, Any]:
    """The entries of config.json for rotary positions."""
    if rotary.scaling is None:
        return {"rope_theta": rotary.theta, "rope_scaling": None}
    fields = {name: value for name, value in vars(rotary.scaling).items() if value is not None}
    if "original_max_positions" in fields:
        fields[ORIGINAL_LENGTH] = fields.pop("original_max_positions")
    return {"rope_theta": rotary.theta, "rope_scaling": {"rope_type": SCALING_TYPES[type(rotary.scaling)], **fields}}


DECODER_STACK = "stack/layers"

LLAMA_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def _gpt2_model(config: HFConfig) -> Decoder:
    require_value(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width = require_entry(config, "n_embd")
    return Decoder(
        require_entry(config, "vocab_size"), width, require_entry(config, "n_head"), config.get("n_inner") or 4 * width,
        require_entry(config, "n_layer"), max_length=config.get("n_positions", 1024),
        norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
        activation=from_hf_activation(config.get("activation_function", "gelu_new")),
        dropout=config.get("resid_pdrop", 0.1), attention_dropout=config.get("attn_pdrop", 0.1),
        tie_embeddings=config.get("tie_word_embeddings", True),
    )  # fmt: skip


def _gpt2_config(model: Decoder) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab, "n_embd": model.width, "n_head": model.heads, "n_inner": model.hidden,
        "n_layer": model.layers, "n_positions": model.max_length, "layer_norm_epsilon": model.norm_epsilon,
        "activation_function": to_hf_activation(model.activation), "resid_pdrop": model.dropout,
        "embd_pdrop": model.dropout, "attn_pdrop": model.attention_dropout, "tie_word_embeddings": model.tie_embeddings,
    }  # fmt: skip


def _gpt2_weight_maps(model: Decoder) -> list[WeightMap]:
    def wide(theirs: str, *ours: str) -> list[WeightMap]:  # their Conv1D is (in, out), as our kernels are
        paths = [tuple(f"{DECODER_STACK}/{path}/{part}" for path in ours) for part in ("kernel", "bias")]
        return [WeightMap(f"{layer}.{theirs}.weight", paths[0]), WeightMap(f"{layer}.{theirs}.bias", paths[1])]

    layer = "transformer.h.{}"
    return [
        WeightMap("transformer.wte.weight", ("embedding",)),
        WeightMap("transformer.wpe.weight", ("absolute_position/table",)),
        *map_norm(f"{layer}.ln_1", f"{DECODER_STACK}/attention_residual/norm"),
        *wide("attn.c_attn", "attention/query", "attention/key", "attention/value"),
        *wide("attn.c_proj", "attention/out"),
        *map_norm(f"{layer}.ln_2", f"{DECODER_STACK}/ffn_residual/norm"),
        *wide("mlp.c_fc", "ffn/up"),
        *wide("mlp.c_proj", "ffn/down"),
        *map_norm("transformer.ln_f", "last_norm"),
        *_lm_head(model),
    ]


def _lm_head(model: Decoder) -> list[WeightMap]:
    return [] if model.tie_embeddings else [WeightMap("lm_head.weight", ("output",))]


def _llama_style_model(config: HFConfig, **options: Any) -> Decoder:
    """The common part of Llama, Mistral and Qwen."""
    if from_hf_activation(config.get("hidden_act", "silu")) != "silu":
        raise UserError(f"config.json has hidden_act = {config['hidden_act']!r}; jaxlm supports only 'silu'")
    width, heads = require_entry(config, "hidden_size"), require_entry(config, "num_attention_heads")
    groups, length = config.get("num_key_value_heads") or heads, config.get("max_position_embeddings", 2048)
    return Decoder(
        require_entry(config, "vocab_size"), width, heads, require_entry(config, "intermediate_size"),
        require_entry(config, "num_hidden_layers"), kv_heads=groups, head_dim=config.get("head_dim") or width // heads,
        position="rotary", max_length=length, rotary=rotary_from_config(config, length), norm_kind="rms",
        norm_epsilon=config.get("rms_norm_eps", 1e-6), activation="swiglu",
        attention_dropout=config.get("attention_dropout", 0.0), tie_embeddings=config.get("tie_word_embeddings", False),
        **options,
    )  # fmt: skip


def _llama_style_config(model: Decoder) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab, "hidden_size": model.width, "num_attention_heads": model.heads,
        "intermediate_size": model.hidden, "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads or model.heads,
        "head_dim": model.head_dim or model.width // model.heads, "max_position_embeddings": model.max_length,
        "hidden_act": "silu", "rms_norm_eps": model.norm_epsilon, "attention_dropout": model.attention_dropout,
        "tie_word_embeddings": model.tie_embeddings, **rotary_to_config(model.rotary),
    }  # fmt: skip


def _llama_style_weight_maps(model: Decoder) -> list[WeightMap]:
    layer = "model.layers.{}"
    heads = [*map_norm(f"{layer}.self_attn.q_norm", f"{DECODER_STACK}/attention/query_norm", False),
             *map_norm(f"{layer}.self_attn.k_norm", f"{DECODER_STACK}/attention/key_norm", False)]  # fmt: skip
    return [
        WeightMap("model.embed_tokens.weight", ("embedding",)),
        *map_norm(f"{layer}.input_layernorm", f"{DECODER_STACK}/attention_residual/norm", False),
        *map_attention(
            f"{layer}.self_attn", f"{DECODER_STACK}/attention", LLAMA_PROJECTIONS, model.qkv_bias, model.out_bias
        ),
        *(heads if model.qk_norm else []),
        *map_norm(f"{layer}.post_attention_layernorm", f"{DECODER_STACK}/ffn_residual/norm", False),
        *map_linear(f"{layer}.mlp.gate_proj", f"{DECODER_STACK}/ffn/gate", model.ffn_bias),
        *map_linear(f"{layer}.mlp.up_proj", f"{DECODER_STACK}/ffn/up", model.ffn_bias),
        *map_linear(f"{layer}.mlp.down_proj", f"{DECODER_STACK}/ffn/down", model.ffn_bias),
        *map_norm("model.norm", "last_norm", False),
        *_lm_head(model),
    ]


def _llama_model(config: HFConfig) -> Decoder:
    in_attention, in_ffn = config.get("attention_bias", False), config.get("mlp_bias", False)
    return _llama_style_model(config, qkv_bias=in_attention, out_bias=in_attention, ffn_bias=in_ffn)


def _llama_config(model: Decoder) -> dict[str, Any]:
    return {**_llama_style_config(model), "attention_bias": model.qkv_bias, "mlp_bias": model.ffn_bias}


def _mistral_model(config: HFConfig) -> Decoder:
    window = config.get("sliding_window", 4096)
    return _llama_style_model(config, qkv_bias=False, out_bias=False, ffn_bias=False, window=window)


def _mistral_config(model: Decoder) -> dict[str, Any]:
    return {**_llama_style_config(model), "sliding_window": model.window}


def _qwen_sliding_window(config: HFConfig) -> int | None:
    """The window, if all layers have it. Raises UserError if only some do."""
    if not config.get("use_sliding_window", False) or config.get("sliding_window", 4096) is None:
        return None
    layers, first = require_entry(config, "num_hidden_layers"), config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * (layers - first)
    windowed = {kind == "sliding_attention" for kind in kinds[:layers]}
    if len(windowed) > 1:
        raise UserError("config.json has a sliding window in some layers only; jaxlm has it in all layers or in none")
    return config.get("sliding_window", 4096) if windowed == {True} else None


def _qwen_sliding_window_config(model: Decoder) -> dict[str, Any]:
    kind = "full_attention" if model.window is None else "sliding_attention"
    return {
        "use_sliding_window": model.window is not None, "sliding_window": model.window,
        "max_window_layers": model.layers if model.window is None else 0, "layer_types": [kind] * model.layers,
    }  # fmt: skip


def _qwen2_model(config: HFConfig) -> Decoder:
    return _llama_style_model(
        config, qkv_bias=True, out_bias=False, ffn_bias=False, window=_qwen_sliding_window(config)
    )


def _qwen2_config(model: Decoder) -> dict[str, Any]:
    return {**_llama_style_config(model), **_qwen_sliding_window_config(model)}


def _qwen3_model(config: HFConfig) -> Decoder:
    bias = config.get("attention_bias", False)
    return _llama_style_model(
        {"head_dim": 128, **config}, qkv_bias=bias, out_bias=bias, ffn_bias=False, qk_norm=True,
        window=_qwen_sliding_window(config),
    )  # fmt: skip


def _qwen3_config(model: Decoder) -> dict[str, Any]:
    return {**_llama_style_config(model), **_qwen_sliding_window_config(model), "attention_bias": model.qkv_bias}


def _llama_style(hf_class: str, model_type: str, to_model: Any, to_config: Any) -> Architecture:
    aliases = _tied_head("model.embed_tokens.weight")
    return Architecture(
        hf_class, model_type, to_model, to_config, _llama_style_weight_maps, "model.", COMPUTED_BUFFERS, aliases
    )


def _tied_head(embedding: str) -> Callable[[Decoder], dict[str, str]]:
    return lambda model: {"lm_head.weight": embedding} if model.tie_embeddings else {}


COMPUTED_BUFFERS = (r".*\.rotary_emb\.inv_freq",)

DECODER_ARCHITECTURES = (
    Architecture(
        "GPT2LMHeadModel", "gpt2", _gpt2_model, _gpt2_config, _gpt2_weight_maps, "transformer.",
        (r".*\.attn\.(masked_)?bias",), _tied_head("transformer.wte.weight"),
    ),
    _llama_style("LlamaForCausalLM", "llama", _llama_model, _llama_config),
    _llama_style("MistralForCausalLM", "mistral", _mistral_model, _mistral_config),
    _llama_style("Qwen2ForCausalLM", "qwen2", _qwen2_model, _qwen2_config),
    _llama_style("Qwen3ForCausalLM", "qwen3", _qwen3_model, _qwen3_config),
)  # fmt: skip
