"""Constraints on the command line: `generate` and `predict` obey them and report invalid ones."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import cli_runs

from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.data.tokenizers.simple import Bytes, Words
from jaxlm.errors import UserError
from jaxlm.grammar.constraint import delimiter_id

command, trained, workdir = cli_runs.command, cli_runs.trained, cli_runs.workdir  # fixtures
loaded_once = cli_runs.loaded_once
ROOT = Path(__file__).resolve().parents[2]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer"}}, "required": ["ok"]}


@pytest.fixture
def schema(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    return file


def test_generate_obeys_a_constraint(loaded_once, command, workdir, schema):
    ask = ("generate", workdir, "--prompt", "the witch", "--num-samples", 4, "--jsonl", "--max-tokens", 40)
    found = [json.loads(line) for line in command(*ask, "--regex", "(la|el) [a-z]{2,5}", "--temperature", 3).lines]
    assert len(found) == 4 and all(re.fullmatch("(la|el) [a-z]{2,5}", each["text"]) for each in found)
    found = [json.loads(line) for line in command(*ask, "--choice", "sí", "--choice", "no").lines]
    assert {each["text"] for each in found} <= {"sí", "no"} and all(each["reason"] == "stop" for each in found)
    out = command(*ask, "--json-schema", schema, "--temperature", 5)
    assert out.code == 0, out.err
    for each in out.lines:
        value = json.loads(json.loads(each)["text"])
        assert isinstance(value["ok"], bool) and set(value) <= {"ok", "n"}


def test_a_stream_obeys_a_constraint(loaded_once, command, workdir):
    ask = ("generate", workdir, "--prompt", "the witch", "--max-tokens", 12, "--regex", "[a-z]{4,9}")
    assert command(*ask, "--stream").lines == command(*ask).lines
    assert re.fullmatch("[a-z]{4,9}", command(*ask).lines[0])


def test_predict_obeys_a_constraint(loaded_once, command, workdir, schema, tmp_path):
    lines = b"the green witch arrived\n\nJohn\n"
    found = command("predict", workdir, "--json-schema", schema, stdin=lines)
    assert found.code == 0, found.err
    assert found.lines[1] == "" and all(isinstance(json.loads(found.lines[k])["ok"], bool) for k in (0, 2))
    (tmp_path / "choices").write_text("rojo\nverde\n")
    found = command("predict", workdir, "--choices", tmp_path / "choices", "--n-best", "2", stdin=lines)
    assert {*found.lines[0].split("\t")} == {"rojo", "verde"}


def test_quotations_are_copied(loaded_once, command, workdir):
    source = "the green witch arrived"
    ask = ("generate", workdir, "--prompt", source, "--num-samples", 24, "--max-tokens", 60, "--temperature", 9)
    found = command(*ask, "--copy-between", "[", "]", "--jsonl")
    texts = [json.loads(line)["text"] for line in found.lines]
    quoted = [re.fullmatch(r"([^\]]+)\].*", part, re.DOTALL) for text in texts for part in text.split("[")[1:]]
    assert len(quoted) > 2 and all(match and match[1] in source for match in quoted)
    assert command("predict", workdir, "--copy-between", "[", "]", stdin=source.encode()).code == 0


WRONG = {
    "expression": (["--regex", "a(b"], "--regex: the expression 'a(b' is wrong at character 2: missing )"),
    "not an automaton": (["--regex", "(?=a)b"], "look-ahead"),
    "two kinds": (["--regex", "a", "--choice", "b"], "--regex and --choice: expected at most one kind"),
    "no such keyword": (["--json-schema", "{schema}"], "schema.json: JSON schema, #/properties/ok: 'minimum' is not"),
    "no JSON": (["--json-schema", "{broken}"], "broken.json, line 2"),
    "marks": (["--copy-between", "a", "a"], "expected two that differ"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("verb", ["generate", "predict"])
def test_usage(command, tmp_path, verb, case):
    argv, expected = WRONG[case]
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA).replace('"boolean"', '"integer", "minimum": 3'))
    (tmp_path / "broken.json").write_text('{"type":\n "integer",,}')
    files = {"schema": tmp_path / "schema.json", "broken": tmp_path / "broken.json"}
    argv = [word.format(**files) if word.startswith("{") else word for word in argv]
    found = command(verb, "D", *(["--prompt", "x"] if verb == "generate" else []), *argv)
    assert found.code == 2 and expected in found.err and found.err.count("\n") == 1, found.err


def test_an_invalid_constraint_is_reported_without_jax():
    code = "import sys; from jaxlm.cli.main import main; code = main(sys.argv[1:]); print('jax' in sys.modules, code)"
    argv = ["generate", "D", "--prompt", "x", "--regex", "[a"]
    found = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "2"]


def test_constraints_that_cannot_be_satisfied(loaded_once, command, workdir):
    ask = ("generate", workdir, "--prompt", "the witch", "--max-tokens", "2")
    found = command(*ask, "--regex", "[a-z]{90}")
    assert found.code == 1 and "EOS counted), and the limit is 2: allow" in found.err
    found = command(*ask, "--copy-between", "no such", "mark")
    assert found.code == 1 and "'no such' is not one token" in found.err


def test_marks():
    assert delimiter_id(Bytes().fit(), "<") == ord("<") + 4
    assert delimiter_id(Words().fit(["<q> a </q> a"]), "<q>") > 3
    pieces = SentencePiece(vocab_size=266, user_defined_symbols=("<q>", "</q>")).fit(["a b <q> a </q> c"] * 3)
    assert pieces.decode([[delimiter_id(pieces, "</q>")]]) == ["</q>"]
    with pytest.raises(UserError, match="user_defined_symbols="):
        delimiter_id(Bytes().fit(), "<q>")
