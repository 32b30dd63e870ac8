"""Decoder-only families: GPT-2, Llama, Mistral, Qwen2, Qwen3."""

from typing import Any

from jaxlm.errors import UserError
from jaxlm.interop.correspondence import Entry
from jaxlm.interop.family import Config, Family, activation, activation_name, attention, expect, linear, need, norm
from jaxlm.interop.rope import read_rotary, rotary_config
from jaxlm.models.decoder import Decoder

LAYERS = "stack/layers"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def _gpt2_model(config: Config) -> Decoder:
    expect(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width = need(config, "n_embd")
    return Decoder(
        need(config, "vocab_size"), width, need(config, "n_head"), config.get("n_inner") or 4 * width,
        need(config, "n_layer"), max_length=config.get("n_positions", 1024),
        norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
        activation=activation(config.get("activation_function", "gelu_new")),
        dropout=config.get("resid_pdrop", 0.1), attention_dropout=config.get("attn_pdrop", 0.1),
        tie=config.get("tie_word_embeddings", True),
    )  # fmt: skip


def _gpt2_config(model: Decoder) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab, "n_embd": model.width, "n_head": model.heads, "n_inner": model.hidden,
        "n_layer": model.layers, "n_positions": model.max_length, "layer_norm_epsilon": model.norm_epsilon,
        "activation_function": activation_name(model.activation), "resid_pdrop": model.dropout,
        "embd_pdrop": model.dropout, "attn_pdrop": model.attention_dropout, "tie_word_embeddings": model.tie,
    }  # fmt: skip


def _gpt2_table(model: Decoder) -> list[Entry]:
    def wide(theirs: str, *ours: str) -> list[Entry]:  # their Conv1D lies (in, out), as ours
        paths = [tuple(f"{LAYERS}/{path}/{part}" for path in ours) for part in ("kernel", "bias")]
        return [Entry(f"{layer}.{theirs}.weight", paths[0]), Entry(f"{layer}.{theirs}.bias", paths[1])]

    layer = "transformer.h.{}"
    return [
        Entry("transformer.wte.weight", ("embedding",)),
        Entry("transformer.wpe.weight", ("absolute_position/table",)),
        *norm(f"{layer}.ln_1", f"{LAYERS}/attention_residual/norm"),
        *wide("attn.c_attn", "attention/query", "attention/key", "attention/value"),
        *wide("attn.c_proj", "attention/out"),
        *norm(f"{layer}.ln_2", f"{LAYERS}/ffn_residual/norm"),
        *wide("mlp.c_fc", "ffn/up"),
        *wide("mlp.c_proj", "ffn/down"),
        *norm("transformer.ln_f", "last_norm"),
        *_output(model),
    ]


def _output(model: Decoder) -> list[Entry]:
    return [] if model.tie else [Entry("lm_head.weight", ("output",))]


def _llama_like(config: Config, **options: Any) -> Decoder:
    """What Llama, Mistral and Qwen have in common."""
    if activation(config.get("hidden_act", "silu")) != "silu":
        raise UserError(f"config.json has hidden_act = {config['hidden_act']!r}; jaxlm can do 'silu' only")
    width, heads = need(config, "hidden_size"), need(config, "num_attention_heads")
    groups, length = config.get("num_key_value_heads") or heads, config.get("max_position_embeddings", 2048)
    return Decoder(
        need(config, "vocab_size"), width, heads, need(config, "intermediate_size"),
        need(config, "num_hidden_layers"), kv_heads=groups, head_width=config.get("head_dim") or width // heads,
        position="rotary",        max_length=length, rotary=read_rotary(config, length), norm_kind="rms",
        norm_epsilon=config.get("rms_norm_eps", 1e-6), activation="swiglu",
        attention_dropout=config.get("attention_dropout", 0.0), tie=config.get("tie_word_embeddings", False),
        **options,
    )  # fmt: skip


def _llama_like_config(model: Decoder) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab, "hidden_size": model.width, "num_attention_heads": model.heads,
        "intermediate_size": model.hidden, "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads or model.heads,
        "head_dim": model.head_width or model.width // model.heads, "max_position_embeddings": model.max_length,
        "hidden_act": "silu", "rms_norm_eps": model.norm_epsilon, "attention_dropout": model.attention_dropout,
        "tie_word_embeddings": model.tie, **rotary_config(model.rotary),
    }  # fmt: skip


