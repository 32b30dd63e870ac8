"""Prompts with shots: their laws, scores against brute force, calibration against NumPy, and what is refused."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from fixtures.chat import dialogue
from fixtures.cli_runs import command  # noqa: F401 (a fixture)
from fixtures.zoo import params_of

from jaxlm.corpora.audit import wilson_interval
from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.chat.dialogue import Dialogue, Turn
from jaxlm.data.chat.encoding import dialogue_columns
from jaxlm.data.chat.template import PLAIN
from jaxlm.data.tokenizers.simple import Bytes, Words
from jaxlm.decode.sampling import Sampler
from jaxlm.decode.score import score_targets
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.grammar.constraint import choices
from jaxlm.inference.generate import GenerationDefaults, GenerationRequest
from jaxlm.inference.translate import Search
from jaxlm.metrics import calibration
from jaxlm.metrics.text import last_number, token_f1
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.ngram import NGram
from jaxlm.models.rnn_lm import RecurrentLM
from jaxlm.nn.rnn.cells import LSTM
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.pipeline.comparison import compare, read_prompts
from jaxlm.pipeline.pipeline import Pipeline
from jaxlm.pipeline.prompting import PromptedModel, PromptEvaluation
from jaxlm.tasks.instruction_tuning import InstructionTuning
from jaxlm.tasks.language_modeling import LanguageModeling
from jaxlm.tasks.prompting import Prompted, ShotOrder
from jaxlm.tasks.translation import Translation
from jaxlm.types import Batch

WORDS = [f"w{n}" for n in range(15)]
ROWS = [(f"{WORDS[n % 11]} {WORDS[n % 7]}", ("yes", "no way")[n % 3 == 0]) for n in range(30)]
TASK = Prompted(ROWS[:20], ROWS[20:], choices=("yes", "no way"), ask="{source} is", delimiter=" . ")
WORD_IDS = Words(24).fit([*WORDS, "yes no way is . "])
GREEDY = GenerationDefaults(Sampler(temperature=0.0), 8)
DECODER = Decoder(24, 8, 2, 12, 1, max_length=64)


def pipeline(model, tokenizer=WORD_IDS, task=None) -> Pipeline:
    task = task or LanguageModeling([], [], [], windows=None)
    experiment = Experiment(task, model, tokenizer)
    return Pipeline(model, params_of(model), tokenizer, experiment, [0])


def texts(shots) -> list[str]:
    return [row["source"] for row in shots]


@pytest.mark.parametrize("balanced", [False, True])
def test_shots_are_nested_and_depend_on_nothing_else(balanced):
    task = replace(TASK, balanced=balanced)
    rows = task.rows(task.test)
    order = ShotOrder(task, task.rows(task.train))
    shuffled = ShotOrder(task, task.rows(task.train)[::-1])
    for row in rows:
        eight = order.shots(row, 8, seed=1)
        assert order.shots(row, 4, seed=1) == eight[:4] and shuffled.shots(row, 8, seed=1) == eight
        assert row["source"] not in texts(eight) and len(set(texts(eight))) == 8
        if balanced:
            assert [sum(shot["target"] == "yes" for shot in eight[:k]) for k in (2, 4, 6)] == [1, 2, 3]
    draws = {tuple(texts(order.shots(row, 4, seed))) for row in rows for seed in range(3)}
    assert len(draws) > 20
    shared = ShotOrder(replace(task, shared_shots=True, repeats=True), task.rows(task.train))
    assert len({tuple(texts(shared.shots(row, 4, 0))) for row in rows}) == 1


def test_shots_of_a_group_may_repeat():
    rows = [{"source": "a", "target": str(n % 2), "episode": str(n // 8)} for n in range(16)]
    task = Prompted(rows, rows[:1], shots_from="episode", repeats=True)
    order = ShotOrder(task, task.rows(rows))
    shots = order.shots(rows[9], 8, 0)
    assert {shot["episode"] for shot in shots} == {"1"} and len(shots) == 8
    with pytest.raises(UserError, match="9 shots: a question has 8 rows of its episode"):
        order.shots(rows[9], 9, 0)


def test_limit_and_order_change_no_figure_of_a_row():
    model = PromptedModel(pipeline(DECODER))
    whole = PromptEvaluation(model, TASK)
    few = PromptEvaluation(model, replace(TASK, test=ROWS[20:][::-1]), limit=4)
    assert few.data[0] == whole.data[0][:4]
    shots = [whole.data[1].shots(row, 4, 0) for row in whole.data[0]]
    prompts = [whole.prompt(*pair) for pair in zip(whole.data[0], shots, strict=True)]
    np.testing.assert_allclose(model.score(prompts)[:4], model.score(prompts[:4]), atol=1e-5)
    assert set(whole(2, 0)) >= {"accuracy", "accuracy_norm", "accuracy_bytes", "accuracy_pmi", "standard_error", "ece"}


MODELS = {"decoder": DECODER, "lstm": RecurrentLM(24, 8, Recurrent(LSTM(8))), "ngram": NGram(24, 3)}


@pytest.mark.parametrize("name", MODELS)
def test_scores_equal_brute_force(name):
    """One pass over prompt and answer, each choice by itself."""
    model, run = MODELS[name], pipeline(MODELS[name])
    prompted, evaluation = PromptedModel(run), PromptEvaluation(PromptedModel(run), TASK)
    prompts = [
        evaluation.prompt(row, evaluation.data[1].shots(row, n, 0)) for n, row in enumerate(evaluation.data[0][:3])
    ]
    scores = prompted.score(prompts)
    for (prompt, answers), score_K in zip(prompts, scores, strict=True):
        for text, score in zip(answers, score_K, strict=True):
            before = WORD_IDS.encode([prompt.turns[0].content])[0].tolist()
            whole = WORD_IDS.encode([prompt.turns[0].content + text])[0].tolist()
            assert whole[: len(before)] == before
            label, ids, valid, scored = (np.zeros((1, 48), kind) for kind in (np.int32, np.int32, bool, bool))
            label[0, : len(whole)], ids[0, : len(whole)], valid[0, : len(whole)] = whole, [2, *whole[:-1]], True
            scored[0, len(before) : len(whole)] = True
            batch = Batch(target_BT=ids, target_valid_BT=valid, label_BT=label, loss_mask_BT=scored)
            assert score == pytest.approx(float(score_targets(model, run.params, batch).logprob_B[0]), abs=2e-5)


def test_a_model_with_a_source_scores_answers_to_it():
    model = EncoderDecoder(24, 8, 2, 12, 1, 1, dropout=0.0, max_length=64)
    task = Translation([], [], [], search=Search(max_source_len=20))
    run = pipeline(model, task=task)
    evaluation = PromptEvaluation(PromptedModel(run), TASK, limit=3)
    figures = evaluation(4, 0)
    assert figures["dropped_shots"] > 0  # a shot has five tokens
    row = evaluation.data[0][0]
    prompt, answers = evaluation.prompt(row, [])
    expected = [score.logprob for score in run.score([(prompt.turns[0].content, text.strip()) for text in answers])]
    np.testing.assert_allclose(evaluation.model.score([(prompt, answers)])[0], expected, atol=1e-6)


def test_whole_shots_are_dropped_from_the_front_and_a_question_too_long_is_refused():
    model = PromptedModel(pipeline(replace(DECODER, max_length=24)))
    evaluation = PromptEvaluation(model, TASK, limit=2)
    row = evaluation.data[0][0]
    shots = evaluation.data[1].shots(row, 8, 0)
    kept = evaluation.fit(row, shots)
    assert 0 < len(kept) < 8 and kept == shots[-len(kept) :]
    longest = model.num_tokens(evaluation.prompt(row, kept))
    assert longest <= 24 < longest + 4  # a shot has four words or more, and a point
    short = PromptedModel(pipeline(replace(DECODER, max_length=4)))
    with pytest.raises(UserError, match="the question .* has 6 tokens, more than 4"):
        PromptEvaluation(short, TASK).fit(row, shots)


def test_generation_stops_at_strings_and_keeps_to_a_constraint():
    model = PromptedModel(pipeline(DECODER))
    evaluation = PromptEvaluation(model, TASK, "generate", allowed=choices([" yes", " no way"]), limit=4)
    figures = evaluation(2, 0)
    prompts = [evaluation.prompt(row, [])[0] for row in evaluation.data[0]]
    answers = model.answer(prompts, GREEDY, allowed=evaluation.allowed)
    assert {text.strip() for text, _ in answers} <= {"yes", "no way"} and 0 <= figures["exact_match"] <= 1
    assert (last_number("a 1,200.5 b"), last_number("no"), token_f1("The cat", "the dog")) == ("1200.5", "", 0.5)


def test_chat_prompts_have_the_ids_of_the_template():
    """The shots are turns; an answer is scored without its end, unless that is wanted."""
    run = pipeline(Decoder(260, 8, 2, 12, 1, max_length=512), Bytes().fit(), CHAT)
    model = PromptedModel(run, PLAIN)
    evaluation = PromptEvaluation(model, replace(TASK, instruction="Say."))
    row, *shots = TASK.rows(ROWS[:3])
    prompt, texts = evaluation.prompt(row, shots)
    assert [turn.role for turn in prompt.turns] == ["system", *("user", "assistant") * 2, "user"]
    (encoded,) = model.encoder.encode([prompt.with_answer(texts[0])])
    (before,) = model.encoder.encode_prompts([prompt])
    assert [2, *encoded.ids[: len(before) - 1]] == before.tolist()
    score, with_end = model.score([(prompt, texts)]), model.score([(prompt, texts)], with_end=True)
    assert (with_end < score).all() and texts == ("yes", "no way")
    columns = dialogue_columns([encoded], run.tokenizer)
    ((_, batch),) = eval_batches(columns)
    assert with_end[0, 0] == pytest.approx(float(score_targets(run.model, run.params, batch).logprob_B[0]), abs=1e-4)


def test_calibration_equals_its_formulas():
    rng = np.random.default_rng(0)
    logprob, empty, gold = rng.normal(size=(40, 3)), rng.normal(size=(40, 3, 3)), rng.integers(0, 3, 40)
    prob = np.exp(logprob) / np.exp(logprob).sum(1, keepdims=True)
    prior = (np.exp(empty) / np.exp(empty).sum(-1, keepdims=True)).mean(1)
    corrected = prob / prior
    np.testing.assert_allclose(
        calibration.softmax(calibration.by_context(logprob, empty)), corrected / corrected.sum(1, keepdims=True)
    )
    np.testing.assert_allclose(calibration.by_batch(logprob), np.log(prob) - np.log(prob).mean(0))
    ece = 0.0
    for low in np.arange(15) / 15:
        inside = (prob.max(1) > low) & (prob.max(1) <= low + 1 / 15)
        if inside.any():
            ece += inside.mean() * abs((prob.argmax(1) == gold)[inside].mean() - prob.max(1)[inside].mean())
    figures = calibration.choice_figures(prob, gold)
    assert figures["ece"] == pytest.approx(ece)
    assert figures["brier"] == pytest.approx(
        np.mean([np.sum((p - np.eye(3)[g]) ** 2) for p, g in zip(prob, gold, strict=True)])
    )


def test_the_standard_error_is_that_of_the_mean():
    evaluation = PromptEvaluation(PromptedModel(pipeline(DECODER)), TASK)
    figures = evaluation(0, 0)
    n, p = figures["lines"], figures["accuracy"]
    assert figures["standard_error"] == pytest.approx(np.sqrt(p * (1 - p) / (n - 1)))
    for kind in ("context", "batch"):
        assert 0 <= replace(evaluation, calibrate=kind)(1, 0)["brier"] <= 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ask": "{source.x}"}, "'source.x' is not the name of a field"),
        ({"ask": "{source!r}"}, "'source' is not the name"),
        ({"ask": "{"}, "a brace of the text is doubled"),
        ({"answer": " yes"}, r"expected \{target\} in it"),
        ({"choices": ("yes",)}, "expected none, or several"),
    ],
)
def test_bad_tasks_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Prompted([], [], **fields)


def test_bad_rows_are_refused():
    with pytest.raises(UserError, match="has 3 texts, expected the fields source, target"):
        TASK.rows([("a\tb", "yes")])
    with pytest.raises(UserError, match="no field 'nothing', only source, target"):
        replace(TASK, ask="{nothing}").dialogue({"source": "a", "target": "yes"}, [])
    with pytest.raises(UserError, match="target='maybe': expected one of the choices yes, no way"):
        TASK.candidates({"source": "a", "target": "maybe"})


SAMPLED = GenerationDefaults(Sampler(), 6)
CHAT = InstructionTuning([], [], [], chat_template=PLAIN)
ASKED = list(read_prompts([dialogue(f"q{n}", f"w{n}") for n in range(6)]))


def judge(prompts, answers, rows):
    assert len(prompts) == len(answers) == len(rows) == 12 and all(isinstance(row, Dialogue) for row in rows)
    return [float(len(answer)) for answer in answers]


def test_a_model_against_itself_ties_and_against_another_has_a_divergence():
    run = pipeline(Decoder(260, 8, 2, 12, 1, max_length=64), Bytes().fit(), CHAT)
    figures, records = compare((run, run), ASKED, judge, SAMPLED, 3)
    assert figures["win_rate"] == 0.5 and figures["ties"] == 1.0 and figures["kl"] == pytest.approx(0.0, abs=1e-5)
    assert [record["answer"] for record in records] == [record["answer_against"] for record in records]
    other = replace(run, params=jax.tree.map(lambda x: x * 1.5, run.params))
    figures, records = compare((run, other), ASKED, "longer", SAMPLED, 3)
    wins = [np.sign(len(r["answer"].split()) - len(r["answer_against"].split())) for r in records]
    assert figures["win_rate"] == pytest.approx(np.mean(wins) / 2 + 0.5)
    assert figures["interval"] == wilson_interval(6 * figures["win_rate"], 6)
    swapped, _ = compare((other, run), ASKED, "longer", SAMPLED, 3)
    assert swapped["win_rate"] == pytest.approx(1 - figures["win_rate"]) and figures["kl"] != 0


@pytest.mark.parametrize("bad", [lambda *_: [1.0], lambda p, a, r: [np.nan] * len(a), lambda *_: 1 / 0])
def test_a_bad_judge_is_refused(bad):
    run = pipeline(Decoder(260, 8, 2, 12, 1, max_length=64), Bytes().fit(), CHAT)
    with pytest.raises(UserError, match="the judge .* (gave|raised)"):
        compare((run, run), ASKED, bad, SAMPLED, 0)


def test_each_turn_of_a_dialogue_is_answered_after_all_before_it():
    run = pipeline(Decoder(260, 8, 2, 12, 1, max_length=256), Bytes().fit(), CHAT)
    request = GenerationRequest(Sampler(temperature=0.0), max_tokens=4, chat=run.chat_format("S."))
    first, second = run.chat(["one", " ", "two"], request)
    whole = Dialogue((Turn("system", "S."), Turn("user", "one"), Turn("assistant", first.text), Turn("user", "two")))
    ((text, _),) = PromptedModel(run, PLAIN).answer([whole], replace(GREEDY, max_tokens=4))
    assert second.text.strip() == text.strip()
