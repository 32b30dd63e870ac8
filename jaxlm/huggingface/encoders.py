"""Encoder-only families: BERT and RoBERTa, with the head that fills gaps, that of the next sentence, or none.

Files of one architecture differ: that of BertForMaskedLM may hold the map of the first position (the "pooler") and the
head of the next sentence too. What is there is kept, so that it comes back and fine-tuning can start from it.

BERT and RoBERTa with a head for labels, of a text or of each token: what fine-tuning makes of an encoder.

BertForSequenceClassification     W tanh(U x_0 + d) + e, the pooler and the classifier
RobertaForSequenceClassification  the same, both in its classifier
...ForTokenClassification         W x_s + e at every position

A number (one label) is the same head. No table has other heads: choices, pairs in both orders, language models.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
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
)
from jaxlm.huggingface.weight_map import WeightMap
from jaxlm.models.encoder import Encoder
from jaxlm.models.finetune_heads import TextClassifier, TokenClassifier

ENCODER_STACK = "stack/layers"

BERT_PROJECTIONS = ("self.query", "self.key", "self.value", "output.dense")


def _encoder_from_config(config: HFConfig, position_offset: int, mlm_head: bool, nsp_head: bool) -> Encoder:
    require_value(config, position_embedding_type="absolute", is_decoder=False, tie_word_embeddings=True)
    return Encoder(
        require_entry(config, "vocab_size"), require_entry(config, "hidden_size"), require_entry(config,
        "num_attention_heads"),
        require_entry(config, "intermediate_size"), require_entry(config, "num_hidden_layers"),
        max_length=config.get("max_position_embeddings", 512), position_offset=position_offset,
        num_token_types=config.get("type_vocab_size", 2), norm_epsilon=config.get("layer_norm_eps", 1e-12),
        activation=from_hf_activation(config.get("hidden_act", "gelu")), dropout=config.get("hidden_dropout_prob", 0.1),
        attention_dropout=config.get("attention_probs_dropout_prob", 0.1), mlm_head=mlm_head, nsp_head=nsp_head,
    )  # fmt: skip


def bert_config(model: Encoder) -> dict[str, Any]:
    """The entries of config.json that a BERT decides."""
    return {
        "vocab_size": model.vocab, "hidden_size": model.width, "num_attention_heads": model.heads,
        "intermediate_size": model.hidden, "num_hidden_layers": model.layers, "type_vocab_size": model.num_token_types,
        "max_position_embeddings": model.max_length, "layer_norm_eps": model.norm_epsilon,
        "hidden_act": to_hf_activation(model.activation), "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
    }  # fmt: skip


def trunk_weight_maps(model_type: str) -> list[WeightMap]:
    """Embeddings and layers of "bert" or "roberta"."""
    layer = f"{model_type}.encoder.layer.{{}}"
    return [
        WeightMap(f"{model_type}.embeddings.word_embeddings.weight", ("embedding",)),
        WeightMap(f"{model_type}.embeddings.position_embeddings.weight", ("position/table",)),
        WeightMap(f"{model_type}.embeddings.token_type_embeddings.weight", ("type_embedding",)),
        *map_norm(f"{model_type}.embeddings.LayerNorm", "embedding_norm"),
        *map_attention(f"{layer}.attention", f"{ENCODER_STACK}/attention", BERT_PROJECTIONS),
        *map_norm(f"{layer}.attention.output.LayerNorm", f"{ENCODER_STACK}/attention_residual/norm"),
        *map_linear(f"{layer}.intermediate.dense", f"{ENCODER_STACK}/ffn/up"),
        *map_linear(f"{layer}.output.dense", f"{ENCODER_STACK}/ffn/down"),
        *map_norm(f"{layer}.output.LayerNorm", f"{ENCODER_STACK}/ffn_residual/norm"),
    ]


def _encoder_weight_maps(model_type: str, transform: str, layer_norm: str, bias: str):
    """The trunk and the heads that the model has; `transform`, `last` and `bias` are those of the one for gaps."""

    def table(model: Encoder) -> list[WeightMap]:
        entries = trunk_weight_maps(model_type)
        if model.add_pooling_layer or model.nsp_head:
            entries += map_linear(f"{model_type}.pooler.dense", "pooler")
        if model.mlm_head:
            entries += [
                *map_linear(transform, "transform"),
                *map_norm(layer_norm, "transform_norm"),
                WeightMap(bias, ("output_bias",)),
            ]
        return entries + (map_linear(NSP_HEAD, "next_sentence") if model.nsp_head else [])

    return table


def _adjust_to_weights(model_type: str):
    """A model with the map of the first position, and the head of the next sentence, where both arrays are there."""

    def stored(model: Encoder, names: Collection[str]) -> Encoder:
        pooled, following = (
            all(f"{name}.{part}" in names for part in ("weight", "bias"))
            for name in (f"{model_type}.pooler.dense", NSP_HEAD)
        )
        pairs = model.nsp_head or (model.mlm_head and pooled and following)
        return replace(model, nsp_head=pairs, add_pooling_layer=pooled and not pairs)

    return stored


def bert_model(config: HFConfig, mlm_head: bool = False, nsp_head: bool = False) -> Encoder:
    """BERT of a config.json. Raises UserError on what the encoder cannot do."""
    return _encoder_from_config(config, 0, mlm_head, nsp_head)


def roberta_model(config: HFConfig, mlm_head: bool = False) -> Encoder:
    """RoBERTa of a config.json. Raises UserError on what the encoder cannot do."""
    require_value(config, hidden_act="gelu")  # their head has it whatever the config says
    return _encoder_from_config(config, config.get("pad_token_id", 1) + 1, mlm_head, False)


def roberta_config(model: Encoder) -> dict[str, Any]:
    """The entries of config.json that a RoBERTa decides."""
    return {**bert_config(model), "pad_token_id": model.position_offset - 1}


def _aliases(model_type: str, mlm_head: str):
    names = {f"{mlm_head}.decoder.weight": f"{model_type}.embeddings.word_embeddings.weight"}
    return lambda model: {**names, f"{mlm_head}.decoder.bias": f"{mlm_head}.bias"}


NSP_HEAD, BERT_MLM_HEAD, ROBERTA_MLM_HEAD = "cls.seq_relationship", "cls.predictions", "lm_head"

UNUSED_WEIGHTS = (r".*\.embeddings\.position_ids", r".*\.pooler\.dense\.(weight|bias)", r"cls\.seq_relationship\..*")
"""Computed, or a part of a head that is not whole: it does not come back."""

OTHER_HEADS = (*UNUSED_WEIGHTS, r"cls\..*", r"lm_head\..*")

_BERT_WEIGHT_MAPS = _encoder_weight_maps(
    "bert", f"{BERT_MLM_HEAD}.transform.dense", f"{BERT_MLM_HEAD}.transform.LayerNorm", f"{BERT_MLM_HEAD}.bias"
)

_ROBERTA_WEIGHT_MAPS = _encoder_weight_maps("roberta", "lm_head.dense", "lm_head.layer_norm", "lm_head.bias")

_BERT_ALIASES, _ROBERTA_ALIASES = _aliases("bert", BERT_MLM_HEAD), _aliases("roberta", ROBERTA_MLM_HEAD)

BERT = Architecture(
    "BertForMaskedLM", "bert", lambda config: bert_model(config, mlm_head=True), bert_config, _BERT_WEIGHT_MAPS,
    "bert.",
    UNUSED_WEIGHTS, _BERT_ALIASES, _adjust_to_weights("bert"),
)  # fmt: skip

BERT_PRETRAINING = Architecture(
    "BertForPreTraining", "bert", lambda config: bert_model(config, mlm_head=True, nsp_head=True), bert_config,
    _BERT_WEIGHT_MAPS,
    "bert.", UNUSED_WEIGHTS, _BERT_ALIASES, _adjust_to_weights("bert"),
)  # fmt: skip

BERT_TRUNK = Architecture(
    "BertModel",
    "bert",
    bert_model,
    bert_config,
    _BERT_WEIGHT_MAPS,
    "bert.",
    OTHER_HEADS,
    adjust_to_weights=_adjust_to_weights("bert"),
    trunk_only=True,
)

ROBERTA = Architecture(
    "RobertaForMaskedLM", "roberta", lambda config: roberta_model(config, mlm_head=True), roberta_config,
    _ROBERTA_WEIGHT_MAPS,
    "roberta.", UNUSED_WEIGHTS, _ROBERTA_ALIASES, _adjust_to_weights("roberta"),
)  # fmt: skip

ROBERTA_TRUNK = Architecture(
    "RobertaModel", "roberta", roberta_model, roberta_config, _ROBERTA_WEIGHT_MAPS, "roberta.", OTHER_HEADS,
    adjust_to_weights=_adjust_to_weights("roberta"), trunk_only=True,
)  # fmt: skip

HeadClass = type[TextClassifier] | type[TokenClassifier]


def label_names(config: HFConfig) -> tuple[str, ...]:
    """The names of the labels, in the order of their ids. Raises UserError where the ids are not 0, 1, ..."""
    named = config.get("id2label")
    if named is None:
        named = {str(number): f"LABEL_{number}" for number in range(config.get("num_labels", 2))}
    if sorted(named, key=int) != [str(number) for number in range(len(named))]:
        raise UserError(f"config.json has id2label with the ids {', '.join(named)}, expected 0 to {len(named) - 1}")
    return tuple(str(named[str(number)]) for number in range(len(named)))


def _head_model(head: HeadClass, read: Callable[[HFConfig], Encoder]) -> Callable[[HFConfig], Any]:
    def model(config: HFConfig) -> Any:
        if config.get("problem_type") == "multi_label_classification":
            raise UserError("config.json tells any number of labels of a text (problem_type); jaxlm: one of them")
        dropout = config.get("classifier_dropout")
        dropout = config.get("hidden_dropout_prob", 0.1) if dropout is None else dropout
        return head(read(config), num_labels=len(label_names(config)), dropout=dropout)

    return model


def _config_with_head(trunk_config: Callable[[Encoder], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    return lambda model: {
        **trunk_config(model.model),
        "num_labels": model.num_labels,
        "classifier_dropout": model.dropout,
    }


def _head_table(kind: str, *maps: tuple[str, str]) -> Callable[[Any], list[WeightMap]]:
    """The trunk under its head, and the maps of the head: (theirs, ours)."""

    def table(model: Any) -> list[WeightMap]:
        below = [replace(one, paths=tuple(f"model/{path}" for path in one.paths)) for one in trunk_weight_maps(kind)]
        return below + sum((map_linear(theirs, ours) for theirs, ours in maps), [])

    return table


def _head_architecture(hf_class: str, model_type: str, head: HeadClass, *maps: tuple[str, str]) -> Architecture:
    read, own = (bert_model, bert_config) if model_type == "bert" else (roberta_model, roberta_config)
    return Architecture(
        hf_class, model_type, _head_model(head, read), _config_with_head(own), _head_table(model_type, *maps),
        f"{model_type}.", OTHER_HEADS
    )  # fmt: skip


CLASSIFIER_HEAD = ("classifier", "head")

HEAD_ARCHITECTURES = (
    _head_architecture("BertForSequenceClassification", "bert", TextClassifier, ("bert.pooler.dense", "pooler"),
    CLASSIFIER_HEAD),
    _head_architecture(
        "RobertaForSequenceClassification", "roberta", TextClassifier, ("classifier.dense", "pooler"),
        ("classifier.out_proj", "head"),
    ),
    _head_architecture("BertForTokenClassification", "bert", TokenClassifier, CLASSIFIER_HEAD),
    _head_architecture("RobertaForTokenClassification", "roberta", TokenClassifier, CLASSIFIER_HEAD),
)  # fmt: skip
