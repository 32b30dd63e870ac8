"""The chat template of a published folder: where it is found, its end tokens, the start of its rows, the commands."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.chat import CHATML_SOURCE, chatml_tokenizer, dialogue, messages
from fixtures.zoo import params_of

from jaxlm.data.chat.encoding import DialogueEncoder
from jaxlm.data.chat.instructions import PairDialogues
from jaxlm.data.chat.template import PLAIN
from jaxlm.data.sources.parallel import Tsv
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.finetuning import FineTuning
from jaxlm.huggingface.convert import save_pretrained
from jaxlm.huggingface.tokenizer_files import read_chat_template, start_of_chat
from jaxlm.huggingface.workdir import import_folder
from jaxlm.models.decoder import Decoder
from jaxlm.pipeline.pipeline import load
from jaxlm.tasks.instruction_tuning import InstructionTuning
from jaxlm.training.initialize import resolve_init
from jaxlm.workdir import Workdir

TOKENS = {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}, "bos_token": None}
TALK = dialogue("What is 2 + 2?", "It is 4.", "And 3 + 3?")


def _write(folder: Path, **entries: object) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENS | entries))
    return folder


def test_places_of_a_template(tmp_path):
    tokenizer = chatml_tokenizer()
    assert read_chat_template(_write(tmp_path), tokenizer) is None
    for given in (CHATML_SOURCE, [{"name": "tool", "template": "x"}, {"name": "default", "template": CHATML_SOURCE}]):
        template = read_chat_template(_write(tmp_path, chat_template=given), tokenizer)
        assert template.source == CHATML_SOURCE and template.end_tokens == ("<|im_end|>",)
        assert template.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert read_chat_template(tmp_path, tokenizer).source == "from the file"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match="chat_template.jinja is not UTF-8"):
        read_chat_template(tmp_path, tokenizer)
    (tmp_path / "chat_template.jinja").write_text("a" * (300 << 10))
    with pytest.raises(UserError, match="256|limit|at most"):
        read_chat_template(tmp_path, tokenizer)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="its chat_template is 3, expected a text"):
        read_chat_template(_write(tmp_path, chat_template=3), tokenizer)


def test_rows_start_where_the_template_starts(tmp_path):
    """A tokenizer without BOS (Qwen2): its rows are those of apply_chat_template, without an id before them."""
    transformers = pytest.importorskip("transformers")
    tokenizer = chatml_tokenizer()
    other = replace(tokenizer, special=replace(tokenizer.special, bos=0, start=0))
    template = read_chat_template(_write(tmp_path, chat_template=CHATML_SOURCE), other)
    ours = start_of_chat(template, other)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer)
    theirs.chat_template = CHATML_SOURCE
    (ids,) = DialogueEncoder(ours, template).encode_prompts([TALK])
    expected = theirs.apply_chat_template(messages(TALK), add_generation_prompt=True, return_dict=False)
    assert ours.special.start == 1 and ids.tolist() == expected
    with_bos = replace(template, special_tokens={"bos_token": "<|endoftext|>"})
    assert start_of_chat(with_bos, other) is other


def test_an_imported_model_answers_in_its_template(tmp_path, monkeypatch):
    tokenizer = chatml_tokenizer()
    model = Decoder(tokenizer.vocab_size, 16, 2, 32, 1, max_length=80)
    folder = tmp_path / "published"
    folder.mkdir()
    save_pretrained(folder, model, params_of(model), {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    (folder / "tokenizer.json").write_text(tokenizer.tokenizer_json)
    _write(folder, tokenizer_class="PreTrainedTokenizerFast")
    (folder / "chat_template.jinja").write_text(CHATML_SOURCE)
    import_folder(folder, tmp_path / "run")
    given = InstructionTuning(*[PairDialogues(Tsv("pairs.tsv", 0, 1))] * 3, chat_template=None)
    start = Experiment(given, model, finetuning=FineTuning(init=str(tmp_path / "run")), best_metric="valid/nll")
    assert resolve_init(start).task.chat_template.source == CHATML_SOURCE
    assert resolve_init(replace(start, task=replace(given, chat_template=PLAIN))).task.chat_template == PLAIN
    pipeline = load(tmp_path / "run")
    chat = pipeline.chat_format("You are brief.")
    assert chat.template.source == CHATML_SOURCE and chat.template.end_tokens == ("<|im_end|>",)
    assert (Workdir(tmp_path / "run").published_folder / "chat_template.jinja").is_file()
    (ids,) = DialogueEncoder(pipeline.tokenizer, chat.template).encode_prompts([chat.dialogue("2 + 2?")])
    assert pipeline.tokenizer.pieces[ids[0]] == "<|im_start|>" and (ids == 1).sum() == 3
