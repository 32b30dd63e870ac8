"""Encoder-decoder families: Marian (OPUS-MT; Tiedemann and Thottingal 2020) and T5 (Raffel et al. 2020)."""

from typing import Any

from jaxlm.errors import UserError
from jaxlm.huggingface.architecture import (
    HF_ACTIVATIONS,
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
from jaxlm.models.encoder_decoder import EncoderDecoder

ENCODER_LAYERS, DECODER_LAYERS = "encoder/layers", "decoder/layers"

TIE_MODES: dict[tuple[bool, bool], Any] = {
    (True, True): "all", (True, False): "input", (False, True): "target", (False, False): "none",
}  # fmt: skip
"""(source and target share embeddings, the output layer is the target's embedding) -> `tie_embeddings`."""

HF_GATED_ACTIVATIONS = {"gelu": "geglu", "gelu_new": "geglu", "silu": "swiglu"}

MARIAN_PROJECTIONS, T5_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj"), ("q", "k", "v", "o")


def _marian_model(config: HFConfig) -> EncoderDecoder:
    require_value(config, normalize_before=False, normalize_embedding=False, add_final_layer_norm=False)
    for name in ("attention_heads", "ffn_dim"):
        sides = [require_entry(config, f"{side}_{name}") for side in ("encoder", "decoder")]
        if sides[0] != sides[1]:
            raise UserError(
                f"config.json has encoder_{name} {sides[0]} and decoder_{name} {sides[1]}; jaxlm needs equal ones"
            )
    vocab, share = require_entry(config, "vocab_size"), config.get("share_encoder_decoder_embeddings", True)
    target = config.get("decoder_vocab_size") or vocab
    return EncoderDecoder(
        target, require_entry(config, "d_model"), config["encoder_attention_heads"], config["encoder_ffn_dim"],
        require_entry(config, "encoder_layers"), require_entry(config, "decoder_layers"),
        activation=from_hf_activation(config.get("activation_function", "gelu")), position="sinusoidal_halves",
        max_length=config.get("max_position_embeddings", 1024), dropout=config.get("dropout", 0.1),
        attention_dropout=config.get("attention_dropout", 0.0),
        activation_dropout=config.get("activation_dropout", 0.0),
        tie_embeddings=TIE_MODES[share, config.get("tie_word_embeddings", True)], source_vocab=None if share else vocab,
        embedding_scale=None if config.get("scale_embedding", False) else 1.0, logit_bias=True,
    )  # fmt: skip


def _marian_config(model: EncoderDecoder) -> dict[str, Any]:
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("attention_heads", model.heads), ("ffn_dim", model.hidden))
    }
    return {
        "vocab_size": model.vocab if model.source_vocab is None else model.source_vocab,
        "decoder_vocab_size": model.vocab, "d_model": model.width, **sides, "encoder_layers": model.encoder_layers,
        "decoder_layers": model.decoder_layers, "activation_function": to_hf_activation(model.activation),
        "max_position_embeddings": model.max_length, "dropout": model.dropout,
        "attention_dropout": model.attention_dropout, "activation_dropout": model.activation_dropout,
        "share_encoder_decoder_embeddings": model.tie_embeddings in ("all", "input"),
        "tie_word_embeddings": model.tie_embeddings in ("all", "target"),
        "scale_embedding": model.embedding_scale is None,
    }  # fmt: skip


def _marian_weight_maps(model: EncoderDecoder) -> list[WeightMap]:
    table = [WeightMap("final_logits_bias", ("output_bias",), leading_axis=True)]
    if model.tie_embeddings in ("all", "input"):
        table.append(WeightMap("model.shared.weight", ("embedding",)))
    else:
        table.append(WeightMap("model.encoder.embed_tokens.weight", ("source_embedding",)))
        table.append(WeightMap("model.decoder.embed_tokens.weight", ("embedding",)))
    if model.tie_embeddings in ("input", "none"):
        table.append(WeightMap("lm_head.weight", ("output",)))
    for side, ours in (("encoder", ENCODER_LAYERS), ("decoder", DECODER_LAYERS)):
        layer = f"model.{side}.layers.{{}}"
        table += map_attention(f"{layer}.self_attn", f"{ours}/attention", MARIAN_PROJECTIONS)
        table += map_norm(f"{layer}.self_attn_layer_norm", f"{ours}/attention_residual/norm")
        if side == "decoder":
            table += map_attention(f"{layer}.encoder_attn", f"{ours}/source_attention", MARIAN_PROJECTIONS)
            table += map_norm(f"{layer}.encoder_attn_layer_norm", f"{ours}/source_residual/norm")
        table += map_linear(f"{layer}.fc1", f"{ours}/ffn/up")
        table += map_linear(f"{layer}.fc2", f"{ours}/ffn/down")
        table += map_norm(f"{layer}.final_layer_norm", f"{ours}/ffn_residual/norm")
    return table


