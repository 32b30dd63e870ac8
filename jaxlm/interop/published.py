"""A published model as a workdir, which `generate`, `predict` and `score` use as any other; and a workdir published."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxlm import workdir
from jaxlm.checkpoint import Checkpoints
from jaxlm.data.corpus import ParallelFiles
from jaxlm.data.plain import TextFile
from jaxlm.data.published import FastTokenizer, Published, PublishedPieces
from jaxlm.data.vocabulary import BOS, EOS, PAD, Tokenizer
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.interop.folder import read_config
from jaxlm.interop.huggingface import family_of, load, save
from jaxlm.models.encoder import Encoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.renumbered import Renumbered
from jaxlm.tasks.embedding import Reading
from jaxlm.tasks.language import LanguageModelling
from jaxlm.tasks.translation import Translation
from jaxlm.train.state import TrainState
from jaxlm.workdir import KEPT

BESIDE = ("*.json", "*.model", "*.spm", "merges.txt")
PIECES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


def import_folder(folder: Path, target: Path, **how: Any) -> Experiment:
    """Make a workdir of a folder that `save_pretrained` wrote; `how` sets fields of the model, as in dtype="bfloat16".

    Raises UserError where the folder cannot be read, or where the workdir is not a new one.
    """
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty: choose another --workdir")
    model, params, config = load(folder, **how)
    tokenizer = read_tokenizer(folder, config, model.vocab)
    special: tuple = _marks(folder, tokenizer) if isinstance(model, Encoder) else ()
    special = special or _special(config, isinstance(model, EncoderDecoder))
    named, task = Renumbered(model, *special), _task(model)
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
        checkpoints.save(1, TrainState(jnp.int32(1), {"model": params}, ()), {})
        checkpoints.wait()
    return experiment


def export_folder(source: Path, folder: Path, dtype: str | None = None) -> list[str]:
    """Write the model of a workdir as `save_pretrained` does; the names of the files. Raises UserError if none can be.

    A workdir that was imported gives back the files that came with the model; of any other the tokenizer stays behind.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose another folder")
    trained = workdir.load(source)
    model, params = trained.experiment.model, trained.params
    config: dict[str, Any] = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    if isinstance(model, Renumbered):
        model, params = model.model, params["model"]
        config = read_config(source / KEPT) if (source / KEPT).is_dir() else {}
    elif isinstance(model, EncoderDecoder):
        config["decoder_start_token_id"] = BOS
    family_of(model)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((source / KEPT).glob("*")):
        shutil.copyfile(path, folder / path.name)
    save(folder, model, params, config, dtype)
    return sorted(path.name for path in folder.iterdir())


def read_tokenizer(folder: Path, config: Mapping[str, Any], ids: int) -> Tokenizer:
    """The tokenizer of a folder: Marian's pair of SentencePiece models, `tokenizer.json`, or one SentencePiece model.

    Raises UserError where there is none.
    """
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


def _marks(folder: Path, tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Their ids of what begins a text of an encoder, of what ends it, and of what has no piece."""
    said: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            said |= json.loads((folder / name).read_text(encoding="utf-8"))
    found = []
    for role, usual in (("cls_token", "[CLS]"), ("sep_token", "[SEP]"), ("unk_token", "[UNK]")):
        piece = said.get(role) or usual
        piece = piece["content"] if isinstance(piece, dict) else piece
        number = tokenizer.id_of(piece) if isinstance(tokenizer, FastTokenizer) else None
        if number is None:
            raise UserError(f"{folder} has no tokenizer.json with the {role} {piece!r}: `save_pretrained` writes one")
        found.append(number)
    return found[0], found[1], found[2]


def _task(model: Any) -> Any:
    if isinstance(model, Encoder):
        return Reading()
    names = ("train", "valid", "test")
    if isinstance(model, EncoderDecoder):
        pairs = [ParallelFiles(f"{name}.source", f"{name}.target") for name in names]
        return Translation(pairs[0], pairs[1], pairs[2])
    texts = [TextFile(f"{name}.txt") for name in names]
    return LanguageModelling(texts[0], texts[1], texts[2], windows=None)
