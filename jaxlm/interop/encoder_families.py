"""Encoder-only families: BERT and RoBERTa, with the head that fills gaps, that of the next sentence, or none.

Files of one architecture differ: that of BertForMaskedLM may hold the map of the first position (the "pooler") and the
head of the next sentence too. What is there is kept, so that it comes back and fine-tuning can start from it.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from jaxlm.interop.correspondence import Entry
from jaxlm.interop.family import Config, Family, activation, activation_name, attention, expect, linear, need, norm
from jaxlm.models.encoder import Encoder

LAYERS = "stack/layers"
NAMES = ("self.query", "self.key", "self.value", "output.dense")


def _model(config: Config, first: int, head: bool, pairs: bool) -> Encoder:
    expect(config, position_embedding_type="absolute", is_decoder=False, tie_word_embeddings=True)
    return Encoder(
        need(config, "vocab_size"), need(config, "hidden_size"), need(config, "num_attention_heads"),
        need(config, "intermediate_size"), need(config, "num_hidden_layers"),
        max_length=config.get("max_position_embeddings", 512), first_position=first,
        types=config.get("type_vocab_size", 2), norm_epsilon=config.get("layer_norm_eps", 1e-12),
        activation=activation(config.get("hidden_act", "gelu")), dropout=config.get("hidden_dropout_prob", 0.1),
        attention_dropout=config.get("attention_probs_dropout_prob", 0.1), head=head, pairs=pairs,
    )  # fmt: skip


def bert_config(model: Encoder) -> dict[str, Any]:
    """The entries of config.json that a BERT decides."""
    return {
        "vocab_size": model.vocab, "hidden_size": model.width, "num_attention_heads": model.heads,
        "intermediate_size": model.hidden, "num_hidden_layers": model.layers, "type_vocab_size": model.types,
        "max_position_embeddings": model.max_length, "layer_norm_eps": model.norm_epsilon,
        "hidden_act": activation_name(model.activation), "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
    }  # fmt: skip


def trunk(kind: str) -> list[Entry]:
    """Embeddings and layers of "bert" or "roberta"."""
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


def _table(kind: str, transform: str, last: str, bias: str):
    """The trunk and the heads that the model has; `transform`, `last` and `bias` are those of the one for gaps."""

    def table(model: Encoder) -> list[Entry]:
        entries = trunk(kind)
        if model.pooled or model.pairs:
            entries += linear(f"{kind}.pooler.dense", "pooler")
        if model.head:
            entries += [*linear(transform, "transform"), *norm(last, "transform_norm"), Entry(bias, ("output_bias",))]
        return entries + (linear(NEXT, "next_sentence") if model.pairs else [])

    return table


def _stored(kind: str):
    """A model with the map of the first position, and the head of the next sentence, where both arrays are there."""

    def stored(model: Encoder, names: Collection[str]) -> Encoder:
        pooled, following = (
            all(f"{name}.{part}" in names for part in ("weight", "bias")) for name in (f"{kind}.pooler.dense", NEXT)
        )
        pairs = model.pairs or (model.head and pooled and following)
        return replace(model, pairs=pairs, pooled=pooled and not pairs)

    return stored


def bert_model(config: Config, head: bool = False, pairs: bool = False) -> Encoder:
    """BERT of a config.json. Raises UserError on what the encoder cannot do."""
    return _model(config, 0, head, pairs)


def roberta_model(config: Config, head: bool = False) -> Encoder:
    """RoBERTa of a config.json. Raises UserError on what the encoder cannot do."""
    expect(config, hidden_act="gelu")  # their head has it whatever the config says
    return _model(config, config.get("pad_token_id", 1) + 1, head, False)


def roberta_config(model: Encoder) -> dict[str, Any]:
    """The entries of config.json that a RoBERTa decides."""
    return {**bert_config(model), "pad_token_id": model.first_position - 1}


def _aliases(kind: str, head: str):
    names = {f"{head}.decoder.weight": f"{kind}.embeddings.word_embeddings.weight"}
    return lambda model: {**names, f"{head}.decoder.bias": f"{head}.bias"}


NEXT, BERT_GAPS, ROBERTA_GAPS = "cls.seq_relationship", "cls.predictions", "lm_head"
UNUSED = (r".*\.embeddings\.position_ids", r".*\.pooler\.dense\.(weight|bias)", r"cls\.seq_relationship\..*")
"""Computed, or a part of a head that is not whole: it does not come back."""
OTHER_HEADS = (*UNUSED, r"cls\..*", r"lm_head\..*")
_BERT_TABLE = _table("bert", f"{BERT_GAPS}.transform.dense", f"{BERT_GAPS}.transform.LayerNorm", f"{BERT_GAPS}.bias")
_ROBERTA_TABLE = _table("roberta", "lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
_BERT_ALIASES, _ROBERTA_ALIASES = _aliases("bert", BERT_GAPS), _aliases("roberta", ROBERTA_GAPS)

BERT = Family(
    "BertForMaskedLM", "bert", lambda config: bert_model(config, head=True), bert_config, _BERT_TABLE, "bert.",
    UNUSED, _BERT_ALIASES, _stored("bert"),
)  # fmt: skip
BERT_PAIRS = Family(
    "BertForPreTraining", "bert", lambda config: bert_model(config, head=True, pairs=True), bert_config, _BERT_TABLE,
    "bert.", UNUSED, _BERT_ALIASES, _stored("bert"),
)  # fmt: skip
BERT_TRUNK = Family(
    "BertModel", "bert", bert_model, bert_config, _BERT_TABLE, "bert.", OTHER_HEADS, stored=_stored("bert"), bare=True
)
ROBERTA = Family(
    "RobertaForMaskedLM", "roberta", lambda config: roberta_model(config, head=True), roberta_config, _ROBERTA_TABLE,
    "roberta.", UNUSED, _ROBERTA_ALIASES, _stored("roberta"),
)  # fmt: skip
ROBERTA_TRUNK = Family(
    "RobertaModel", "roberta", roberta_model, roberta_config, _ROBERTA_TABLE, "roberta.", OTHER_HEADS,
    stored=_stored("roberta"), bare=True,
)  # fmt: skip
