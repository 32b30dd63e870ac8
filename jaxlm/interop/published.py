"""A published model as a workdir, which `generate`, `predict` and `score` use as any other; and a workdir published."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxlm import workdir
from jaxlm.checkpoint import Checkpoints
from jaxlm.data.published import FastTokenizer, Published, PublishedPieces
from jaxlm.data.vocabulary import BOS, EOS, PAD, Tokenizer
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.interop.folder import read_config, read_json
from jaxlm.interop.huggingface import family_of, load, save
from jaxlm.interop.published_tasks import label_config, task_of
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.headed import Headed, reads_both_ways
from jaxlm.models.renumbered import Renumbered
from jaxlm.train.state import TrainState
from jaxlm.types import Params
from jaxlm.workdir import KEPT

BESIDE = ("*.json", "*.model", "*.spm", "merges.txt")
USUAL = {
    "cls_token": ("[CLS]", "<s>"), "sep_token": ("[SEP]", "</s>"), "unk_token": ("[UNK]", "<unk>"),
    "mask_token": ("[MASK]", "<mask>"),
}  # fmt: skip
"""The special pieces of BERT and RoBERTa, for folders that name none."""
PIECES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


def import_folder(folder: Path, target: Path, **how: Any) -> Experiment:
    """Make a workdir of a folder that `save_pretrained` wrote; `how` sets fields of the model, as in dtype="bfloat16".

    Raises UserError where the folder cannot be read, or where the workdir is not a new one.
    """
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty: choose another --workdir")
    model, params, config = load(folder, **how)
    tokenizer, said = read_tokenizer(folder, config, model.vocab), _said(folder)
    special: tuple = _marks(folder, said, tokenizer) if isinstance(model, Headed) or reads_both_ways(model) else ()
    special = special or _special(config, isinstance(model, EncoderDecoder))
    named, params = _wrapped(model, params, special)
    task = task_of(model, config, _piece(said, "mask_token", tokenizer)[0])
    experiment = Experiment(
        task=task, model=named, tokenizer=Published(named.vocab), best=f"valid/{(*task.figures, 'nll')[0]}", steps=1
    )
    workdir.claim(target, experiment)
    tokenizer.save(target / "tokenizer")
    (target / KEPT).mkdir()
    for path in sorted({path for pattern in BESIDE for path in folder.glob(pattern)}):
        if not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / KEPT / path.name)
    with Checkpoints(target / "checkpoints") as checkpoints:
        checkpoints.save(1, TrainState(jnp.int32(1), params, ()), {})
        checkpoints.wait()
    return experiment


def export_folder(source: Path, folder: Path, dtype: str | None = None) -> list[str]:
    """Write the model of a workdir as `save_pretrained` does; the names of the files. Raises UserError if none can be.

    A workdir that was imported gives back the files that came with the model; of any other the tokenizer stays behind.
    Low-rank maps are merged. A head for labels names them; one for numbers tells (number - low) / (high - low) of its
    task (`jaxlm.tasks.similarity`).
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose another folder")
    trained = workdir.load(source)
    if trained.experiment.tuning.adapters:
        raise UserError(
            f"{source} has adapters, which no architecture of Transformers has and no matrix can hold: train with "
            "--tuning.lora in their place, or use the workdir as it is"
        )
    model, params, published = _unwrapped(trained.experiment.model, trained.params)
    kept = sorted((source / KEPT).glob("*")) if published else []
    config: dict[str, Any] = {} if published else {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    if kept:
        config = read_config(source / KEPT)
    elif isinstance(model, EncoderDecoder) and not published:
        config["decoder_start_token_id"] = BOS
    config |= label_config(trained.experiment.task) if isinstance(model, Headed) else {}
    family_of(model, config.get("model_type"))
    folder.mkdir(parents=True, exist_ok=True)
    for path in kept:
        shutil.copyfile(path, folder / path.name)
    save(folder, model, params, config, dtype)
    return sorted(path.name for path in folder.iterdir())


def read_tokenizer(folder: Path, config: Mapping[str, Any], ids: int) -> Tokenizer:
    """The tokenizer of a folder: Marian's pair of SentencePiece models, `tokenizer.json`, or one SentencePiece model.

    The model may embed more ids than there are pieces. Raises UserError where it embeds less, and where there is none.
    """
    found = _tokenizer(folder, config, ids)
    if found.pieces_size > ids:
        raise UserError(
            f"{folder}: the tokenizer has {found.pieces_size} pieces, the model embeds {ids} (vocab_size): these files "
            "belong to two models; fetch both from one place"
        )
    return found


def _tokenizer(folder: Path, config: Mapping[str, Any], ids: int) -> FastTokenizer | PublishedPieces:
    if (folder / "source.spm").is_file() and (folder / "vocab.json").is_file():
        id_of = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        pieces = [""] * (max(id_of.values()) + 1)
        for piece, i in id_of.items():
            pieces[i] = piece
        source, target = ((folder / name).read_bytes() for name in ("source.spm", "target.spm"))
        return PublishedPieces(source, target, ids, tuple(pieces), id_of.get("<unk>", 0))
    if (folder / "tokenizer.json").is_file():
        return FastTokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"), ids)
    for name in PIECES:
        if (folder / name).is_file():
            model = (folder / name).read_bytes()
            return PublishedPieces(model, model, ids)
    raise UserError(
        f"{folder} has no tokenizer that jaxlm reads: expected tokenizer.json, source.spm with target.spm and "
        f"vocab.json, or one of {', '.join(PIECES)}; `tokenizer.save_pretrained(folder)` writes one"
    )


def _special(config: Mapping[str, Any], answers: bool) -> tuple[int, int, int, tuple[int, ...]]:
    """Their ids of what we call BOS, EOS and UNK, and those that must not be said."""
    ends = config.get("eos_token_id")
    eos = ends[0] if isinstance(ends, list) else ends
    begins = config.get("decoder_start_token_id") if answers else config.get("bos_token_id")
    begins = eos if begins is None and not answers else begins
    if eos is None or begins is None:
        missing = "eos_token_id" if eos is None else "decoder_start_token_id"
        raise UserError(f"config.json has no {missing}, and without it no text begins or ends: add the entry")
    banned = [words[0] for words in config.get("bad_words_ids") or () if len(words) == 1]
    if answers and begins != eos:
        banned.append(begins)
    unknown = config.get("unk_token_id")
    if unknown is None:
        unknown = {"t5": 2, "marian": 1, "llama": 0, "mistral": 0}.get(config.get("model_type", ""), eos)
    return begins, eos, unknown, tuple(sorted(set(banned)))


def _said(folder: Path) -> dict[str, Any]:
    """What the files beside the tokenizer say of its special pieces."""
    said: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            said |= read_json(folder, name, "which names the special pieces")
    return said


def _piece(said: Mapping[str, Any], role: str, tokenizer: Tokenizer) -> tuple[str, int | None]:
    """The special piece of a role and its id; ("", None) where the tokenizer has none."""
    named = said.get(role)
    pieces = USUAL[role] if named is None else (named["content"] if isinstance(named, dict) else named,)
    if isinstance(tokenizer, FastTokenizer):
        for piece in pieces:
            if (number := tokenizer.id_of(piece)) is not None:
                return piece, number
    return "", None


def _marks(folder: Path, said: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Their ids of what begins a text of an encoder, of what ends it, and of what has no piece."""
    found = []
    for role in ("cls_token", "sep_token", "unk_token"):
        _, number = _piece(said, role, tokenizer)
        if number is None:
            piece = said.get(role) or USUAL[role][0]
            raise UserError(f"{folder} has no tokenizer.json with the {role} {piece!r}: `save_pretrained` writes one")
        found.append(number)
    return tuple(found)


def _wrapped(model: Any, params: Params, special: tuple) -> tuple[Any, Params]:
    """A model under our ids, with its parameters; of a head, the model that it stands on."""
    if not isinstance(model, Headed):
        return Renumbered(model, *special), {"model": params}
    inner, below = _wrapped(model.model, params["model"], special)
    return model.clone(model=inner, parent=None), {**params, "model": below}


def _unwrapped(model: Any, params: Params) -> tuple[Any, Params, bool]:
    """The model under its own ids, with its parameters, and whether those are others than ours."""
    if isinstance(model, Renumbered):
        return model.model, params["model"], True
    if not isinstance(model, Headed):
        return model, params, False
    inner, below, published = _unwrapped(model.model, params["model"])
    return model.clone(model=inner, parent=None), {**params, "model": below}, published
