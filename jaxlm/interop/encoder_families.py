"""Encoder-only families, with the head that fills gaps: BERT and RoBERTa."""

from typing import Any

from jaxlm.interop.correspondence import Entry
from jaxlm.interop.family import Config, Family, activation, activation_name, attention, expect, linear, need, norm
from jaxlm.models.encoder import Encoder

LAYERS = "stack/layers"
NAMES = ("self.query", "self.key", "self.value", "output.dense")


def _model(config: Config, first: int, head: bool = True) -> Encoder:
    expect(config, position_embedding_type="absolute", is_decoder=False, tie_word_embeddings=True)
    return Encoder(
        need(config, "vocab_size"), need(config, "hidden_size"), need(config, "num_attention_heads"),
        need(config, "intermediate_size"), need(config, "num_hidden_layers"),
        max_length=config.get("max_position_embeddings", 512), first_position=first,
        types=config.get("type_vocab_size", 2), norm_epsilon=config.get("layer_norm_eps", 1e-12),
        activation=activation(config.get("hidden_act", "gelu")), dropout=config.get("hidden_dropout_prob", 0.1),
        attention_dropout=config.get("attention_probs_dropout_prob", 0.1), head=head,
    )  # fmt: skip


def _config(model: Encoder) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab, "hidden_size": model.width, "num_attention_heads": model.heads,
        "intermediate_size": model.hidden, "num_hidden_layers": model.layers, "type_vocab_size": model.types,
        "max_position_embeddings": model.max_length, "layer_norm_eps": model.norm_epsilon,
        "hidden_act": activation_name(model.activation), "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
    }  # fmt: skip


def _trunk(kind: str) -> list[Entry]:
    layer = f"{kind}.encoder.layer.{{}}"
    return [
        Entry(f"{kind}.embeddings.word_embeddings.weight", ("embedding",)),
        Entry(f"{kind}.embeddings.position_embeddings.weight", ("position/table",)),
        Entry(f"{kind}.embeddings.token_type_embeddings.weight", ("type_embedding",)),
        *norm(f"{kind}.embeddings.LayerNorm", "embedding_norm"),
        *attention(f"{layer}.attention", f"{LAYERS}/attention", NAMES),
        *norm(f"{layer}.attention.output.LayerNorm", f"{LAYERS}/attention_residual/norm"),
        *linear(f"{layer}.intermediate.dense", f"{LAYERS}/ffn/up"),
        *linear(f"{layer}.output.dense", f"{LAYERS}/ffn/down"),
        *norm(f"{layer}.output.LayerNorm", f"{LAYERS}/ffn_residual/norm"),
    ]


def _head(transform: str, last: str, bias: str) -> list[Entry]:
    return [*linear(transform, "transform"), *norm(last, "transform_norm"), Entry(bias, ("output_bias",))]


def _bert_model(config: Config) -> Encoder:
    return _model(config, 0)


def _bert_table(model: Encoder) -> list[Entry]:
    head = "cls.predictions"
    return [*_trunk("bert"), *_head(f"{head}.transform.dense", f"{head}.transform.LayerNorm", f"{head}.bias")]


def _roberta_model(config: Config) -> Encoder:
    expect(config, hidden_act="gelu")  # their head has it whatever the config says
    return _model(config, config.get("pad_token_id", 1) + 1)


def _roberta_config(model: Encoder) -> dict[str, Any]:
    return {**_config(model), "pad_token_id": model.first_position - 1}


def _roberta_table(model: Encoder) -> list[Entry]:
    return [*_trunk("roberta"), *_head("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")]


def _aliases(kind: str, head: str):
    names = {f"{head}.decoder.weight": f"{kind}.embeddings.word_embeddings.weight"}
    return lambda model: {**names, f"{head}.decoder.bias": f"{head}.bias"}


def _bert_trunk(config: Config) -> Encoder:
    return _model(config, 0, head=False)


def _roberta_trunk(config: Config) -> Encoder:
    return _model(config, config.get("pad_token_id", 1) + 1, head=False)


UNUSED = (r".*\.embeddings\.position_ids", r".*\.pooler\.dense\.(weight|bias)", r"cls\.seq_relationship\..*")
"""Computed, or of the sentence-pair task, which the masked language model does not use: it does not come back."""
BERT = Family(
    "BertForMaskedLM", "bert", _bert_model, _config, _bert_table, "bert.", UNUSED, _aliases("bert", "cls.predictions")
)
BERT_TRUNK = Family(
    "BertModel", "bert", _bert_trunk, _config, lambda model: _trunk("bert"), "bert.", (*UNUSED, r"cls\..*")
)
ROBERTA = Family(
    "RobertaForMaskedLM", "roberta", _roberta_model, _roberta_config, _roberta_table, "roberta.", UNUSED,
    _aliases("roberta", "lm_head"),
)  # fmt: skip
ROBERTA_TRUNK = Family(
    "RobertaModel", "roberta", _roberta_trunk, _roberta_config, lambda model: _trunk("roberta"), "roberta.",
    (*UNUSED, r"lm_head\..*"),
)  # fmt: skip
