"""Defaults of generation that come with a published model: generation_config.json, or else entries of config.json.

What Transformers does by default with such a model, `predict` and `generate` do too: end ids, suppressed and forced
tokens, beams, limits and sampling. What is not named there is as for any other model. An option that jaxlm does not
have is refused by its name.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from jaxlm.decode.beam_config import HUGGING_FACE, Beam, StoppingRule
from jaxlm.decode.logit_masks import LogitMasks
from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.huggingface.checkpoint_folder import CONFIG_FILE, FETCH_AGAIN, published_file
from jaxlm.inference.generate import GenerationDefaults
from jaxlm.inference.translate import Search
from jaxlm.json_files import check_type, read_json
from jaxlm.tasks.base import Task
from jaxlm.tasks.language_modeling import LanguageModeling
from jaxlm.tasks.translation import Translation

FILE_NAME = "generation_config.json"

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")

ID_ENTRIES = (
    *SPECIAL_IDS, "unk_token_id", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
    "begin_suppress_tokens", "bad_words_ids",
)  # fmt: skip

Ids = int | list[int]


class GenerationEntries(TypedDict, total=False):
    """The entries that jaxlm reads; null is the same as none."""

    bos_token_id: int
    eos_token_id: Ids
    pad_token_id: int
    decoder_start_token_id: int
    forced_bos_token_id: Ids
    forced_eos_token_id: Ids
    suppress_tokens: list[int]
    begin_suppress_tokens: list[int]
    bad_words_ids: list[list[int]]
    num_beams: int
    num_return_sequences: int
    early_stopping: bool | Literal["never"]
    length_penalty: float
    renormalize_logits: bool
    no_repeat_ngram_size: int
    min_length: int
    min_new_tokens: int
    max_length: int
    max_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


EARLY_STOPPING: dict[bool | str, StoppingRule] = {True: "full", False: "heuristic", "never": "exact"}
"""`early_stopping` as a stopping rule. Its "never" waits until no live hypothesis can enter the k finished ones, and
`exact` until none can enter the n that are returned: the results are the same."""

OFF: dict[str, Any] = {
    "num_beam_groups": 1, "diversity_penalty": 0, "penalty_alpha": 0, "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "guidance_scale": 1,
    "sequence_bias": {}, "exponential_decay_length_penalty": None, "constraints": [], "force_words_ids": [],
    "stop_strings": [], "forced_decoder_ids": [],
}  # fmt: skip
"""Options that jaxlm does not have, and the value that turns them off."""

TOP_K = 50
"""`top_k` of Transformers if it samples and the file does not say how many."""

DECODER_OFF = {"num_beams": 1, "min_length": 0, "forced_bos_token_id": None, "forced_eos_token_id": None}
"""The same for a model without a source, which has no beam search, and whose lengths count the prompt."""


def read_generation_config(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a folder; ids that generation_config.json does not name are those of config.json.

    Raises UserError for an entry of another type, and for an option that jaxlm does not have.
    """
    path, given = published_file(folder, FILE_NAME), dict(config)
    if path:
        given = {name: config.get(name) for name in SPECIAL_IDS}
        given |= {name: value for name, value in read_json(path, cure=FETCH_AGAIN).items() if value is not None}
    path = path or folder / CONFIG_FILE
    entries = {name: value for name, value in given.items() if value is not None}
    check_type(entries, GenerationEntries, str(path), FETCH_AGAIN)
    _check_off(path, entries, OFF)
    first = config.get("eos_token_id")  # the one that ends a text in training
    ends = entries.get("eos_token_id")
    if isinstance(ends, list) and first in ends:
        entries["eos_token_id"] = [first, *(i for i in ends if i != first)]
    return entries


def check_ids(entries: Mapping[str, Any], vocab_size: int, folder: Path) -> None:
    """Raises UserError for an id that the model does not have, for which JAX would read another. Padding may be -1."""
    for name in ID_ENTRIES:
        low = -1 if name == "pad_token_id" else 0
        if wrong := [i for i in _flatten(entries.get(name, [])) if i is not None and not low <= i < vocab_size]:
            raise UserError(
                f"{folder}: {name} has the id {wrong[0]}, the model has 0 to {vocab_size - 1}: {FETCH_AGAIN}"
            )


