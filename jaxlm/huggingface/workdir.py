"""A published model as a workdir, which `generate`, `predict` and `score` use as any other; and a workdir published.

What a published model is asked, as the task of its workdir; and the labels of a task, as its config.json has them.

The files that the tasks name are those of the user: train.txt, valid.txt, test.txt, or with pairs train.source and
train.target and so on, in `$JAXLM_DATA`. `predict` and `generate` need none of them.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.data.batching.sequence_format import SequenceFormat
from jaxlm.data.pretraining.masked_lm import MaskedLMRows
from jaxlm.data.sources.parallel import ParallelFiles
from jaxlm.data.sources.text import TextFile
from jaxlm.data.tokenizers.base import BOS, EOS, PAD, Tokenizer
from jaxlm.data.tokenizers.pretrained import FastTokenizer, PretrainedSentencePiece, PretrainedTokenizer
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.huggingface.checkpoint_folder import read_config, read_json
from jaxlm.huggingface.convert import find_architecture, load_pretrained, save_pretrained
from jaxlm.huggingface.encoders import label_names
from jaxlm.metrics.spans import forbidden_transitions
from jaxlm.models.encoder import Encoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.finetune_heads import FineTunable, TextClassifier, TokenClassifier, is_encoder
from jaxlm.models.properties import max_input_positions
from jaxlm.models.special_ids import Renumbered
from jaxlm.tasks.base import Task
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.embedding_only import NoTask
from jaxlm.tasks.language_modeling import LanguageModeling
from jaxlm.tasks.masked_lm import MaskedLanguageModeling
from jaxlm.tasks.regression import TextRegression
from jaxlm.tasks.supervised import LabelTask
from jaxlm.tasks.tagging import Tagging
from jaxlm.tasks.translation import Translation
from jaxlm.types import Params
from jaxlm.workdir import Workdir

SPLITS = ("train", "valid", "test")

DEFAULT_ROW_LENGTH = 128
"""Positions of the rows on which an imported model that fills gaps is judged, where it has as many."""


def task_for_model(model: Any, config: Mapping[str, Any], mask_token: str) -> Task:
    """The task of an imported model; `mask`: the piece that stands for a gap, "" where the tokenizer has none.

    Raises UserError where the labels of the config cannot be those of a task.
    """
    texts = [TextFile(f"{split}.txt") for split in SPLITS]
    pairs = [ParallelFiles(f"{split}.source", f"{split}.target") for split in SPLITS]
    if isinstance(model, TextClassifier | TokenClassifier):
        return _supervised_task(model, config, pairs)
    if isinstance(model, Encoder):
        if not (model.mlm_head and mask_token):
            return NoTask()
        rows = MaskedLMRows(length=min(DEFAULT_ROW_LENGTH, max_input_positions(model) or DEFAULT_ROW_LENGTH))
        return MaskedLanguageModeling(texts[0], texts[1], texts[2], eval_batching=rows, mask_token=mask_token)
    if isinstance(model, EncoderDecoder):
        return Translation(pairs[0], pairs[1], pairs[2])
    return LanguageModeling(texts[0], texts[1], texts[2], windows=None)


def label_config(task: Task) -> dict[str, Any]:
    """The entries of config.json that name what a head says; none for a task without labels."""
    if isinstance(task, LabelTask):
        names, kind = task.labels, "single_label_classification" if isinstance(task, Classification) else None
    elif isinstance(task, TextRegression):
        names, kind = ("LABEL_0",), "regression"
    else:
        return {}
    ids = dict(enumerate(names))
    return {"id2label": {str(i): name for i, name in ids.items()}, "label2id": {name: i for i, name in ids.items()},
            "problem_type": kind}  # fmt: skip


def _supervised_task(model: Any, config: Mapping[str, Any], pairs: list[ParallelFiles]) -> Task:
    """RoBERTa stands two marks between the texts of a pair; its positions do not begin at 0."""
    separators = 2 if config.get("model_type") == "roberta" else 1
    layout, names = (
        SequenceFormat(num_separators=separators, max_length=max_input_positions(model) or DEFAULT_ROW_LENGTH),
        label_names(config),
    )
    if isinstance(model, TokenClassifier):
        return Tagging(
            pairs[0], pairs[1], pairs[2], sequence_format=layout, labels=names, iob2_spans=_are_span_labels(names)
        )
    if model.num_labels == 1:
        return TextRegression(pairs[0], pairs[1], pairs[2], sequence_format=layout, min_value=0.0, max_value=1.0)
    return Classification(pairs[0], pairs[1], pairs[2], sequence_format=layout, labels=names)


def _are_span_labels(names: tuple[str, ...]) -> bool:
    try:
        forbidden_transitions(names)
    except UserError:
        return False
    return True


SIDE_FILES = ("*.json", "*.model", "*.spm", "merges.txt")

DEFAULT_SPECIALS = {
    "cls_token": ("[CLS]", "<s>"), "sep_token": ("[SEP]", "</s>"), "unk_token": ("[UNK]", "<unk>"),
    "mask_token": ("[MASK]", "<mask>"),
}  # fmt: skip
"""The special pieces of BERT and RoBERTa, for folders that name none."""

SENTENCEPIECE_FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


def import_folder(folder: Path, new_workdir: Path, **model_fields: Any) -> Experiment:
    """Make a workdir of a folder that `save_pretrained` wrote; `how` sets fields of the model, as in dtype="bfloat16".

    Raises UserError where the folder cannot be read, or where the workdir is not a new one.
    """
    target = Workdir(new_workdir)
    target.check_empty()
    model, params, config = load_pretrained(folder, **model_fields)
    tokenizer, said = read_tokenizer(folder, config, model.vocab), _special_tokens_map(folder)
    special: tuple = (
        _encoder_special_ids(folder, said, tokenizer) if isinstance(model, FineTunable) or is_encoder(model) else ()
    )
    special = special or _generation_special_ids(config, isinstance(model, EncoderDecoder))
    named, params = _wrap_special_ids(model, params, special)
    task = task_for_model(model, config, _special_token(said, "mask_token", tokenizer)[0])
    experiment = Experiment(
        task=task,
        model=named,
        tokenizer=PretrainedTokenizer(named.vocab),
        best_metric=f"valid/{(*task.metric_names, 'nll')[0]}",
        steps=1,
    )
    target.create(experiment)
    tokenizer.save(target.tokenizer_folder)
    target.published_folder.mkdir()
    for path in sorted({path for pattern in SIDE_FILES for path in folder.glob(pattern)}):
        if not path.name.endswith(".index.json"):
            shutil.copyfile(path, target.published_folder / path.name)
    target.save_once(experiment, params)
    return experiment


def export_folder(source_workdir: Path, folder: Path, dtype: str | None = None) -> list[str]:
    """Write the model of a workdir as `save_pretrained` does; the names of the files. Raises UserError if none can be.

    A workdir that was imported gives back the files that came with the model; of any other the tokenizer stays behind.
    Low-rank maps are merged. A head for labels names them; one for numbers tells (number - low) / (high - low) of its
    task (`jaxlm.tasks.regression`).
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose another folder")
    source = Workdir(source_workdir)
    trained = source.load()
    if trained.experiment.finetuning.adapters:
        raise UserError(
            f"{source_workdir} has adapters, which no architecture of Transformers has and no matrix can hold: "
            "train with "
            "--finetuning.lora in their place, or use the workdir as it is"
        )
    model, params, published = _unwrap_special_ids(trained.model, trained.params)
    kept = sorted(source.published_folder.glob("*")) if published else []
    config: dict[str, Any] = {} if published else {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    if kept:
        config = read_config(source.published_folder)
    elif isinstance(model, EncoderDecoder) and not published:
        config["decoder_start_token_id"] = BOS
    config |= label_config(trained.experiment.task) if isinstance(model, FineTunable) else {}
    find_architecture(model, config.get("model_type"))
    folder.mkdir(parents=True, exist_ok=True)
    for path in kept:
        shutil.copyfile(path, folder / path.name)
    save_pretrained(folder, model, params, config, dtype)
    return sorted(path.name for path in folder.iterdir())


def read_tokenizer(folder: Path, config: Mapping[str, Any], vocab_size: int) -> Tokenizer:
    """The tokenizer of a folder: Marian's pair of SentencePiece models, `tokenizer.json`, or one SentencePiece model.

    The model may embed more ids than there are pieces. Raises UserError where it embeds less, and where there is none.
    """
    found = _load_tokenizer(folder, config, vocab_size)
    if found.num_pieces > vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {found.num_pieces} pieces, the model embeds {vocab_size} (vocab_size): "
            "these files "
            "belong to two models; fetch both from one place"
        )
    return found


