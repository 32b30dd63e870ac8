"""Encoder-decoder families: Marian (OPUS-MT; Tiedemann and Thottingal 2020) and T5 (Raffel et al. 2020)."""

from typing import Any

from jaxlm.errors import UserError
from jaxlm.huggingface.architecture import (
    HF_ACTIVATIONS,
    Architecture,
    ConfigTable,
    HFConfig,
    read_entry,
    read_fields,
    require_value,
    to_entries,
)
from jaxlm.huggingface.weight_map import WeightMap, map_attention, map_linear, map_norm
from jaxlm.models.encoder_decoder import EncoderDecoder

ENCODER_LAYERS, DECODER_LAYERS = "encoder/layers", "decoder/layers"

TIE_MODES: dict[tuple[bool, bool], Any] = {
    (True, True): "all", (True, False): "input", (False, True): "target", (False, False): "none",
}  # fmt: skip
"""(source and target share embeddings, the output layer is the target's embedding) -> `tie_embeddings`."""

MARIAN_PROJECTIONS, T5_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj"), ("q", "k", "v", "o")


MARIAN_TABLE: ConfigTable = {
    "vocab_size": "vocab", "d_model": "width", "encoder_attention_heads": "heads", "encoder_ffn_dim": "hidden",
    "encoder_layers": "encoder_layers", "decoder_layers": "decoder_layers",
    "activation_function": ("activation", "gelu"), "max_position_embeddings": ("max_length", 1024),
    "dropout": ("dropout", 0.1), "attention_dropout": ("attention_dropout", 0.0),
    "activation_dropout": ("activation_dropout", 0.0),
}  # fmt: skip


def _marian_model(config: HFConfig) -> EncoderDecoder:
    require_value(config, normalize_before=False, normalize_embedding=False, add_final_layer_norm=False)
    require_value(config, is_decoder=False, encoder_layerdrop=0.0, decoder_layerdrop=0.0)
    fields, share = read_fields(config, MARIAN_TABLE), read_entry(config, "share_encoder_decoder_embeddings", True)
    for name, field in (("attention_heads", "heads"), ("ffn_dim", "hidden")):
        if (decoder_value := config.get(f"decoder_{name}")) != fields[field]:
            raise UserError(
                f"config.json has encoder_{name} {fields[field]} and decoder_{name} {decoder_value}; jaxlm needs equal "
                "ones"
            )
    if not share:
        fields["source_vocab"] = fields["vocab"]
    fields["vocab"] = read_entry(config, "decoder_vocab_size") or fields["vocab"]
    return EncoderDecoder(
        position="sinusoidal_halves", tie_embeddings=TIE_MODES[share, read_entry(config, "tie_word_embeddings", True)],
        embedding_scale=None if read_entry(config, "scale_embedding", False) else 1.0, logit_bias=True, **fields,
    )  # fmt: skip


def _marian_config(model: EncoderDecoder) -> dict[str, Any]:
    return {
        **to_entries(model, MARIAN_TABLE), "decoder_attention_heads": model.heads, "decoder_ffn_dim": model.hidden,
        "vocab_size": model.source_vocab or model.vocab, "decoder_vocab_size": model.vocab,
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


T5_TABLE: ConfigTable = {
    "vocab_size": "vocab", "d_model": "width", "num_heads": "heads", "d_ff": "hidden", "d_kv": "head_dim",
    "num_layers": "encoder_layers", "feed_forward_proj": ("activation", "relu"), "dropout_rate": ("dropout", 0.1),
    "layer_norm_epsilon": ("norm_epsilon", 1e-6), "relative_attention_num_buckets": ("num_buckets", 32),
    "relative_attention_max_distance": ("max_distance", 128),
}  # fmt: skip


def _t5_model(config: HFConfig) -> EncoderDecoder:
    fields, tie = read_fields(config, T5_TABLE), read_entry(config, "tie_word_embeddings", True)
    require_value(config, is_decoder=False)
    inner = config.get("dense_act_fn")  # Transformers believes it rather than feed_forward_proj
    gate = "gated-" if "glu" in fields["activation"] else ""
    if inner is not None and HF_ACTIVATIONS.get(f"{gate}{inner}") != fields["activation"]:
        raise UserError(
            f"config.json has feed_forward_proj = {config.get('feed_forward_proj')!r:.80} and dense_act_fn = "
            f"{inner!r:.80}, which is another activation: correct one of them"
        )
    fields["attention_dropout"] = fields["activation_dropout"] = fields["dropout"]
    return EncoderDecoder(
        decoder_layers=read_entry(config, "num_decoder_layers", fields["encoder_layers"]), norm="pre",
        position="relative",
        tie_embeddings="all" if tie else "input", norm_kind="rms", bias=False, scale_scores=False, embedding_scale=1.0,
        logit_scale=fields["width"] ** -0.5 if read_entry(config, "scale_decoder_outputs", tie) else 1.0, **fields,
    )  # fmt: skip


def _t5_config(model: EncoderDecoder) -> dict[str, Any]:
    return {
        **to_entries(model, T5_TABLE), "num_decoder_layers": model.decoder_layers,
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