def _flatten(value: Any) -> list[Any]:
    return [item for part in value for item in _flatten(part)] if isinstance(value, list) else [value]


def _check_off(path: Path | str, entries: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    for name, off in options.items():
        if entries.get(name) not in (None, off):
            raise UserError(
                f"{path}: {name} = {entries[name]!r} is not supported: remove the entry, which is only a default"
            )


def with_generation_defaults(task: Task, entries: Mapping[str, Any], path: Path) -> Task:
    """The task with the defaults of `read_generation_config`, if it generates. Raises UserError for odd ones."""
    try:
        if isinstance(task, Translation):
            return replace(task, search=_search(entries))
        if isinstance(task, LanguageModeling):
            _check_off(FILE_NAME, entries, DECODER_OFF)
            return replace(task, generation=_generation(entries))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return task


def _ids(entries: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = entries.get(name, [])
    return tuple(value) if isinstance(value, list) else (value,)


def _search(entries: Mapping[str, Any]) -> Search:
    """The beam and the limits of an encoder-decoder, whose texts are one token longer with the one that begins them."""
    if not set(forced := _ids(entries, "forced_eos_token_id")) <= set(_ids(entries, "eos_token_id")):
        raise UserError(f"forced_eos_token_id {forced} is not among the ids of eos_token_id")
    options = {
        name: entries[name] for name in ("num_beams", "num_return_sequences", "length_penalty") if name in entries
    }
    beam = Beam()
    if {"num_beams", "length_penalty", "early_stopping"} & set(entries):
        beam = replace(HUGGING_FACE, stopping_rule=EARLY_STOPPING[entries.get("early_stopping", False)])
    if forced:
        options |= {"at_max_length": "force_eos"}
    beam = replace(
        beam, **options, renormalize_logits=bool(forced or entries.get("renormalize_logits")),
        min_length=max(entries.get("min_length", 0), _min_tokens(entries)),
        no_repeat_ngram_size=entries.get("no_repeat_ngram_size", 0), first_tokens=_ids(entries, "forced_bos_token_id"),
        suppress_first_tokens=_ids(entries, "begin_suppress_tokens"), bad_words=_bad_words(entries),
    )  # fmt: skip
    limit = entries.get("max_new_tokens") or entries.get("max_length", 0) - 1
    if limit <= 0:
        return Search(beam)
    # Caches have room for the longest answer: fewer rows at a time if that is long.
    batch_tokens = max(256, min(Search.batch_tokens, Search.batch_tokens * 128 // limit))
    return Search(beam, max_len_ratio=0.0, max_len_extra=limit, batch_tokens=batch_tokens)


def _bad_words(entries: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """The words of several ids; those of one are suppressed ids of the tokenizer."""
    return tuple(tuple(word) for word in entries.get("bad_words_ids", []) if len(word) > 1)


def _min_tokens(entries: Mapping[str, Any]) -> int:
    """Their least number of new tokens does not count the end mark, ours does."""
    return entries["min_new_tokens"] + 1 if entries.get("min_new_tokens") else 0


def _generation(entries: Mapping[str, Any]) -> GenerationDefaults:
    """The sampler and the limits of a decoder. Without `do_sample` it is up to the command how a token is chosen."""
    sampler = Sampler(repetition_penalty=float(entries.get("repetition_penalty", 1.0)))
    if entries.get("do_sample"):
        names = ("temperature", "top_p", "min_p")
        options: dict[str, Any] = {name: float(entries[name]) for name in names if name in entries}
        sampler = replace(sampler, top_k=entries.get("top_k", TOP_K), **options)
    elif "do_sample" in entries:
        sampler = replace(sampler, temperature=0.0)
    masks = LogitMasks(
        min_length=_min_tokens(entries), no_repeat_ngram_size=entries.get("no_repeat_ngram_size", 0),
        suppress_first_tokens=_ids(entries, "begin_suppress_tokens"), bad_words=_bad_words(entries),
    )  # fmt: skip
    return GenerationDefaults(sampler, entries.get("max_new_tokens"), entries.get("max_length"), masks)