def _load_tokenizer(
    folder: Path, config: Mapping[str, Any], vocab_size: int
) -> FastTokenizer | PretrainedSentencePiece:
    if (folder / "source.spm").is_file() and (folder / "vocab.json").is_file():
        id_of = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        pieces = [""] * (max(id_of.values()) + 1)
        for piece, i in id_of.items():
            pieces[i] = piece
        source, target = ((folder / name).read_bytes() for name in ("source.spm", "target.spm"))
        return PretrainedSentencePiece(source, target, vocab_size, tuple(pieces), id_of.get("<unk>", 0))
    if (folder / "tokenizer.json").is_file():
        return FastTokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"), vocab_size)
    for name in SENTENCEPIECE_FILES:
        if (folder / name).is_file():
            model = (folder / name).read_bytes()
            return PretrainedSentencePiece(model, model, vocab_size)
    raise UserError(
        f"{folder} has no tokenizer that jaxlm reads: expected tokenizer.json, source.spm with target.spm and "
        f"vocab.json, or one of {', '.join(SENTENCEPIECE_FILES)}; `tokenizer.save_pretrained(folder)` writes one"
    )


def _generation_special_ids(
    config: Mapping[str, Any], is_encoder_decoder: bool
) -> tuple[int, int, int, tuple[int, ...]]:
    """Their ids of what we call BOS, EOS and UNK, and those that must not be said."""
    ends = config.get("eos_token_id")
    eos = ends[0] if isinstance(ends, list) else ends
    begins = config.get("decoder_start_token_id") if is_encoder_decoder else config.get("bos_token_id")
    begins = eos if begins is None and not is_encoder_decoder else begins
    if eos is None or begins is None:
        missing = "eos_token_id" if eos is None else "decoder_start_token_id"
        raise UserError(f"config.json has no {missing}, and without it no text begins or ends: add the entry")
    banned = [words[0] for words in config.get("bad_words_ids") or () if len(words) == 1]
    if is_encoder_decoder and begins != eos:
        banned.append(begins)
    unknown = config.get("unk_token_id")
    if unknown is None:
        unknown = {"t5": 2, "marian": 1, "llama": 0, "mistral": 0}.get(config.get("model_type", ""), eos)
    return begins, eos, unknown, tuple(sorted(set(banned)))