def _llama_like_table(model: Decoder) -> list[Entry]:
    layer = "model.layers.{}"
    heads = [*norm(f"{layer}.self_attn.q_norm", f"{LAYERS}/attention/query_norm", False),
             *norm(f"{layer}.self_attn.k_norm", f"{LAYERS}/attention/key_norm", False)]  # fmt: skip
    return [
        Entry("model.embed_tokens.weight", ("embedding",)),
        *norm(f"{layer}.input_layernorm", f"{LAYERS}/attention_residual/norm", False),
        *attention(f"{layer}.self_attn", f"{LAYERS}/attention", PROJECTIONS, model.qkv_bias, model.out_bias),
        *(heads if model.qk_norm else []),
        *norm(f"{layer}.post_attention_layernorm", f"{LAYERS}/ffn_residual/norm", False),
        *linear(f"{layer}.mlp.gate_proj", f"{LAYERS}/ffn/gate", model.ffn_bias),
        *linear(f"{layer}.mlp.up_proj", f"{LAYERS}/ffn/up", model.ffn_bias),
        *linear(f"{layer}.mlp.down_proj", f"{LAYERS}/ffn/down", model.ffn_bias),
        *norm("model.norm", "last_norm", False),
        *_output(model),
    ]


def _llama_model(config: Config) -> Decoder:
    in_attention, in_ffn = config.get("attention_bias", False), config.get("mlp_bias", False)
    return _llama_like(config, qkv_bias=in_attention, out_bias=in_attention, ffn_bias=in_ffn)


def _llama_config(model: Decoder) -> dict[str, Any]:
    return {**_llama_like_config(model), "attention_bias": model.qkv_bias, "mlp_bias": model.ffn_bias}


def _mistral_model(config: Config) -> Decoder:
    window = config.get("sliding_window", 4096)
    return _llama_like(config, qkv_bias=False, out_bias=False, ffn_bias=False, window=window)


def _mistral_config(model: Decoder) -> dict[str, Any]:
    return {**_llama_like_config(model), "sliding_window": model.window}


def _qwen_window(config: Config) -> int | None:
    """The window, if all layers have it. Raises UserError where some do and others do not."""
    if not config.get("use_sliding_window", False) or config.get("sliding_window", 4096) is None:
        return None
    layers, first = need(config, "num_hidden_layers"), config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * (layers - first)
    windowed = {kind == "sliding_attention" for kind in kinds[:layers]}
    if len(windowed) > 1:
        raise UserError("config.json gives a sliding window to some layers and not to others; jaxlm: to all or to none")
    return config.get("sliding_window", 4096) if windowed == {True} else None


def _qwen_window_config(model: Decoder) -> dict[str, Any]:
    kind = "full_attention" if model.window is None else "sliding_attention"
    return {
        "use_sliding_window": model.window is not None, "sliding_window": model.window,
        "max_window_layers": model.layers if model.window is None else 0, "layer_types": [kind] * model.layers,
    }  # fmt: skip


def _qwen2_model(config: Config) -> Decoder:
    return _llama_like(config, qkv_bias=True, out_bias=False, ffn_bias=False, window=_qwen_window(config))


def _qwen2_config(model: Decoder) -> dict[str, Any]:
    return {**_llama_like_config(model), **_qwen_window_config(model)}


def _qwen3_model(config: Config) -> Decoder:
    bias = config.get("attention_bias", False)
    return _llama_like(
        {"head_dim": 128, **config}, qkv_bias=bias, out_bias=bias, ffn_bias=False, qk_norm=True,
        window=_qwen_window(config),
    )  # fmt: skip


def _qwen3_config(model: Decoder) -> dict[str, Any]:
    return {**_llama_like_config(model), **_qwen_window_config(model), "attention_bias": model.qkv_bias}


def _tied(model: Decoder) -> dict[str, str]:
    return {"lm_head.weight": "model.embed_tokens.weight"} if model.tie else {}


def _gpt2_tied(model: Decoder) -> dict[str, str]:
    return {"lm_head.weight": "transformer.wte.weight"} if model.tie else {}


COMPUTED = (r".*\.rotary_emb\.inv_freq",)
GPT2 = Family(
    "GPT2LMHeadModel", "gpt2", _gpt2_model, _gpt2_config, _gpt2_table, "transformer.",
    (r".*\.attn\.(masked_)?bias",), _gpt2_tied,
)  # fmt: skip
LLAMA = Family(
    "LlamaForCausalLM", "llama", _llama_model, _llama_config, _llama_like_table, "model.", COMPUTED, _tied
)  # fmt: skip
MISTRAL = Family(
    "MistralForCausalLM", "mistral", _mistral_model, _mistral_config, _llama_like_table, "model.", COMPUTED, _tied
)  # fmt: skip
QWEN2 = Family(
    "Qwen2ForCausalLM", "qwen2", _qwen2_model, _qwen2_config, _llama_like_table, "model.", COMPUTED, _tied
)  # fmt: skip
QWEN3 = Family(
    "Qwen3ForCausalLM", "qwen3", _qwen3_model, _qwen3_config, _llama_like_table, "model.", COMPUTED, _tied
)  # fmt: skip
