"""Every verb, on a workdir trained with the command line."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import cli_runs

EXPERIMENT = cli_runs.EXPERIMENT
command, trained, workdir = cli_runs.command, cli_runs.trained, cli_runs.workdir  # fixtures
ROOT = Path(__file__).resolve().parents[2]
# All longer than `max_source`, so that one shape is compiled.
LONG = [f"{start} did not see the film that I liked" for start in ("John", "the king", "the green witch")]


def text(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def test_list(command):
    found = command("list")
    assert found.code == 0
    assert any(line.startswith("experiments.multi30k") for line in found.lines)
    assert not any("_" == line.partition(":")[2][:1] for line in found.lines), "a private function is no variant"


def test_list_reads_the_current_folder_without_running_it(command, tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    mine = '"""Mine."""\nraise RuntimeError\ndef tried() -> Experiment:\n    """What I tried.\n\n    More."""\n'
    (tmp_path / "experiments" / "mine.py").write_text(mine)
    (tmp_path / "experiments" / "broken.py").write_text("def (")
    monkeypatch.chdir(tmp_path)
    lines = command("list").lines
    assert any(line.split(maxsplit=1) == ["experiments.mine:tried", "What I tried."] for line in lines)
    assert any(line.startswith("experiments.broken") and "not valid Python" in line for line in lines)


def test_show_counts_every_parameter(command):
    found = command("show", f"{EXPERIMENT}:tiny", "--model.vocab", "300", "--steps", "7")
    assert found.code == 0, found.err
    shown = found.out.decode()
    assert "vocab: 300" in shown and "steps: 7" in shown
    parts = {words[0]: words[1] for words in map(str.split, found.lines) if len(words) > 1}
    assert parts["embedding"] == f"{300 * 16:,}"
    assert "FLOPs " in shown and "3 x the matrix products of the forward pass" in shown


def test_train_ends_with_everything_in_json(trained):
    folder, found = trained
    assert found.code == 0, found.err
    last = json.loads(found.lines[-1])
    assert list(last)[0] == "step" and last["step"] == 4
    assert last["checkpoints"] == [2, 4]
    assert 0 < last["seconds_to_first_step"] < last["seconds"]
    assert last["test"]["lines"] == 6 and "version" in last["test"]["bleu"]["signature"]
    samples = found.lines[:-1]
    assert len(samples) == 5 and all(" -> " in line and "(reference: " in line for line in samples)
    assert samples[0].startswith("the green witch arrived -> ")
    assert {path.name for path in folder.iterdir()} >= {"experiment.json", "tokenizer", "checkpoints", "metrics.jsonl"}


def test_a_finished_run_is_scored_again(trained, command):
    folder, first = trained
    again = command("train", f"{EXPERIMENT}:tiny", "--workdir", folder)
    assert again.code == 0, again.err
    assert json.loads(again.lines[-1])["test"]["chrf"] == json.loads(first.lines[-1])["test"]["chrf"]


def test_an_interrupted_run_prints_the_command_that_resumes_it(command, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxlm.training.loop.train", lambda *_: {"step": 2, "stopped": "interrupted"})
    found = command("train", f"{EXPERIMENT}:tiny", "--workdir", tmp_path / "a b", "--seed", "3")
    assert found.code == 130
    assert found.err.rstrip().endswith(f"jaxlm train {EXPERIMENT}:tiny --workdir '{tmp_path}/a b' --seed 3")
    assert json.loads(found.lines[-1])["step"] == 2


def test_on_bad_line_reaches_every_source(command, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("jaxlm.training.loop.train", lambda experiment, *_: seen.append(experiment) or {"step": 0})
    monkeypatch.setattr("jaxlm.tasks.translation.Translation.check", lambda _: None)
    monkeypatch.setattr("jaxlm.cli.training.train._evaluate_test", lambda _: {})
    options = ("--workdir", tmp_path, "--on-bad-line", "skip", "--task.test.on-bad-line", "replace")
    assert command("train", "experiments.multi30k:tiny", *options).code == 0
    task = seen[0].task
    assert (task.train.on_bad_line, task.valid.on_bad_line, task.test.on_bad_line) == ("skip", "skip", "replace")
    assert all(pairs.on_bad_line == "skip" for pairs in task.extra_tests.values())


def test_evaluate(trained, command):
    folder, training = trained
    found = command("evaluate", folder)
    assert found.code == 0, found.err
    assert len(found.lines) == 1
    scores = json.loads(found.lines[-1])
    assert scores["chrf"] == json.loads(training.lines[-1])["test"]["chrf"]
    assert scores["checkpoints"] == [2, 4] and scores["lines"] == 6 and scores["sentences_per_second"] > 0


def test_evaluate_other_split_search_and_checkpoint(command, workdir):
    found = command(
        "evaluate", workdir, "--split", "again", "--step", "2", "--num-beams", "1", "--length-penalty", "0.5"
    )
    scores = json.loads(found.lines[-1])
    assert (scores["split"], scores["lines"], scores["checkpoints"]) == ("again", 3, [2])
    assert scores["search"] == {"num_beams": 1, "length_penalty_kind": "power", "length_penalty": 0.5}


def test_predict_answers_line_by_line_in_order(command, workdir):
    alone = [command("predict", workdir, stdin=text([line])).lines[0] for line in LONG]
    lines = [LONG[0], "", LONG[1], " \t ", LONG[2], LONG[0]]
    found = command("predict", workdir, "--lines-per-batch", "4", stdin=text(lines))
    assert found.code == 0, found.err
    assert found.lines == [alone[0], "", alone[1], "", alone[2], alone[0]]
    assert "compiling" in found.err


def test_predict_json_lines(command, workdir):
    lines = [LONG[0], "", LONG[1]]
    plain = command("predict", workdir, stdin=text(lines)).lines
    both = command("predict", workdir, "--n-best", "2", stdin=text(lines)).lines
    records = [
        json.loads(line) for line in command("predict", workdir, "--jsonl", "--n-best", "2", stdin=text(lines)).lines
    ]
    assert [record["source"] for record in records] == lines
    for record, line, pair in zip(records, plain, both, strict=True):
        assert record["prediction"] == line == record["hypotheses"][0]["text"]
        assert record["logprob"] == record["hypotheses"][0]["logprob"] <= 0
        assert pair == "\t".join(hypothesis["text"] for hypothesis in record["hypotheses"])
    assert records[0]["hypotheses"][0]["score"] >= records[0]["hypotheses"][1]["score"]


def test_generate_is_a_function_of_seed_prompt_and_number(command, workdir, tmp_path):
    def sampled(*argv):
        return command("generate", workdir, "--max-tokens", "6", "--jsonl", *argv)

    one = sampled("--prompt", LONG[0], "--num-samples", "2")
    assert one.code == 0, one.err
    (tmp_path / "prompts").write_bytes(text([LONG[0]]))
    three = sampled("--prompt", LONG[1], "--file", tmp_path / "prompts", "--num-samples", "3")
    assert three.lines[3:5] == one.lines
    samples = [json.loads(line) for line in three.lines]
    assert [sample["prompt"] for sample in samples] == [LONG[1]] * 3 + [LONG[0]] * 3
    assert len({sample["logprob"] for sample in samples}) == 6, "samples are drawn independently"
    assert all(sample["tokens"] <= 6 for sample in samples)
    assert sampled("--prompt", LONG[0], "--num-samples", "2", "--seed", "1").lines != one.lines


def test_generate_at_temperature_zero_is_greedy(command, workdir):
    greedy = command("generate", workdir, "--prompt", LONG[0], "--temperature", "0", "--num-samples", "2")
    beam = command("predict", workdir, "--num-beams", "1", "--length-penalty", "0.5", stdin=text(LONG[:1]))
    assert greedy.lines == beam.lines * 2


def test_score(command, workdir):
    pairs = [f"{LONG[0]}\tla bruja", "short\tx", f"{LONG[1]}\t"]
    found = command("score", workdir, "--jsonl", "--per-token", stdin=text(pairs))
    assert found.code == 0, found.err
    records = [json.loads(line) for line in found.lines]
    assert [record["text"] for record in records] == ["la bruja", "x", ""]
    assert [record["tokens"] for record in records] == [9, 2, 1], "letters, and the end"
    assert records[0]["pieces"] == [*"la bruja", "</s>"] and records[0]["truncated"]
    for record in records:
        assert sum(record["token_logprobs"]) == pytest.approx(record["logprob"])
    perplexity = math.exp(-sum(record["logprob"] for record in records) / 12)
    assert f"perplexity {perplexity:.4f}" in found.err
    plain = command("score", workdir, stdin=text(pairs)).lines
    assert plain == [f"{record['logprob']:.4f}\t{record['tokens']}" for record in records]


def test_score_agrees_with_the_search(command, workdir):
    """A hypothesis that ended by itself has the log-probability that `score` gives its text."""
    search = ("--jsonl", "--num-beams", "2", "--step", "4")
    record = json.loads(command("predict", workdir, *search, stdin=text(LONG[:1])).lines[0])
    scored = command(
        "score", workdir, "--jsonl", "--step", "4", "--per-token", stdin=text([f"{LONG[0]}\t{record['prediction']}"])
    )
    found = json.loads(scored.lines[0])
    logprobs = found["token_logprobs"] if record["hypotheses"][0]["reason"] == "stop" else found["token_logprobs"][:-1]
    assert "\ufffd" in record["prediction"] or sum(logprobs) == pytest.approx(record["logprob"], abs=1e-4)


def test_the_module_is_the_command(workdir, tmp_path):
    """`python -m jaxlm`, its stdout clean, and a reader that goes away is no error worth a word."""
    (tmp_path / "in").write_bytes(text(LONG))
    run = f"{sys.executable} -m jaxlm predict {workdir} < {tmp_path / 'in'}"
    found = subprocess.run(run, shell=True, cwd=ROOT, env=cli_runs.environment(), capture_output=True, text=True)
    assert found.returncode == 0 and len(found.stdout.splitlines()) == 3, found.stderr
    run = f"{sys.executable} -m jaxlm list | true"
    found = subprocess.run(run, shell=True, cwd=ROOT, env=cli_runs.environment(), capture_output=True, text=True)
    assert not found.stderr


def test_an_experiment_is_a_command(tmp_path):
    """The one line of an experiment file: `run_this_experiment()` names the module as others import it."""
    (tmp_path / "experiments").mkdir()
    body = "from jaxlm import run_this_experiment\nprint(__name__)\n"
    body += "def big() -> 'Experiment':\n    pass\n\nif __name__ == '__main__':\n    run_this_experiment()\n"
    (tmp_path / "experiments" / "mine.py").write_text(body)
    (tmp_path / "experiments" / "__init__.py").touch()
    run = [sys.executable, "-m", "experiments.mine", "bigg"]
    found = subprocess.run(run, cwd=tmp_path, env=cli_runs.environment(), capture_output=True, text=True)
    assert found.returncode == 2 and "experiments.mine has no variant 'bigg': did you mean big?" in found.stderr


def test_prompt_and_its_figure(command, workdir, tmp_path):
    (tmp_path / "few.py").write_text(
        "from jaxlm import Prompted\nROWS = [(f'{n}', 'ab'[n % 2]) for n in range(6)]\n"
        "def task():\n    return Prompted(ROWS[:4], ROWS[4:], choices=('a', 'b'), delimiter=' ')\nOTHER = 3\n"
    )
    task, out = f"{tmp_path / 'few.py'}:task", tmp_path / "out.jsonl"
    found = command("prompt", workdir, "--task", task, "--shots", "1,0", "--seeds", 2, "--out", out)
    assert found.code == 0, found.err
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(each["shots"], each["seed"], each["lines"]) for each in records] == [(0, 0, 2), (1, 0, 2), (1, 1, 2)]
    assert "    1 shots: accuracy 0." in found.err and " \u00b1 " in found.err
    for words, message in (
        (
            ("--task", f"{tmp_path / 'few.py'}:OTHER"),
            "is a int, expected MODULE:NAME, a function that returns a jaxlm.Prompted",
        ),
        (("--task", f"{tmp_path / 'few.py'}:nothing"), "has no variant 'nothing'"),
        (("--task", "experiments.prompting"), "is a NoneType, expected MODULE:NAME"),
        (("--task", task, "--shots", "1,x"), "expected an integer of at least 0, found 'x'"),
        (("--task", task, "--regex", "a"), "answers are constrained, choices are calibrated"),
    ):
        refused = command("prompt", workdir, *words)
        assert refused.code in (1, 2) and message in refused.err, refused.err


def test_evaluate_against_itself(command, workdir, tmp_path):
    out = tmp_path / "answers.jsonl"
    found = command("evaluate", workdir, "--against", workdir, "--limit", 2, "--max-tokens", 3, "--out", out)
    assert found.code == 0, found.err
    scores = json.loads(found.lines[-1])
    assert (scores["prompts"], scores["win_rate"], scores["kl"]) == (2, 0.5, 0.0) and scores["judge"] == "reference"
    assert len(out.read_text().splitlines()) == 2
    refused = command("evaluate", workdir, "--judge", "shorter")
    assert refused.code == 2 and "add --against WORKDIR" in refused.err
    refused = command("evaluate", workdir, "--against", workdir, "--judge", "lengthy")
    assert refused.code == 2 and "no experiment 'lengthy'" in refused.err


def test_a_dialogue_of_several_turns_needs_chat(command, workdir):
    found = command("generate", workdir, "--multi-turn")
    assert found.code == 2 and "--multi-turn is one dialogue: add --chat" in found.err