def _marian_aliases(model: EncoderDecoder) -> dict[str, str]:
    shared = model.tie_embeddings in ("all", "input")
    target = "model.shared.weight" if shared else "model.decoder.embed_tokens.weight"
    sides = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight") if shared else ()
    tied = ("lm_head.weight",) if model.tie_embeddings in ("all", "target") else ()
    return dict.fromkeys((*sides, *tied), target)


def _t5_model(config: HFConfig) -> EncoderDecoder:
    width, layers = require_entry(config, "d_model"), require_entry(config, "num_layers")
    tie, dropout = config.get("tie_word_embeddings", True), config.get("dropout_rate", 0.1)
    return EncoderDecoder(
        require_entry(config, "vocab_size"), width, require_entry(config, "num_heads"), require_entry(config, "d_ff"),
        layers, config.get("num_decoder_layers") or layers, norm="pre", activation=_t5_activation(config),
        position="relative", dropout=dropout, attention_dropout=dropout, activation_dropout=dropout,
        tie_embeddings="all" if tie else "input",
        head_dim=require_entry(config, "d_kv"), norm_kind="rms", norm_epsilon=config.get("layer_norm_epsilon", 1e-6),
        bias=False, scale_scores=False, num_buckets=config.get("relative_attention_num_buckets", 32),
        max_distance=config.get("relative_attention_max_distance", 128), embedding_scale=1.0,
        logit_scale=width**-0.5 if config.get("scale_decoder_outputs", tie) else 1.0,
    )  # fmt: skip


def _t5_activation(config: HFConfig) -> Any:
    name = config.get("feed_forward_proj", "relu")
    if not name.startswith("gated-"):
        return from_hf_activation(name)
    gate = name.removeprefix("gated-")
    if gate not in HF_GATED_ACTIVATIONS:
        raise UserError(
            f"config.json has feed_forward_proj {name!r}; jaxlm knows "
            f"{', '.join((*HF_ACTIVATIONS, *HF_GATED_ACTIVATIONS))}"
        )
    return HF_GATED_ACTIVATIONS[gate]


def _t5_config(model: EncoderDecoder) -> dict[str, Any]:
    gates = {"geglu": "gated-gelu", "swiglu": "gated-silu"}
    return {
        "vocab_size": model.vocab, "d_model": model.width, "num_heads": model.heads, "d_kv": model.head_dim,
        "d_ff": model.hidden, "num_layers": model.encoder_layers, "num_decoder_layers": model.decoder_layers,
        "feed_forward_proj": gates.get(model.activation) or to_hf_activation(model.activation),
        "dropout_rate": model.dropout, "layer_norm_epsilon": model.norm_epsilon,
        "relative_attention_num_buckets": model.num_buckets, "relative_attention_max_distance": model.max_distance,
        "tie_word_embeddings": model.tie_embeddings == "all", "scale_decoder_outputs": model.logit_scale != 1.0,
    }  # fmt: skip


def _t5_weight_maps(model: EncoderDecoder) -> list[WeightMap]:
    table = [WeightMap("shared.weight", ("embedding",))]
    if model.tie_embeddings == "input":
        table.append(WeightMap("lm_head.weight", ("output",)))
    for side, ours, relative in (
        ("encoder", ENCODER_LAYERS, "source_relative"),
        ("decoder", DECODER_LAYERS, "target_relative"),
    ):
        layer, last = f"{side}.block.{{}}.layer", 2 if side == "decoder" else 1
        table += map_attention(f"{layer}.0.SelfAttention", f"{ours}/attention", T5_PROJECTIONS, False, False)
        table += map_norm(f"{layer}.0.layer_norm", f"{ours}/attention_residual/norm", False)
        first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table.append(WeightMap(first, (f"{relative}/table",)))
        if side == "decoder":
            table += map_attention(
                f"{layer}.1.EncDecAttention", f"{ours}/source_attention", T5_PROJECTIONS, False, False
            )
            table += map_norm(f"{layer}.1.layer_norm", f"{ours}/source_residual/norm", False)
        maps = {"wo": "down", **({"wi_0": "gate", "wi_1": "up"} if "glu" in model.activation else {"wi": "up"})}
        for name, part in maps.items():
            table += map_linear(f"{layer}.{last}.DenseReluDense.{name}", f"{ours}/ffn/{part}", False)
        table += map_norm(f"{layer}.{last}.layer_norm", f"{ours}/ffn_residual/norm", False)
        table += map_norm(f"{side}.final_layer_norm", f"{side}_norm", False)
    return table


def _t5_aliases(model: EncoderDecoder) -> dict[str, str]:
    names = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    return dict.fromkeys([*names, "lm_head.weight"] if model.tie_embeddings == "all" else names, "shared.weight")


MARIAN = Architecture(
    "MarianMTModel", "marian", _marian_model, _marian_config, _marian_weight_maps, "model.",
    (r"model\.(en|de)coder\.embed_positions\.weight",), _marian_aliases,
)  # fmt: skip

T5 = Architecture(
    "T5ForConditionalGeneration", "t5", _t5_model, _t5_config, _t5_weight_maps, "",
    (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",), _t5_aliases,
)  # fmt: skip
