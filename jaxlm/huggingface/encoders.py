"""Encoder-only families, BERT and RoBERTa: with masked-LM and next-sentence heads, as a trunk, and with task heads.

Files of one architecture differ: that of BertForMaskedLM may hold the pooler and the next-sentence head too. What a
file holds is kept, so that it is written again and fine-tuning can start from it.

    BertForSequenceClassification     W tanh(U x_0 + d) + e, with `pooler` and `classifier`
    RobertaForSequenceClassification  the same, both in `classifier`
    ...ForTokenClassification         W x_s + e at every position

Regression is the same head with one label. No architecture has other heads: multiple choice, pairs in both
orders, heads on language models.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from jaxlm.errors import UserError
from jaxlm.huggingface.architecture import (
    Architecture,
    ConfigTable,
    HFConfig,
    read_entry,
    read_fields,
    require_value,
    to_entries,
)
from jaxlm.huggingface.weight_map import WeightMap, map_attention, map_linear, map_norm
from jaxlm.models.encoder import Encoder
from jaxlm.models.finetune_heads import TextClassifier, TokenClassifier

ENCODER_STACK = "stack/layers"

BERT_PROJECTIONS = ("self.query", "self.key", "self.value", "output.dense")

NSP_HEAD = "cls.seq_relationship"

UNUSED_WEIGHTS = (r".*\.embeddings\.position_ids", r".*\.pooler\.dense\.(weight|bias)", r"cls\.seq_relationship\..*")
"""Buffers, and parts of an incomplete head: they are not written again."""

OTHER_HEADS = (*UNUSED_WEIGHTS, r"cls\..*", r"lm_head\..*")

HeadClass = type[TextClassifier] | type[TokenClassifier]


ENCODER_TABLE: ConfigTable = {
    "vocab_size": "vocab", "hidden_size": "width", "num_attention_heads": "heads", "intermediate_size": "hidden",
    "num_hidden_layers": "layers", "type_vocab_size": ("num_token_types", 2),
    "max_position_embeddings": ("max_length", 512), "layer_norm_eps": ("norm_epsilon", 1e-12),
    "hidden_act": ("activation", "gelu"), "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
}  # fmt: skip


def _trunk_model(config: HFConfig, model_type: str, **heads: Any) -> Encoder:
    require_value(config, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    require_value(config, tie_word_embeddings=True)
    fields = read_fields(config, ENCODER_TABLE) | {"mlm_head": False} | heads
    if model_type == "roberta":
        require_value(config, hidden_act="gelu")  # their masked-LM head uses it with every config
        pad_id = config.get("pad_token_id", 1)
        if type(pad_id) is not int or not 0 <= pad_id < fields["vocab"]:
            raise UserError(f"config.json has pad_token_id = {pad_id!r:.80}, expected an id: positions begin after it")
        fields["position_offset"] = pad_id + 1
    return Encoder(**fields)


def _trunk_config(model: Encoder, model_type: str) -> dict[str, Any]:
    position = {"pad_token_id": model.position_offset - 1} if model_type == "roberta" else {}
    return to_entries(model, ENCODER_TABLE) | position


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


def _adjust_to_weights(model: Encoder, names: Collection[str]) -> Encoder:
    """Give a model the pooler and the next-sentence head if the file holds both arrays of each."""
    model_type = "bert" if any(name.startswith("bert.") for name in names) else "roberta"
    pooler, next_sentence = (
        all(f"{name}.{part}" in names for part in ("weight", "bias"))
        for name in (f"{model_type}.pooler.dense", NSP_HEAD)
    )
    nsp_head = model.nsp_head or (model.mlm_head and pooler and next_sentence)
    return replace(model, nsp_head=nsp_head, add_pooling_layer=pooler and not nsp_head)


MLM_HEADS = {"bert": ("cls.predictions", "transform.dense", "transform.LayerNorm"),
             "roberta": ("lm_head", "dense", "layer_norm")}  # fmt: skip
"""The name of the masked-LM head, and those of its linear layer and layer norm below it."""


def _encoder(hf_class: str, model_type: str, trunk_only: bool = False, **heads: bool) -> Architecture:
    """The architecture of BERT or RoBERTa with these heads."""
    mlm_head, dense, layer_norm = MLM_HEADS[model_type]

    def weight_maps(model: Encoder) -> list[WeightMap]:
        entries = trunk_weight_maps(model_type)
        if model.add_pooling_layer or model.nsp_head:
            entries += map_linear(f"{model_type}.pooler.dense", "pooler")
        if model.mlm_head:
            entries += map_linear(f"{mlm_head}.{dense}", "transform")
            entries += map_norm(f"{mlm_head}.{layer_norm}", "transform_norm")
            entries.append(WeightMap(f"{mlm_head}.bias", ("output_bias",)))
        return entries + (map_linear(NSP_HEAD, "next_sentence") if model.nsp_head else [])

    def aliases(model: Encoder) -> dict[str, str]:
        return {
            f"{mlm_head}.decoder.weight": f"{model_type}.embeddings.word_embeddings.weight",
            f"{mlm_head}.decoder.bias": f"{mlm_head}.bias",
        }

    return Architecture(
        hf_class, model_type, lambda config: _trunk_model(config, model_type, **heads),
        lambda model: _trunk_config(model, model_type), weight_maps, f"{model_type}.",
        OTHER_HEADS if trunk_only else UNUSED_WEIGHTS, aliases, _adjust_to_weights, trunk_only,
    )  # fmt: skip


ENCODER_ARCHITECTURES = (
    _encoder("BertForMaskedLM", "bert", mlm_head=True), _encoder("RobertaForMaskedLM", "roberta", mlm_head=True),
    _encoder("BertForPreTraining", "bert", mlm_head=True, nsp_head=True),
    _encoder("BertModel", "bert", trunk_only=True), _encoder("RobertaModel", "roberta", trunk_only=True),
)  # fmt: skip


MAX_LABELS = 1_000_000


def label_names(config: HFConfig) -> tuple[str, ...]:
    """The names of the labels in the order of their ids. Raises UserError if the ids are not 0, 1, ..."""
    names = config.get("id2label")
    if names is None:
        names = {str(index): f"LABEL_{index}" for index in range(min(read_entry(config, "num_labels", 2), MAX_LABELS))}
    if not isinstance(names, dict) or not names or names.keys() != {str(index) for index in range(len(names))}:
        raise UserError(f"config.json has id2label = {names!r:.120}, expected names by the ids 0, 1, ...")
    return tuple(str(names[str(index)]) for index in range(len(names)))


def _head_architecture(hf_class: str, model_type: str, head: HeadClass, *linears: tuple[str, str]) -> Architecture:
    """A head on a trunk; `linears` are its linear layers: (name in the file, path of ours)."""

    def to_model(config: HFConfig) -> Any:
        if config.get("problem_type") == "multi_label_classification":
            raise UserError("config.json gives a text any number of labels (problem_type); jaxlm gives it one")
        kind = "regression" if len(label_names(config)) == 1 else "single_label_classification"
        if head is TextClassifier:
            require_value(config, problem_type=kind)
        dropout = read_entry(config, "classifier_dropout", read_entry(config, "hidden_dropout_prob", 0.1))
        return head(_trunk_model(config, model_type), num_labels=len(label_names(config)), dropout=dropout)

    def to_config(model: Any) -> dict[str, Any]:
        head_entries = {"num_labels": model.num_labels, "classifier_dropout": model.dropout}
        return _trunk_config(model.model, model_type) | head_entries

    def weight_maps(model: Any) -> list[WeightMap]:
        trunk = trunk_weight_maps(model_type)
        wrapped = [replace(entry, paths=tuple(f"model/{path}" for path in entry.paths)) for entry in trunk]
        return wrapped + sum((map_linear(name, path) for name, path in linears), [])

    return Architecture(hf_class, model_type, to_model, to_config, weight_maps, f"{model_type}.", OTHER_HEADS)


CLASSIFIER = ("classifier", "head")

HEAD_ARCHITECTURES = (
    _head_architecture(
        "BertForSequenceClassification", "bert", TextClassifier, ("bert.pooler.dense", "pooler"), CLASSIFIER
    ),
    _head_architecture(
        "RobertaForSequenceClassification", "roberta", TextClassifier, ("classifier.dense", "pooler"),
        ("classifier.out_proj", "head"),
    ),
    _head_architecture("BertForTokenClassification", "bert", TokenClassifier, CLASSIFIER),
    _head_architecture("RobertaForTokenClassification", "roberta", TokenClassifier, CLASSIFIER),
)  # fmt: skip
