"""Readers of dialogues and preferences: the rows, what is counted, and every fault with its place and its cure."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from jaxlm.data.chat import records
from jaxlm.data.chat.dialogue import Dialogue, Judged, Preference, Turn
from jaxlm.data.chat.instructions import (
    AlpacaFile,
    MessagesFile,
    PairDialogues,
    QuestionFile,
    SelfInstructFile,
    ShareGptFile,
)
from jaxlm.data.chat.preferences import JudgedFile, PairPreferences, PreferenceFile
from jaxlm.data.files import ReadStats
from jaxlm.data.sources.parallel import Tsv
from jaxlm.data.sources.transforms import Concat, HashSplit
from jaxlm.errors import UserError

USER, ASSISTANT = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
ALPACA = [
    {"instruction": "Add.", "input": "2 2", "output": "4"},
    {"instruction": "Greet.", "input": "No Input", "output": "Hello"},
    {"instruction": "Greet.", "output": " "},
]


def _write(path: Path, rows: list[Any], array: bool = False, indent: int | None = None) -> str:
    text = json.dumps(rows, indent=indent) if array else "".join(f"{json.dumps(row)}\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def _dialogue(*contents: str) -> Dialogue:
    return Dialogue(tuple(Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)))


def _read(source: Any) -> tuple[list[Any], ReadStats]:
    stats = ReadStats()
    return list(source.read(stats)), stats


@pytest.mark.parametrize("form", ["lines", "array", "pretty array", "gzip", "byte order mark"])
def test_lines_arrays_and_compression_give_the_same_rows(tmp_path, form):
    name = "a.json.gz" if form == "gzip" else "a.json"
    path = _write(tmp_path / name, ALPACA, "array" in form, 2 if "pretty" in form else None)
    if form == "byte order mark":
        Path(path).write_bytes(b"\xef\xbb\xbf" + Path(path).read_bytes())
    rows, stats = _read(AlpacaFile(path))
    assert rows == [_dialogue("Add.\n\n2 2", "4"), _dialogue("Greet.", "Hello")]
    assert stats.kept == 2 and "1 with an input that means none, 1 with an empty answer left out" in str(stats)


def test_the_fields_of_a_file_may_have_other_names(tmp_path):
    path = _write(tmp_path / "a.jsonl", [{"q": "Add.", "a": "4", "input": "none of it", "system": "Be brief."}])
    (row,) = AlpacaFile(path, {"instruction": "q", "output": "a"})
    assert row.turns[0] == Turn("system", "Be brief.") and row.turns[1].content == "Add.\n\nnone of it"
    with pytest.raises(UserError, match="no field question; `fields` gives other names to instruction, input"):
        AlpacaFile(path, {"question": "q"})
    with pytest.raises(UserError, match=r"line 1: expected a text under 'instruction', found only 'q', 'a'"):
        list(AlpacaFile(path))


def test_formats_of_instructions(tmp_path):
    seeds = [{"instruction": "Rhyme.", "instances": [{"input": "", "output": "a"}, {"input": "x", "output": "b"}]}]
    assert list(SelfInstructFile(_write(tmp_path / "s.jsonl", seeds))) == [
        _dialogue("Rhyme.", "a"), _dialogue("Rhyme.\n\nx", "b"),
    ]  # fmt: skip
    problems = [{"question": "48 / 2?", "answer": "<<48/2=24>>24 it is.\n#### 1,024"}]
    (row,) = QuestionFile(_write(tmp_path / "q.jsonl", problems), drop_calculations=True)
    assert row.turns[1].content == "24 it is.\n#### 1,024"
    (tmp_path / "p.tsv").write_text("2 + 2?\t4\n3 + 3?\t6\n", encoding="utf-8")
    pairs = PairDialogues(Tsv(str(tmp_path / "p.tsv"), 0, 1), system="Add.")
    assert [row.turns[-1].content for row in pairs] == ["4", "6"] and next(iter(pairs)).turns[0].role == "system"


def test_conversations_of_sharegpt(tmp_path):
    call = '{"name": "add"}'
    turns = [("human", "2 + 2?"), ("function_call", call), ("observation", "4"), ("gpt", "It is 4.")]
    record = {"conversations": [{"from": name, "value": text} for name, text in turns], "system": "", "tools": "[]"}
    (row,) = ShareGptFile(_write(tmp_path / "c.json", [record], array=True))
    roles = ["user", "assistant", "tool", "assistant"]
    assert [turn.role for turn in row.turns] == roles and row.turns[1].content == call and row.tools == ""
    record |= {"tools": '[{"name": "add"}]', "system": "Add."}
    (row,) = ShareGptFile(_write(tmp_path / "c.json", [record], array=True), last_only=True)
    (without,) = ShareGptFile(_write(tmp_path / "c.json", [record], array=True), {"tools": ""})
    assert (
        row.tools == '[{"name": "add"}]' and not without.tools and row.turns[0] == Turn("system", "Add.", trained=False)
    )
    assert [turn.trained for turn in row.turns if turn.role == "assistant"] == [False, True]


def test_messages_of_parts_weights_and_calls(tmp_path):
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": calls, "weight": 0},
        {"role": "tool", "content": "4"},
        ASSISTANT,
    ]
    (row,) = MessagesFile(_write(tmp_path / "m.jsonl", [{"messages": messages}]))
    assert row.turns[0].content == "2 + 2?" and json.loads(row.turns[1].content)["name"] == "add"
    assert [turn.trained for turn in row.turns] == [True, False, True, True]
    untrained = {"messages": [USER, ASSISTANT | {"trained": False}]}
    rows, stats = _read(MessagesFile(_write(tmp_path / "m.jsonl", [untrained, {"messages": [USER, ASSISTANT]}])))
    assert len(rows) == 1 and stats.notes == {"without a trained answer left out": 1}


@pytest.mark.parametrize(
    "messages,message",
    [
        ([{"role": "robot", "content": "x"}, ASSISTANT], "turn 1 has the unknown role 'robot', expected one of system"),
        ([{"role": ["user"], "content": "x"}], "unknown role"),
        ([USER], "no turn of the assistant"),
        ([USER, ASSISTANT, {"role": "system", "content": "s"}], "turn 3 is a system turn"),
        ([{"role": "system", "content": "s"}] * 2 + [USER, ASSISTANT], "turn 2 is a second system turn"),
        ([USER | {"content": "a\0b"}, ASSISTANT], "NUL character"),
        ([USER | {"content": "\ud800"}, ASSISTANT], "half of a surrogate pair"),
        ([USER | {"content": [{"type": "image_url"}]}, ASSISTANT], "expected a text or parts of the type 'text'"),
        ([USER, ASSISTANT | {"weight": 0.5}], "weight 0.5, expected 0 or 1"),
        ("x", "expected a list of objects under 'messages'"),
        ([USER, "x"], "expected a list of objects"),
    ],
    ids=["role", "role list", "no answer", "late system", "two systems", "nul", "surrogate", "image", "weight",
         "no list", "no objects"],
)  # fmt: skip
def test_a_bad_dialogue_is_named_or_left_out(tmp_path, messages, message):
    good = {"messages": [USER, ASSISTANT]}
    path = _write(tmp_path / "m.jsonl", [good, {"messages": messages}, good])
    with pytest.raises(UserError, match="line 2.*" + message):
        list(MessagesFile(path))
    rows, stats = _read(MessagesFile(path, on_bad_line="skip"))
    assert (len(rows), stats.kept, stats.skipped) == (2, 2, 1)


def test_turns_of_one_role_in_a_row_are_joined(tmp_path):
    path = _write(tmp_path / "m.jsonl", [{"messages": [USER, USER | {"content": "Well?"}, ASSISTANT]}])
    rows, stats = _read(MessagesFile(path))
    assert rows == [_dialogue("2 + 2?\n\nWell?", "4")]
    assert stats.notes == {"turns joined to the one before them, of the same role": 1}
    with pytest.raises(UserError, match="turns 1 and 2 are both of the user"):
        list(MessagesFile(path, strict=True))


@pytest.mark.parametrize(
    "content,message",
    [
        ('{"a": 1}\n[1]\n', "line 1: no turn|expected a list of objects"),
        ('[{"a": 1}]\n{"a": 1}\n', "not JSON .*expected one JSON array of objects, or one object a line"),
        ("[1]", "record 1: expected an object, found 1"),
        ('{"messages": [', "line 1, column .*: not JSON"),
        ('{"messages": [], "messages": []}', "is in an object twice"),
        ("[" * 200 + "]" * 200, "levels"),
        ("\n\n", "no record is left"),
    ],
    ids=["array after an object", "object after an array", "number", "cut off", "twice", "deep", "blank"],
)
def test_files_that_are_not_records(tmp_path, content, message):
    (tmp_path / "bad.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        list(MessagesFile(str(tmp_path / "bad.json")))


def test_limits_of_lines_and_arrays(tmp_path, monkeypatch):
    path = _write(tmp_path / "a.jsonl", ALPACA)
    with pytest.raises(UserError, match="line 1: the line has more than 20 bytes"):
        list(AlpacaFile(path, max_text_bytes=20))
    monkeypatch.setattr(records, "MAX_ARRAY_BYTES", 100)
    with pytest.raises(UserError, match="one JSON array of more than 100 bytes, the limit: write one object a line"):
        list(AlpacaFile(_write(tmp_path / "a.json", ALPACA, array=True)))


def test_tools_that_are_not_json(tmp_path):
    record = {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}], "tools": "[{"}
    with pytest.raises(UserError, match="record 1: the tools are not JSON"):
        list(ShareGptFile(_write(tmp_path / "t.json", [record], array=True)))


PROMPT = Dialogue((Turn("user", "2 + 2?"),))
WRONG = {"role": "assistant", "content": "5"}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [WRONG]},
        {"prompt": "2 + 2?", "chosen": [USER, ASSISTANT], "rejected": [USER, WRONG]},
        {"chosen": [USER, ASSISTANT], "rejected": [USER, WRONG]},
        {
            "conversations": [{"from": "human", "value": "2 + 2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
    ],
    ids=["texts", "messages", "whole dialogues", "implicit prompt", "sharegpt"],
)
def test_formats_of_preferences(tmp_path, record):
    source = PreferenceFile(_write(tmp_path / "p.jsonl", [record | {"margin": 1}]))
    assert list(source) == [Preference(PROMPT, "4", "5", 1.0)]


@pytest.mark.parametrize(
    "record,message",
    [
        ({"chosen": "a b", "rejected": "a c"}, "expected a prompt under 'prompt'"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER | {"content": "3?"}, WRONG]}, "have different prompts"),
        ({"prompt": "3?", "chosen": [USER, ASSISTANT], "rejected": [USER, WRONG]}, "the prompt differs"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "margin": float("1e999")}, "margin|not a number|beyond"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "margin": "1"}, "the margin is '1', expected a finite number"),
        ({"prompt": [USER, ASSISTANT], "chosen": "a", "rejected": "b"}, "the prompt ends with assistant"),
        ({"prompt": "x", "chosen": [USER], "rejected": "b"}, "'chosen' does not end with a message of the assistant"),
    ],
    ids=["no prompt", "two prompts", "other prompt", "infinite margin", "margin text", "no question", "no answer"],
)
def test_bad_preferences(tmp_path, record, message):
    with pytest.raises(UserError, match=message):
        list(PreferenceFile(_write(tmp_path / "p.jsonl", [record])))


def test_preferences_that_teach_nothing_are_counted(tmp_path):
    rows = [{"prompt": "x", "chosen": chosen, "rejected": "a"} for chosen in ("a", "b", " ")]
    kept, stats = _read(PreferenceFile(_write(tmp_path / "p.jsonl", rows)))
    assert [row.chosen for row in kept] == ["b"] and stats.kept == 1
    assert stats.notes == {"with equal answers left out": 1, "with an empty answer left out": 1}
    (tmp_path / "p.tsv").write_text("x\ta\tb\nx\ta\ta\n", encoding="utf-8")
    kept, stats = _read(PairPreferences(Tsv(str(tmp_path / "p.tsv"), (0, 1), 2)))
    assert kept == [Preference(Dialogue((Turn("user", "x"),)), "a", "b")] and stats.kept == 1


def test_judged_answers(tmp_path):
    rows: list[Any] = [{"prompt": "2 + 2?", "completion": "4", "label": label} for label in (True, 1, "true", "1")]
    rows += [{"messages": [USER, ASSISTANT], "label": label} for label in (False, 0, "False", "0")]
    kept = list(JudgedFile(_write(tmp_path / "k.jsonl", rows)))
    assert kept == [Judged(PROMPT, "4", True)] * 4 + [Judged(PROMPT, "4", False)] * 4
    for label in ("good", 2, None, [1]):
        with pytest.raises(UserError, match="the label is .*, expected true or false"):
            list(JudgedFile(_write(tmp_path / "k.jsonl", [rows[0] | {"label": label}])))
    with pytest.raises(UserError, match="no answer to judge"):
        list(JudgedFile(_write(tmp_path / "k.jsonl", [{"messages": [USER], "label": 1}])))


def test_splits_are_chosen_by_the_prompt(tmp_path):
    rows = [{"prompt": f"{i} + {i}?", "chosen": f"{2 * i}", "rejected": str(j)} for i in range(40) for j in (1, 3)]
    source = PreferenceFile(_write(tmp_path / "p.jsonl", rows))
    split = {name: list(HashSplit(source, name, valid=0.3, test=0.3)) for name in ("train", "valid", "test")}
    prompts = [{row.prompt for row in part} for part in split.values()]
    assert sum(map(len, split.values())) == 80 and sum(map(len, prompts)) == 40
    assert len(list(Concat((source, source)))) == 160


@pytest.mark.data
def test_the_real_files(data_root, monkeypatch):
    monkeypatch.setenv("JAXLM_DATA", str(data_root))
    sources = (
        (AlpacaFile("alpaca_5000/alpaca_5000.json.gz"), 4998, [50, 2]),
        (AlpacaFile("alpaca_en_demo/alpaca_en_demo.json.gz"), 999, [6]),
        (SelfInstructFile("self_instruct_seeds/seed_tasks.jsonl.gz"), 175, []),
        (ShareGptFile("glaive_toolcall_demo/glaive_toolcall_en_demo.json.gz"), 300, []),
        (QuestionFile("gsm8k/train.jsonl.gz"), 7473, []),
        (PreferenceFile("dpo_en_demo/dpo_en_demo.json.gz"), 300, []),
        (JudgedFile("kto_en_demo/kto_en_demo.json.gz"), 300, []),
    )
    for source, count, notes in sources:
        rows, stats = _read(source)
        assert len(rows) == stats.kept == count and list(stats.notes.values()) == notes, source.describe()
        if isinstance(source, JudgedFile):
            assert sum(row.good for row in rows) == 150
        if isinstance(source, ShareGptFile):
            assert sum(not row.tools for row in rows) == 109