def _special_tokens_map(folder: Path) -> dict[str, Any]:
    """What the files beside the tokenizer say of its special pieces."""
    said: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            said |= read_json(folder, name, "which names the special pieces")
    return said


def _special_token(special_tokens_map: Mapping[str, Any], role: str, tokenizer: Tokenizer) -> tuple[str, int | None]:
    """The special piece of a role and its id; ("", None) where the tokenizer has none."""
    named = special_tokens_map.get(role)
    pieces = DEFAULT_SPECIALS[role] if named is None else (named["content"] if isinstance(named, dict) else named,)
    if isinstance(tokenizer, FastTokenizer):
        for piece in pieces:
            if (number := tokenizer.token_to_id(piece)) is not None:
                return piece, number
    return "", None


def _encoder_special_ids(folder: Path, special_tokens_map: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Their ids of what begins a text of an encoder, of what ends it, and of what has no piece."""
    found = []
    for role in ("cls_token", "sep_token", "unk_token"):
        _, number = _special_token(special_tokens_map, role, tokenizer)
        if number is None:
            piece = special_tokens_map.get(role) or DEFAULT_SPECIALS[role][0]
            raise UserError(f"{folder} has no tokenizer.json with the {role} {piece!r}: `save_pretrained` writes one")
        found.append(number)
    return tuple(found)


def _wrap_special_ids(model: Any, params: Params, special_ids: tuple) -> tuple[Any, Params]:
    """A model under our ids, with its parameters; of a head, the model that it stands on."""
    if not isinstance(model, FineTunable):
        return Renumbered(model, *special_ids), {"model": params}
    inner, below = _wrap_special_ids(model.model, params["model"], special_ids)
    return model.clone(model=inner, parent=None), {**params, "model": below}


def _unwrap_special_ids(model: Any, params: Params) -> tuple[Any, Params, bool]:
    """The model under its own ids, with its parameters, and whether those are others than ours."""
    if isinstance(model, Renumbered):
        return model.model, params["model"], True
    if not isinstance(model, FineTunable):
        return model, params, False
    inner, below, published = _unwrap_special_ids(model.model, params["model"])
    return model.clone(model=inner, parent=None), {**params, "model": below}, published
