"""BERT and RoBERTa with a head for labels, of a text or of each token: what fine-tuning makes of an encoder.

BertForSequenceClassification     W tanh(U x_0 + d) + e, the pooler and the classifier
RobertaForSequenceClassification  the same, both in its classifier
...ForTokenClassification         W x_s + e at every position

A number (one label) is the same head. No table has other heads: choices, pairs in both orders, language models.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jaxlm.errors import UserError
from jaxlm.interop.correspondence import Entry
from jaxlm.interop.encoder_families import (
    OTHER_HEADS,
    bert_config,
    bert_model,
    roberta_config,
    roberta_model,
    trunk,
)
from jaxlm.interop.family import Config, Family, linear
from jaxlm.models.encoder import Encoder
from jaxlm.models.headed import TextClassifier, TokenClassifier

Head = type[TextClassifier] | type[TokenClassifier]


def label_names(config: Config) -> tuple[str, ...]:
    """The names of the labels, in the order of their ids. Raises UserError where the ids are not 0, 1, ..."""
    named = config.get("id2label")
    if named is None:
        named = {str(number): f"LABEL_{number}" for number in range(config.get("num_labels", 2))}
    if sorted(named, key=int) != [str(number) for number in range(len(named))]:
        raise UserError(f"config.json has id2label with the ids {', '.join(named)}, expected 0 to {len(named) - 1}")
    return tuple(str(named[str(number)]) for number in range(len(named)))


def _model(head: Head, read: Callable[[Config], Encoder]) -> Callable[[Config], Any]:
    def model(config: Config) -> Any:
        if config.get("problem_type") == "multi_label_classification":
            raise UserError("config.json tells any number of labels of a text (problem_type); jaxlm: one of them")
        dropout = config.get("classifier_dropout")
        dropout = config.get("hidden_dropout_prob", 0.1) if dropout is None else dropout
        return head(read(config), labels=len(label_names(config)), dropout=dropout)

    return model


def _config(own: Callable[[Encoder], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    return lambda model: {**own(model.model), "num_labels": model.labels, "classifier_dropout": model.dropout}


def _table(kind: str, *maps: tuple[str, str]) -> Callable[[Any], list[Entry]]:
    """The trunk under its head, and the maps of the head: (theirs, ours)."""

    def table(model: Any) -> list[Entry]:
        below = [replace(one, ours=tuple(f"model/{path}" for path in one.ours)) for one in trunk(kind)]
        return below + sum((linear(theirs, ours) for theirs, ours in maps), [])

    return table


def _family(architecture: str, kind: str, head: Head, *maps: tuple[str, str]) -> Family:
    read, own = (bert_model, bert_config) if kind == "bert" else (roberta_model, roberta_config)
    return Family(
        architecture, kind, _model(head, read), _config(own), _table(kind, *maps), f"{kind}.", OTHER_HEADS
    )  # fmt: skip


CLASSIFIER = ("classifier", "head")
HEADED = (
    _family("BertForSequenceClassification", "bert", TextClassifier, ("bert.pooler.dense", "pooler"), CLASSIFIER),
    _family(
        "RobertaForSequenceClassification", "roberta", TextClassifier, ("classifier.dense", "pooler"),
        ("classifier.out_proj", "head"),
    ),
    _family("BertForTokenClassification", "bert", TokenClassifier, CLASSIFIER),
    _family("RobertaForTokenClassification", "roberta", TokenClassifier, CLASSIFIER),
)  # fmt: skip
