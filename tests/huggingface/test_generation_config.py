"""generation_config.json: the same texts as `generate` of Transformers without options, on small random models."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxlm.data.sources.parallel import ParallelFiles
from jaxlm.data.sources.text import TextFile
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.request import DecodeRequest
from jaxlm.errors import UserError
from jaxlm.huggingface.generation_config import read_generation_config, with_generation_defaults
from jaxlm.huggingface.tokenizer_files import _special_ids
from jaxlm.inference.base import TrainedModel
from jaxlm.inference.generate import GENERATION_DEFAULTS
from jaxlm.inference.translate import decode_request, search_config
from jaxlm.tasks.language_modeling import LanguageModeling
from jaxlm.tasks.translation import Translation
from jaxlm.types import Batch

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from references.published_models import ENDS, GPT2, MARIAN, T5, Pair, searchable, tensors  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")
PAIRS, TEXT = (ParallelFiles("a", "b"),) * 3, (TextFile("a"),) * 3
ROWS, LENGTH = 8, 12
SEARCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "beams": ("MarianMT", {"num_beams": 3, "length_penalty": 0.6, "early_stopping": True, "max_length": 9}),
    "all beams": ("MarianMT", {"num_beams": 4, "num_return_sequences": 4, "early_stopping": "never"}),
    "forced": ("MarianMT", {"num_beams": 2, "forced_bos_token_id": 7, "forced_eos_token_id": ENDS[0]}),
    "forced, renormalized": ("MarianMT", {"num_beams": 3, "forced_eos_token_id": ENDS[0], "renormalize_logits": True}),
    "suppressed": ("MarianMT", {"num_beams": 3, "suppress_tokens": [5, 9], "begin_suppress_tokens": [20, ENDS[0]]}),
    "several ends": ("T5", {"num_beams": 2, "eos_token_id": list(ENDS), "min_length": 4, "bad_words_ids": [[8], [13]]}),
    "bad words": ("MarianMT", {"num_beams": 3, "bad_words_ids": [[word, word] for word in range(1, 40)] + [[7, 8, 9]]}),
    "new tokens": ("T5", {"num_beams": 2, "max_new_tokens": 5, "min_new_tokens": 3, "no_repeat_ngram_size": 2}),
}  # fmt: skip
GREEDY: dict[str, dict[str, Any]] = {
    "several ends": {"eos_token_id": list(ENDS), "max_length": 14},
    "masks": {
        "suppress_tokens": [5, 9],
        "begin_suppress_tokens": [ENDS[0], 20],
        "min_new_tokens": 4,
        "max_new_tokens": 8,
    },
    "penalty": {"repetition_penalty": 1.7, "max_new_tokens": 10},
}


def configured(family: str, options: dict[str, Any], folder: Path) -> tuple[Pair, dict[str, Any], dict[str, Any]]:
    """A folder whose generation_config.json holds the options; the entries that are read from it."""
    fields = {"MarianMT": MARIAN, "T5": {**T5, "num_layers": 1}, "GPT2": GPT2}[family]
    pair = searchable(family, fields, {"MarianMT": 0.35, "T5": 0.6, "GPT2": 0.45}[family], 3, (ROWS, 7, LENGTH), folder)
    start = {} if pair.start is None else {"decoder_start_token_id": pair.start}
    written = {"eos_token_id": ENDS[0], "pad_token_id": 0, "max_length": LENGTH + 1, **start, **options}
    if "max_new_tokens" in options:
        del written["max_length"]
    (folder / "generation_config.json").write_text(json.dumps(written))
    config = json.loads((folder / "config.json").read_text())
    return pair, config, read_generation_config(folder, config)


def theirs(pair: Pair, folder: Path) -> np.ndarray:
    ids, valid = tensors(pair.ids_BS, pair.valid_BS)
    model = type(pair.their).from_pretrained(folder).eval()
    with torch.no_grad():
        return model.generate(ids, attention_mask=valid).numpy()


def trimmed(rows: Any, stop: tuple[int, ...]) -> list[list[int]]:
    """Up to and with the first end."""
    rows = [list(map(int, row)) for row in rows]
    return [row[: next((i + 1 for i, token in enumerate(row) if token in stop), len(row))] for row in rows]


@pytest.mark.parametrize("name", SEARCHES)
def test_searches(name, tmp_path):
    pair, config, entries = configured(*SEARCHES[name], tmp_path)
    special = _special_ids(tmp_path, {**config, **entries}, "encoder_decoder", lambda piece: None)
    special = replace(special, suppress=tuple(i for i in special.suppress if i != special.start))  # theirs may say it
    search = with_generation_defaults(Translation(*PAIRS), entries, tmp_path).search
    tokenizer: Any = SimpleNamespace(special=special)
    trained = TrainedModel(pair.model, pair.params, tokenizer)
    request = decode_request(trained, search, np.arange(ROWS), Batch(pair.ids_BS, pair.valid_BS))
    output = beam_search(pair.model, pair.params, request, search_config(trained, search, 7))
    count = search.beam.num_return_sequences
    ours = [
        row[:size]
        for rows, sizes in zip(np.asarray(output.tokens_BNT), np.asarray(output.length_BN), strict=True)
        for row, size in zip(rows[:count], sizes, strict=True)
    ]
    stop = special.end_ids
    assert trimmed(ours, stop) == trimmed(theirs(pair, tmp_path)[:, 1:], stop)
    assert len({len(row) for row in ours}) > 1 or "forced" in name or name == "bad words"


@pytest.mark.parametrize("name", GREEDY)
def test_continuations(name, tmp_path):
    pair, config, entries = configured("GPT2", {"do_sample": False, **GREEDY[name]}, tmp_path)
    special = _special_ids(tmp_path, {**config, **entries}, "decoder", lambda piece: None)
    defaults = with_generation_defaults(LanguageModeling(*TEXT), entries, tmp_path).generation
    limit = defaults.max_tokens or defaults.max_length - pair.ids_BS.shape[1]
    masks = replace(defaults.logit_masks, suppress_tokens=special.suppress)
    request = DecodeRequest(Batch(target_BT=pair.ids_BS), pair.ids_BS, pair.valid_BS, np.full(ROWS, limit))
    output = generate(
        pair.model, pair.params, request, GenerationConfig(limit, special.end_ids, defaults.sampler, masks)
    )
    rows = zip(np.asarray(output.tokens_BT), np.asarray(output.length_B), strict=True)
    ours = trimmed([row[:size] for row, size in rows], special.end_ids)
    assert ours == trimmed(theirs(pair, tmp_path)[:, pair.ids_BS.shape[1] :], special.end_ids)


def defaults_of(folder: Path, **entries: Any) -> Any:
    (folder / "generation_config.json").write_text(json.dumps(entries))
    read = read_generation_config(folder, {"eos_token_id": 1})
    return with_generation_defaults(LanguageModeling(*TEXT), read, folder).generation


def test_sampling(tmp_path):
    sampler = defaults_of(tmp_path, do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.1).sampler
    assert (sampler.temperature, sampler.top_k, sampler.top_p) == (0.6, 50, 0.9) and sampler.repetition_penalty == 1.1
    assert defaults_of(tmp_path) == GENERATION_DEFAULTS and defaults_of(tmp_path, do_sample=False).sampler.greedy
    assert defaults_of(tmp_path, max_length=10).max_length == 10


@pytest.mark.parametrize(
    "entries, match",
    [
        ({"eos_token_id": "2"}, "generation_config.json.eos_token_id: expected an integer or a list, found '2'"),
        ({"max_length": "long"}, "max_length: expected an integer, found 'long'"),
        ({"early_stopping": "always"}, "early_stopping: expected true or false or 'never'"),
        ({"penalty_alpha": 0.6}, "penalty_alpha = 0.6 is not supported: remove the entry"),
        ({"bad_words_ids": [1, 2]}, "bad_words_ids.0.: expected a list, found 1"),
        ({"num_beams": 4}, "num_beams = 4 is not supported"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(entries, match, tmp_path):
    with pytest.raises(UserError, match=match):
        defaults_of(tmp_path, **entries)


def test_ids_of_both_files(tmp_path):
    """The end of config.json ends a text in training; without the other file, config.json has the defaults."""
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 1]}))
    config = {"eos_token_id": 1, "bos_token_id": 3, "num_beams": 4}
    assert read_generation_config(tmp_path, config) == {"eos_token_id": [1, 5], "bos_token_id": 3}
    (tmp_path / "generation_config.json").unlink()
    assert read_generation_config(tmp_path, config) == config
