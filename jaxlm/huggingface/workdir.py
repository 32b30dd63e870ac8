"""Import of a published model into a workdir, and export of the model of a workdir.

The task of an imported model names files of the user in `$JAXLM_DATA`: train.txt, valid.txt and test.txt, or for pairs
train.source, train.target and so on. `predict`, `generate` and `score` need none of them.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxlm.data.batching.sequence_format import SequenceFormat
from jaxlm.data.pretraining.masked_lm import MaskedLMRows
from jaxlm.data.sources.parallel import ParallelFiles
from jaxlm.data.sources.text import TextFile
from jaxlm.data.tokenizers.loading import PretrainedTokenizer
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.filesystem import create_folder, write_atomic
from jaxlm.huggingface.checkpoint_folder import published_file, read_config
from jaxlm.huggingface.convert import find_architecture, load_pretrained, read_array_dtypes, save_pretrained
from jaxlm.huggingface.encoders import label_names
from jaxlm.huggingface.generation_config import check_ids, read_generation_config, with_generation_defaults
from jaxlm.huggingface.gguf_model import unpack_gguf
from jaxlm.huggingface.tokenizer_files import (
    ModelKind,
    find_mask_token,
    read_chat_template,
    read_tokenizer,
    start_of_chat,
)
from jaxlm.json_files import read_json
from jaxlm.metrics.classification import forbidden_transitions
from jaxlm.models.encoder import Encoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.finetune_heads import FineTunable, TokenClassifier, is_encoder
from jaxlm.models.properties import max_input_positions
from jaxlm.tasks.base import NoTask, Task
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.language_modeling import LanguageModeling
from jaxlm.tasks.masked_lm import MaskedLanguageModeling
from jaxlm.tasks.regression import TextRegression
from jaxlm.tasks.supervised import LabelTask
from jaxlm.tasks.tagging import Tagging
from jaxlm.tasks.translation import Translation
from jaxlm.workdir import Workdir

SPLITS = ("train", "valid", "test")

DEFAULT_ROW_LENGTH = 128
"""Positions of the rows on which an imported masked language model is evaluated, if it has that many."""


def task_for_model(model: Any, config: Mapping[str, Any], mask_token: str) -> Task:
    """The task of an imported model; `mask_token` is "" if the tokenizer has none. Raises UserError for odd labels."""
    texts: dict[str, Any] = {split: TextFile(f"{split}.txt") for split in SPLITS}
    pairs: dict[str, Any] = {split: ParallelFiles(f"{split}.source", f"{split}.target") for split in SPLITS}
    if isinstance(model, FineTunable):
        separators = 2 if config.get("model_type") == "roberta" else 1  # RoBERTa puts two between the texts of a pair
        rows = SequenceFormat(num_separators=separators, max_length=max_input_positions(model) or DEFAULT_ROW_LENGTH)
        labels = label_names(config)
        if isinstance(model, TokenClassifier):
            return Tagging(**pairs, sequence_format=rows, labels=labels, iob2_spans=_are_span_labels(labels))
        if model.num_labels == 1:
            return TextRegression(**pairs, sequence_format=rows, min_value=0.0, max_value=1.0)
        return Classification(**pairs, sequence_format=rows, labels=labels)
    if isinstance(model, Encoder) and not (model.mlm_head and mask_token):
        return NoTask()
    if isinstance(model, Encoder):
        length = min(DEFAULT_ROW_LENGTH, max_input_positions(model) or DEFAULT_ROW_LENGTH)
        return MaskedLanguageModeling(**texts, eval_batching=MaskedLMRows(length=length), mask_token=mask_token)
    if isinstance(model, EncoderDecoder):
        return Translation(**pairs)
    return LanguageModeling(**texts, windows=None)


def label_config(task: Task) -> dict[str, Any]:
    """The entries of config.json for the labels of a head; none for a task without labels."""
    if isinstance(task, LabelTask):
        names, kind = task.labels, "single_label_classification" if isinstance(task, Classification) else None
    elif isinstance(task, TextRegression):
        names, kind = ("LABEL_0",), "regression"
    else:
        return {}
    ids = dict(enumerate(names))
    return {"id2label": {str(i): name for i, name in ids.items()}, "label2id": {name: i for i, name in ids.items()},
            "problem_type": kind}  # fmt: skip


def _are_span_labels(names: tuple[str, ...]) -> bool:
    try:
        forbidden_transitions(names)
    except UserError:
        return False
    return True


DTYPES_FILE = ".dtypes.json"
"""The dtype of each imported array, in the folder of the files that came with a model."""

SIDE_FILES = ("*.json", "*.jinja", "*.model", "*.spm", "merges.txt")


def import_model(path: Path, new_workdir: Path, **model_fields: Any) -> Experiment:
    """Make a workdir of a GGUF file, or of a folder that `save_pretrained` wrote. See `import_folder`."""
    if not path.exists():
        raise UserError(f"{path} does not exist: name a GGUF file, or a folder that `save_pretrained` wrote")
    if not path.is_file():
        return import_folder(path, new_workdir, **model_fields)
    Workdir(new_workdir).check_empty()
    with unpack_gguf(path) as (folder, arrays):
        return import_folder(folder, new_workdir, arrays, **model_fields)


def import_folder(
    folder: Path, new_workdir: Path, arrays: Mapping[str, Any] | None = None, **model_fields: Any
) -> Experiment:
    """Make a workdir of a folder that `save_pretrained` wrote. `model_fields` override fields of the model.

    `arrays` replace those of the folder. Raises UserError if the folder cannot be read, or if the workdir is not empty.
    """
    Workdir(new_workdir).check_empty()
    model, params, config = load_pretrained(folder, arrays, **model_fields)
    kind: ModelKind = "encoder_decoder" if isinstance(model, EncoderDecoder) else "decoder"
    if isinstance(model, FineTunable) or is_encoder(model):
        kind = "encoder"
    generation = {} if kind == "encoder" else read_generation_config(folder, config)
    check_ids({**config, **generation}, model.vocab, folder)
    tokenizer = read_tokenizer(folder, {**config, **generation}, model.vocab, kind)
    task = task_for_model(model, config, find_mask_token(folder, tokenizer))
    task = with_generation_defaults(task, generation, folder)
    if isinstance(task, LanguageModeling) and (template := read_chat_template(folder, tokenizer)):
        task, tokenizer = replace(task, chat_template=template), start_of_chat(template, tokenizer)
    experiment = Experiment(
        task, model, PretrainedTokenizer(model.vocab), best_metric=f"valid/{(*task.metric_names, 'nll')[0]}", steps=1
    )
    side_files = _side_files(folder)
    with create_folder(new_workdir) as partial:
        target = Workdir(partial)
        target.create(experiment)
        tokenizer.save(target.tokenizer_folder)
        target.published_folder.mkdir()
        for path in side_files:
            shutil.copyfile(path, target.published_folder / path.name)
        if arrays is None:
            write_atomic(target.published_folder / DTYPES_FILE, json.dumps(read_array_dtypes(folder)) + "\n")
        target.save_once(experiment, params)
    return experiment


def _side_files(folder: Path) -> list[Path]:
    """The other files of a published model. Raises UserError if one of them is not a regular file of the folder."""
    names = {path.name for pattern in SIDE_FILES for path in folder.glob(pattern)} - {DTYPES_FILE}
    files = (published_file(folder, name) for name in sorted(names) if not name.endswith(".index.json"))
    return [path for path in files if path]


def export_folder(source_workdir: Path, folder: Path, dtype: str | None = None) -> list[str]:
    """Write the model of a workdir as `save_pretrained` does, and return the names of the files.

    The files that came with a published model are written again; the tokenizer of any other workdir is not exported.
    LoRA matrices are merged. config.json names the labels of a classifier; a regression head predicts
    (number - low) / (high - low) of its task (`jaxlm.tasks.regression`). Raises UserError if no architecture of
    Transformers fits the model.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose another folder")
    source = Workdir(source_workdir)
    trained = source.load()
    if trained.experiment.finetuning.adapters:
        raise UserError(
            f"{source_workdir} has adapters, which no architecture of Transformers has and no matrix can hold: "
            "train with --finetuning.lora instead, or use the workdir as it is"
        )
    model, special = trained.model, trained.tokenizer.special
    if source.published_folder.is_symlink():
        raise UserError(f"{source.published_folder} is a link: put the folder itself there if you trust its files")
    published_files, array_dtypes = _side_files(source.published_folder), None
    if published_file(source.published_folder, DTYPES_FILE):
        array_dtypes = read_json(source.published_folder / DTYPES_FILE, dict[str, str])
    if published_files:
        config = read_config(source.published_folder)
    else:
        config = {"bos_token_id": special.bos, "eos_token_id": special.eos, "pad_token_id": special.pad}
        config |= {"decoder_start_token_id": special.start} if isinstance(model, EncoderDecoder) else {}
    config |= label_config(trained.experiment.task) if isinstance(model, FineTunable) else {}
    find_architecture(model, config.get("model_type"))
    with create_folder(folder) as partial:
        for path in published_files:
            shutil.copyfile(path, partial / path.name)
        save_pretrained(partial, model, trained.params, config, dtype, array_dtypes=array_dtypes)
    return sorted(path.name for path in folder.iterdir())
