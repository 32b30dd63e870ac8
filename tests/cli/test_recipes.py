"""`jaxlm train translate|lm|classify|tag`: experiments for files of one's own, written without code."""

import csv
import json
import random

import pytest

from jaxlm.cli.main import main
from jaxlm.cli.training.recipes import write_recipe
from jaxlm.errors import UserError
from jaxlm.experiment import load_experiment
from jaxlm.models.properties import abstract_params

rng = random.Random(0)
WORDS = ["".join(rng.choices("abcdefghijklmnop", k=rng.randrange(2, 8))) for _ in range(200)]
SENTENCES = [" ".join(rng.choices(WORDS, k=8)) for _ in range(400)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.en").write_text("\n".join(SENTENCES) + "\n")
    (tmp_path / "b.cs").write_text("\n".join(text.upper() for text in SENTENCES) + "\n")
    with open("reviews.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "class"), *((text + "\n!", str(len(text) % 3)) for text in SENTENCES)])
    with open("data.jsonl", "w") as file:
        file.writelines(json.dumps({"x": text, "y": len(text) % 2, "z": 1}) + "\n" for text in SENTENCES)
    rows = [[f"{word} B-X" if word > "h" else f"{word} O" for word in text.split()] for text in SENTENCES]
    (tmp_path / "ner.txt").write_text("\n\n".join("\n".join(row) for row in rows) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["translate", "--train", "a.en", "b.cs"], {"train": 363}),
        (["lm", "--train", "a.en"], {}),
        (["classify", "--train", "reviews.csv"], {"labels": ("0", "1", "2")}),
        (["classify", "--train", "data.jsonl", "--columns", "x", "y", "--valid", "data.jsonl"], {"train": 400}),
        (["tag", "--train", "ner.txt"], {"labels": ("O", "B-X"), "iob2_spans": True}),
    ],
    ids=["translate", "lm", "classify", "classify_jsonl", "tag"],
)
def test_a_recipe_is_an_experiment_that_fits_the_files(words, expected, folder):
    """Its data can be read, and the tokenizer has the ids of the model; a second start finds the same file."""
    arguments = write_recipe([*words, "--workdir", "runs/mine", "--steps", "7"])
    assert arguments == ["runs/mine.py", "--workdir", "runs/mine", "--steps", "7"]
    experiment = load_experiment("runs/mine.py")
    experiment.task.check()
    tokenizer = experiment.tokenizer.fit(experiment.task.texts())
    assert tokenizer.vocab_size == experiment.model.vocab
    assert abstract_params(experiment.model)
    if "train" in expected:
        assert sum(1 for _ in experiment.task.train) == expected["train"]
    else:
        assert {name: getattr(experiment.task, name) for name in expected} == expected
    assert write_recipe([*words, "--workdir", "runs/mine", "--steps", "7"]) == arguments


def test_an_edited_file_is_not_overwritten(folder):
    write_recipe(["lm", "--train", "a.en"])
    (folder / "runs/lm.py").write_text("# mine\n")
    with pytest.raises(UserError, match=r"runs/lm\.py exists and is not what this command writes: train it"):
        write_recipe(["lm", "--train", "a.en"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("translate --train a.en", "translate with a.en: expected two files"),
        ("translate --train a.en missing.cs", "missing.cs was not found"),
        ("classify --train a.en", "expected a table that ends in .csv"),
        ("classify --train data.jsonl", "choose two of its columns with --columns"),
        ("classify --train reviews.csv --columns text label", "lacks the column 'label'"),
        ("tag --train a.en --columns 0 9", "expected at least 10"),
        ("lm", "--train"),
    ],
    ids=lambda value: None,
)
def test_mistakes_are_named(words, message, folder, capsys):
    assert main(["train", *words.split()]) in (1, 2)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_recipe_trains(folder, capsys):
    words = ["train", "classify", "--train", "reviews.csv", "--workdir", "runs/mine", "--steps", "2"]
    assert main(words) == 0
    assert "runs/mine.py is the experiment" in capsys.readouterr().err
