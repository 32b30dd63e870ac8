"""Decoder-only families: GPT-2, Llama, Mistral, Qwen2, Qwen3.

Rotary positions in a config.json: `rope_parameters`, or `rope_theta` and `rope_scaling` as before.
"""

import math
from collections.abc import Callable
from typing import Any

from jaxlm.errors import UserError
from jaxlm.huggingface.architecture import (
    Architecture,
    ConfigTable,
    HFConfig,
    read_entry,
    read_fields,
    read_number,
    require_value,
    to_entries,
)
from jaxlm.huggingface.weight_map import WeightMap, map_attention, map_linear, map_norm
from jaxlm.models.decoder import Decoder
from jaxlm.nn.layers.positions import LinearScaling, Llama3Scaling, Rotary, Yarn

ORIGINAL_LENGTH = "original_max_position_embeddings"

SCALING_TYPES: dict[type, str] = {LinearScaling: "linear", Llama3Scaling: "llama3", Yarn: "yarn"}
"""Our scaling rule -> `rope_type` in config.json."""

ROPE_TYPES = ("default", *SCALING_TYPES.values())

ROPE_ENTRIES = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", ORIGINAL_LENGTH, "low_freq_factor",
    "high_freq_factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
}  # fmt: skip


def rotary_from_config(config: HFConfig, max_length: int) -> Rotary:
    """The rotary positions of a config. Raises UserError for a scaling rule that `jaxlm.nn.layers.positions` lacks."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict) or given.keys() - ROPE_ENTRIES:
        wrong = ", ".join(sorted(given.keys() - ROPE_ENTRIES)) if isinstance(given, dict) else repr(given)[:80]
        raise UserError(f"config.json has rotary positions with {wrong}; jaxlm knows {', '.join(sorted(ROPE_ENTRIES))}")
    theta = read_number(config if given.get("rope_theta") is None else given, "rope_theta", 10000.0, above=1)
    kind = given.get("rope_type", given.get("type", "default"))
    original_length = read_entry(config, ORIGINAL_LENGTH) or read_entry(given, ORIGINAL_LENGTH) or max_length
    if kind not in ROPE_TYPES:
        raise UserError(
            f"config.json scales rotary positions by the rule {kind!r:.80}; jaxlm has {', '.join(ROPE_TYPES)}"
        )
    if given.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UserError("config.json rotates a part of each head (partial_rotary_factor); jaxlm rotates all of it")
    if kind == "default":
        return Rotary(theta)
    factor = read_number(given, "factor")
    if kind == "linear":
        return Rotary(theta, LinearScaling(factor))
    if kind == "llama3":
        low = read_number(given, "low_freq_factor", 1.0)
        high = read_number(given, "high_freq_factor", 4.0, above=low)
        return Rotary(theta, Llama3Scaling(factor, low, high, original_length))
    sharpness = None if given.get("attention_factor") is None else read_number(given, "attention_factor")
    if sharpness is None and given.get("mscale") and given.get("mscale_all_dim"):
        scales = [
            0.1 * read_number(given, name) * math.log(max(factor, 1.0)) + 1 for name in ("mscale", "mscale_all_dim")
        ]
        sharpness = scales[0] / scales[1]
    fast, slow = read_number(given, "beta_fast", 32.0), read_number(given, "beta_slow", 1.0)
    return Rotary(theta, Yarn(factor, original_length, fast, slow, sharpness, read_entry(given, "truncate", True)))


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


GPT2_TABLE: ConfigTable = {
    "vocab_size": "vocab", "n_embd": "width", "n_head": "heads", "n_layer": "layers",
    "n_positions": ("max_length", 1024), "layer_norm_epsilon": ("norm_epsilon", 1e-5),
    "activation_function": ("activation", "gelu_new"), "resid_pdrop": ("dropout", 0.1),
    "attn_pdrop": ("attention_dropout", 0.1), "tie_word_embeddings": ("tie_embeddings", True),
}  # fmt: skip


def _gpt2_model(config: HFConfig) -> Decoder:
    require_value(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    fields = read_fields(config, GPT2_TABLE)
    require_value(config, embd_pdrop=fields["dropout"])
    return Decoder(hidden=read_entry(config, "n_inner", 4 * fields["width"]), **fields)


def _gpt2_config(model: Decoder) -> dict[str, Any]:
    return {**to_entries(model, GPT2_TABLE), "n_inner": model.hidden, "embd_pdrop": model.dropout}


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


LLAMA_STYLE_TABLE: ConfigTable = {
    "vocab_size": "vocab", "hidden_size": "width", "num_attention_heads": "heads", "intermediate_size": "hidden",
    "num_hidden_layers": "layers", "num_key_value_heads": ("kv_heads", None), "head_dim": ("head_dim", None),
    "max_position_embeddings": ("max_length", 2048), "rms_norm_eps": ("norm_epsilon", 1e-6),
    "attention_dropout": ("attention_dropout", 0.0), "tie_word_embeddings": ("tie_embeddings", False),
}  # fmt: skip
"""The common entries of Llama, Mistral and Qwen."""


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


def _qwen_sliding_window(config: HFConfig, layers: int) -> int | None:
    """The window, if all layers have it. Raises UserError if only some do."""
    window = read_entry(config, "sliding_window", None if "sliding_window" in config else 4096)
    if not read_entry(config, "use_sliding_window", False) or window is None:
        return None
    first = config.get("max_window_layers", 28)  # the layers below this one have no window
    windowed = {first == 0, first < layers} if type(first) is int else set()
    if kinds := config.get("layer_types"):
        windowed = {kind == "sliding_attention" for kind in kinds[:layers]} if isinstance(kinds, list) else set()
    if not windowed:
        raise UserError(
            f"config.json has max_window_layers = {first!r:.80} and layer_types = {kinds!r:.80}, expected a whole "
            "number and a list: fetch it again"
        )
    if len(windowed) > 1:
        raise UserError("config.json has a sliding window in some layers only; jaxlm has it in all layers or in none")
    return window if windowed == {True} else None


def _qwen_sliding_window_config(model: Decoder) -> dict[str, Any]:
    kind = "full_attention" if model.window is None else "sliding_attention"
    return {
        "use_sliding_window": model.window is not None, "sliding_window": model.window,
        "max_window_layers": model.layers if model.window is None else 0, "layer_types": [kind] * model.layers,
    }  # fmt: skip


def _llama_style(hf_class: str, model_type: str, table: ConfigTable, **fixed: Any) -> Architecture:
    """Llama, or a family that differs from it by the entries of `table` and the `fixed` fields of our model."""
    table = {**LLAMA_STYLE_TABLE, **table}

    def to_model(config: HFConfig) -> Decoder:
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise UserError(f"config.json has hidden_act = {config['hidden_act']!r}; jaxlm supports only 'silu'")
        fields = read_fields(config, table) | fixed
        for name, field in (("sliding_window", "window"), ("num_key_value_heads", "kv_heads")):
            if field in fields and config.get(name, 0) is None:
                fields[field] = None  # null is not the default here: no window, as many heads as queries
        fields["kv_heads"] = fields["kv_heads"] or fields["heads"]
        fields["head_dim"] = fields["head_dim"] or fields["width"] // fields["heads"]
        if model_type.startswith("qwen"):
            fields["window"] = _qwen_sliding_window(config, fields["layers"])
        rotary = rotary_from_config(config, fields["max_length"])
        fields |= {"out_bias": fields["qkv_bias"] and model_type != "qwen2", "norm_kind": "rms", "activation": "swiglu"}
        return Decoder(position="rotary", rotary=rotary, **fields)

    def to_config(model: Decoder) -> dict[str, Any]:
        entries = {**to_entries(model, table), "hidden_act": "silu", **rotary_to_config(model.rotary)}
        entries["num_key_value_heads"] = model.kv_heads or model.heads
        entries["head_dim"] = model.head_dim or model.width // model.heads
        return entries | (_qwen_sliding_window_config(model) if model_type.startswith("qwen") else {})

    aliases = _tied_head("model.embed_tokens.weight")
    return Architecture(
        hf_class, model_type, to_model, to_config, _llama_style_weight_maps, "model.", COMPUTED_BUFFERS, aliases
    )


def _tied_head(embedding: str) -> Callable[[Decoder], dict[str, str]]:
    return lambda model: {"lm_head.weight": embedding} if model.tie_embeddings else {}


MISTRAL_TABLE: ConfigTable = {
    "sliding_window": ("window", 4096), "max_position_embeddings": ("max_length", 131072),
    "num_key_value_heads": ("kv_heads", 8),
}  # fmt: skip

QWEN_TABLE: ConfigTable = {
    "max_position_embeddings": ("max_length", 32768), "num_key_value_heads": ("kv_heads", 32),
}  # fmt: skip

QWEN3_TABLE: ConfigTable = {**QWEN_TABLE, "attention_bias": ("qkv_bias", False), "head_dim": ("head_dim", 128)}

COMPUTED_BUFFERS = (r".*\.rotary_emb\.inv_freq",)

DECODER_ARCHITECTURES = (
    Architecture(
        "GPT2LMHeadModel", "gpt2", _gpt2_model, _gpt2_config, _gpt2_weight_maps, "transformer.",
        (r".*\.attn\.(masked_)?bias",), _tied_head("transformer.wte.weight"),
    ),
    _llama_style("LlamaForCausalLM", "llama", {"attention_bias": ("qkv_bias", False), "mlp_bias": ("ffn_bias", False)}),
    _llama_style("MistralForCausalLM", "mistral", MISTRAL_TABLE, qkv_bias=False, ffn_bias=False),
    _llama_style("Qwen2ForCausalLM", "qwen2", QWEN_TABLE, qkv_bias=True, ffn_bias=False),
    _llama_style("Qwen3ForCausalLM", "qwen3", QWEN3_TABLE, ffn_bias=False, qk_norm=True),
)  # fmt: skip
