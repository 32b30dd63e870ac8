"""Frame-semantic parsing: scores of multisets, splits by article, and systems that name frames or write them."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures.zoo import params_of

import jaxlm
from experiments import frames
from experiments.frame_semantics.answers import answer_schema, make_prompt, prompt_sentence, read_answer
from experiments.frame_semantics.models import likeliest_frame
from experiments.frame_semantics.names import FRAMES
from experiments.frame_semantics.scores import frame_figures, score_pairs, score_second_annotator
from experiments.frame_semantics.sentences import (
    FrameDialogues,
    Sentence,
    TaggedFrames,
    read_sentences,
    split_by_article,
    write_answer,
)
from jaxlm.data.tokenizers.simple import ByteTokenizer
from jaxlm.errors import UserError
from jaxlm.grammar.constraint import schema_constraint
from jaxlm.inference.base import TrainedModel
from jaxlm.inference.generate import GenerationDefaults
from jaxlm.models.decoder import Decoder
from jaxlm.tasks.instruction_tuning import InstructionTuning

SENTENCES = [
    Sentence("en_a001", ("He", "went", "and", "went"), ((1, "Motion"), (3, "Motion"))),
    Sentence("en_a002", ('"I', "say"), ((1, "Statement"),)),
    Sentence("en_b001", ("We", "Went", "home"), ((1, "Motion"),)),
]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Six articles of two sentences, twice: two annotators who agree."""
    rows = [
        {"id": f"en_{article}{number:03}", "tokens": ["They", "went", "and", word], "frames":
         [{"trigger": 1, "frame": "Motion"}, {"trigger": 3, "frame": frame}]}
        for article in "abcdef" for number, (word, frame) in enumerate((("said", "Statement"), ("killed", "Killing")))
    ]  # fmt: skip
    monkeypatch.setenv("JAXLM_DATA", str(tmp_path))
    (tmp_path / "frames_other").mkdir()
    for name in ("gavin", "sarah"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"frames_other/en_out_{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


def test_lexicon(files):
    """Counted, evaluated and asked: what it knows it names, and a word it has never seen has no frame."""
    jaxlm.train(frames.lexicon(), files / "run")
    run = jaxlm.load(files / "run")
    figures = run.evaluate("test")
    assert figures["pair"]["f1"] == figures["second_annotator"]["pair"] == pytest.approx(1.0)
    assert figures["macro"]["frames"] == 0 and figures["seen"] == {"pairs": 8, "recall": 1.0}
    (answer,) = run.experiment.task.predict(run, ["Kings went killed"])
    assert answer.text == "O Motion Killing" and answer.json["frames"] == [("Motion", "went"), ("Killing", "killed")]


@pytest.fixture
def writing(files):
    """The task of writing, and a decoder with random parameters."""
    splits = [FrameDialogues(split, frames="violent") for split in ("train", "valid", "test")]
    task = frames.FrameWriting(*splits, generation=GenerationDefaults(max_tokens=40))
    model = Decoder(260, 8, 2, 8, 1, max_length=128)
    return task, TrainedModel(model, params_of(model), ByteTokenizer())


def test_every_answer_is_a_list_of_pairs(writing):
    """Also of a model that has learned nothing: a frame of the set and a word of the sentence."""
    task, trained = writing
    answers = task.predict(trained, ["They went", ""])
    assert answers[1].text == "" and answers[0].json["frames"] is not None
    assert all(frame in FRAMES["violent"] and word in ("They", "went") for frame, word in answers[0].json["frames"])


def test_figures_of_what_is_written(writing, monkeypatch):
    """Four sentences; two of them have a frame of the set."""
    task, trained = writing
    texts = ["[]", '[["Killing", "killed"], ["Attack", "mars"]]', "x", "[]"]
    monkeypatch.setattr(frames.FrameWriting, "write", lambda self, trained, lines, constrained: texts)
    monkeypatch.setattr(InstructionTuning, "evaluate", lambda self, trained, split: {"split": split})
    figures = task.evaluate(trained, "test")["unconstrained"]
    assert (figures["format"], figures["hallucinated_triggers"], figures["triggers"]) == (75.0, 1, 2)
    assert figures["pair"] == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5})
    assert figures["second_annotator"]["pair"] == pytest.approx(1.0)


def test_splits_of_other_rotations_are_refused(files):
    task = frames.lexicon().task
    with pytest.raises(UserError, match="rotations"):
        replace(task, train=TaggedFrames("train", 1)).check()
    with pytest.raises(UserError, match="rotation 5: expected 0 to 4"):
        TaggedFrames("train", 5)


def test_a_frame_needs_half_of_the_probability():
    """The frames together, not one of them: p = (.48, .26, .26) and (.52, .48, 0)."""
    logits = np.log([[[0.48, 0.25, 0.27], [0.52, 0.47, 0.01]]])
    assert likeliest_frame(logits).tolist() == [[2, 0]]


def test_figures_of_frames():
    gold = [[("Motion", "go")] * 4, [("Motion", "went"), ("Killing", "kill")]]
    figures = frame_figures([[("Motion", "go")] * 4, []], gold, {"Motion"})
    assert figures["macro"] == {"frames": 1, "f1": pytest.approx(8 / 9)}
    assert figures["seen"] == {"pairs": 5, "recall": 0.8} and figures["unseen"] == {"pairs": 1, "recall": 0.0}


def test_scores_are_of_multisets():
    scores = score_pairs([[("Motion", "went")], [("Motion", "say")]], [s.pairs for s in SENTENCES[:2]])
    assert scores["pair"] == pytest.approx((1 / 2, 1 / 3, 2 / 5))
    assert scores["frame"] == pytest.approx((1 / 2, 1 / 3, 2 / 5))
    assert scores["trigger"] == pytest.approx((1, 2 / 3, 4 / 5))
    assert score_pairs([[]], [[]])["pair"] == (0, 0, 0)


def test_articles_are_not_divided():
    parts = split_by_article([*SENTENCES, Sentence("en_c001", ("a",), ()), Sentence("en_d001", ("b",), ())], 0)
    assert {name: [s.name for s in part] for name, part in parts.items()} == {
        "test": ["en_a001", "en_a002", "en_b001"], "valid": ["en_c001"], "train": ["en_d001"]
    }  # fmt: skip


def test_answers_and_prompts():
    answer = write_answer(SENTENCES[1].pairs)
    assert answer == '[["Statement", "say"]]' and read_answer(answer) == SENTENCES[1].pairs
    assert read_answer("[]") == [] and read_answer('[["a"]]') is None and read_answer("x") is None
    assert read_answer('[["a", 1]]') is None and read_answer("3") is None
    prompt = make_prompt(SENTENCES[1], ["Motion", "Statement"], SENTENCES[:1], SENTENCES)
    assert prompt_sentence(prompt) == SENTENCES[1].text == '"I say' and "- Motion: went, Went\n" in prompt
    assert schema_constraint(answer_schema(["Motion"])).source_words == 1
    json.dumps(answer_schema(["Motion"]))


@pytest.mark.data
def test_the_second_annotator(data_root):
    """The agreement of the two annotators, which bounds what a system can reach."""
    first = read_sentences()
    count, scores = score_second_annotator(first)
    assert (len(first), count) == (500, 400)
    assert [round(scores[part][2], 2) for part in ("pair", "frame", "trigger")] == [0.68, 0.69, 0.82]
