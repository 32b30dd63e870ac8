"""`jaxlm.load` and `jaxlm.train`: each method gives what the command of the same name prints."""

import json

import pytest
from fixtures import cli_runs

import jaxlm

command, trained, workdir = cli_runs.command, cli_runs.trained, cli_runs.workdir  # fixtures
LINES = ["John did not see the film that I liked", "", "the king did not see the film that I liked"]
STDIN = "".join(f"{line}\n" for line in LINES).encode()


@pytest.fixture
def pipeline(workdir) -> jaxlm.Pipeline:
    return jaxlm.load(workdir)


def test_the_trained_model_is_at_hand(pipeline, workdir):
    assert pipeline.steps == [2, 4] and jaxlm.load(str(workdir), step=2).steps == [2]
    assert pipeline.experiment.model == pipeline.model
    assert pipeline.tokenizer.decode(pipeline.tokenizer.encode(["John"])) == ["John"]
    assert "embedding" in pipeline.params
    with pytest.raises(jaxlm.UserError, match="nowhere does not exist"):
        jaxlm.load(workdir / "nowhere")


def test_predict_and_translate(pipeline, workdir, command):
    answers = pipeline.answers(LINES)
    assert [answer.text for answer in answers] == command("predict", workdir, stdin=STDIN).lines
    records = [json.loads(line) for line in command("predict", workdir, "--jsonl", stdin=STDIN).lines]
    assert [answer.json for answer in answers] == records
    assert pipeline.translate(LINES) == pipeline.predict(LINES) == [answer.text for answer in answers]
    assert pipeline.predict([]) == []
    told: list[int] = []
    greedy = jaxlm.Search(jaxlm.Beam(1), max_len_ratio=0.2, max_len_extra=4, batch_tokens=192, max_source_len=24)
    lines = command("predict", workdir, "--num-beams", "1", stdin=STDIN).lines
    assert pipeline.translate(LINES, greedy, told.append) == lines and sum(told) == 2


def test_constrained(pipeline, workdir, command):
    lines = command("predict", workdir, "--choice", "yes", "--choice", "no", stdin=STDIN).lines
    assert pipeline.constrain(jaxlm.choices(["yes", "no"])).translate(LINES) == lines
    assert set(lines) <= {"yes", "no", ""}


def test_generate(pipeline, workdir, command):
    options = ("--max-tokens", "6", "--num-samples", "2", "--seed", "3", "--top-k", "5", "--stop", "e", "--jsonl")
    lines = command("generate", workdir, "--prompt", LINES[0], *options).lines
    sampler = jaxlm.Sampler(top_k=5)
    samples = pipeline.generate([LINES[0]], sampler, num_samples=2, max_tokens=6, seed=3, stop_strings=["e"])
    assert [vars(sample) for sample in samples] == [json.loads(line) for line in lines]
    (digits,) = pipeline.generate([LINES[0]], max_tokens=6, constraint=jaxlm.regex("[0-9]{2}"))
    assert digits.text.isdigit()


def test_score(pipeline, workdir, command):
    pairs = [(LINES[0], "la bruja"), ("short", "x")]
    stdin = "".join(f"{source}\t{target}\n" for source, target in pairs).encode()
    records = [json.loads(line) for line in command("score", workdir, "--jsonl", stdin=stdin).lines]
    scores = pipeline.score(pairs)
    assert [(score.source, score.text, score.logprob, score.tokens, score.truncated) for score in scores] == [
        tuple(record.values()) for record in records
    ]


def test_evaluate(pipeline, workdir, command):
    printed = json.loads(command("evaluate", workdir, "--split", "again").lines[-1])
    scores = pipeline.evaluate("again")
    assert scores["lines"] == 3 and {name: printed[name] for name in scores} == scores
    with pytest.raises(jaxlm.UserError, match="no split 'dev'"):
        pipeline.evaluate("dev")


def test_precision_and_ensemble(pipeline, workdir, command):
    lines = command("predict", workdir, "--precision", "int8", "--ensemble", workdir, stdin=STDIN).lines
    assert jaxlm.load(workdir, precision="int8", ensemble=[workdir]).translate(LINES) == lines


def test_train(trained, tmp_path):
    """The figures of the command, from the experiment's name and again from the finished run."""
    printed = json.loads(trained[1].lines[-1])
    for _ in range(2):
        figures = jaxlm.train(f"{cli_runs.EXPERIMENT}:tiny", str(tmp_path / "run"))
        assert figures["step"] == 4 and figures["best/valid/bleu"] == printed["best/valid/bleu"]
    assert (tmp_path / "run" / "experiment.json").is_file()
    assert jaxlm.load(tmp_path / "run").translate(LINES) == jaxlm.load(trained[0]).translate(LINES)
