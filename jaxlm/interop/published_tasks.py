"""What a published model is asked, as the task of its workdir; and the labels of a task, as its config.json has them.

The files that the tasks name are those of the user: train.txt, valid.txt, test.txt, or with pairs train.source and
train.target and so on, in `$JAXLM_DATA`. `predict` and `generate` need none of them.
"""

from collections.abc import Mapping
from typing import Any

from jaxlm.data.corpus import ParallelFiles
from jaxlm.data.layout import Marked
from jaxlm.data.masked_rows import MaskedRows
from jaxlm.data.plain import TextFile
from jaxlm.errors import UserError
from jaxlm.interop.encoder_heads import label_names
from jaxlm.models.encoder import Encoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.headed import TextClassifier, TokenClassifier
from jaxlm.models.reach import reach
from jaxlm.spans import forbidden_transitions
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.embedding import Reading
from jaxlm.tasks.labelling import Labelled
from jaxlm.tasks.language import LanguageModelling
from jaxlm.tasks.masked import MaskedLanguageModelling
from jaxlm.tasks.similarity import Similarity
from jaxlm.tasks.tagging import Tagging
from jaxlm.tasks.task import Task
from jaxlm.tasks.translation import Translation

SPLITS = ("train", "valid", "test")
ROW = 128
"""Positions of the rows on which an imported model that fills gaps is judged, where it has as many."""


def task_of(model: Any, config: Mapping[str, Any], mask: str) -> Task:
    """The task of an imported model; `mask`: the piece that stands for a gap, "" where the tokenizer has none.

    Raises UserError where the labels of the config cannot be those of a task.
    """
    texts = [TextFile(f"{split}.txt") for split in SPLITS]
    pairs = [ParallelFiles(f"{split}.source", f"{split}.target") for split in SPLITS]
    if isinstance(model, TextClassifier | TokenClassifier):
        return _labelling(model, config, pairs)
    if isinstance(model, Encoder):
        if not (model.head and mask):
            return Reading()
        rows = MaskedRows(length=min(ROW, reach(model) or ROW))
        return MaskedLanguageModelling(texts[0], texts[1], texts[2], rows=rows, mask=mask)
    if isinstance(model, EncoderDecoder):
        return Translation(pairs[0], pairs[1], pairs[2])
    return LanguageModelling(texts[0], texts[1], texts[2], windows=None)


def label_config(task: Task) -> dict[str, Any]:
    """The entries of config.json that name what a head says; none for a task without labels."""
    if isinstance(task, Labelled):
        names, kind = task.labels, "single_label_classification" if isinstance(task, Classification) else None
    elif isinstance(task, Similarity):
        names, kind = ("LABEL_0",), "regression"
    else:
        return {}
    ids = dict(enumerate(names))
    return {"id2label": {str(i): name for i, name in ids.items()}, "label2id": {name: i for i, name in ids.items()},
            "problem_type": kind}  # fmt: skip


def _labelling(model: Any, config: Mapping[str, Any], pairs: list[ParallelFiles]) -> Task:
    """RoBERTa stands two marks between the texts of a pair; its positions do not begin at 0."""
    separators = 2 if config.get("model_type") == "roberta" else 1
    layout, names = Marked(separators=separators, max_length=reach(model) or ROW), label_names(config)
    if isinstance(model, TokenClassifier):
        return Tagging(pairs[0], pairs[1], pairs[2], layout=layout, labels=names, spans=_are_spans(names))
    if model.labels == 1:
        return Similarity(pairs[0], pairs[1], pairs[2], layout=layout, low=0.0, high=1.0)
    return Classification(pairs[0], pairs[1], pairs[2], layout=layout, labels=names)


def _are_spans(names: tuple[str, ...]) -> bool:
    try:
        forbidden_transitions(names)
    except UserError:
        return False
    return True
