"""Supervised fine-tuning: the laws of the loss mask, and from dialogues to answers through the commands."""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from fixtures.chat import dialogue
from fixtures.cli_runs import command  # noqa: F401 (a fixture)
from fixtures.tiny_run import stored
from fixtures.zoo import params_of

from jaxlm.data.batching.bucketing import Buckets, Packing
from jaxlm.data.batching.collate import collate
from jaxlm.data.batching.eval_batches import eval_batches
from jaxlm.data.batching.lm_windows import Windows
from jaxlm.data.chat.dialogue import Dialogue, Turn
from jaxlm.data.chat.encoding import DialogueEncoder, cut_prompt
from jaxlm.data.chat.template import CHATML, PLAIN
from jaxlm.data.files import ReadStats
from jaxlm.data.sources.base import Source
from jaxlm.data.tokenizers.simple import Bytes, ByteTokenizer
from jaxlm.decode.sampling import Sampler
from jaxlm.decode.score import score_targets
from jaxlm.distributed.sharding import data_mesh
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.inference.generate import GenerationDefaults
from jaxlm.models.decoder import Decoder
from jaxlm.objectives.next_token import NextToken
from jaxlm.optim import AdamW, Constant
from jaxlm.tasks.instruction_tuning import InstructionTuning
from jaxlm.training.loop import train
from jaxlm.workdir import Workdir

MODEL = Decoder(260, 16, 2, 32, 1, max_length=64)
ROWS = (
    dialogue("a?", "one"),
    dialogue("b?", "two", "c?", "six"),
    dialogue("c?", "ten", system="S."),
    dialogue("d", "4"),
)


@dataclass(frozen=True)
class Given(Source[Dialogue]):
    """Dialogues that are given."""

    rows: tuple[Dialogue, ...]

    def read(self, stats: ReadStats) -> Iterator[Dialogue]:
        stats.kept += len(self.rows)
        yield from self.rows

    def describe(self) -> str:
        return "dialogues"


TASK = InstructionTuning(
    Given(ROWS), Given(ROWS), Given(ROWS), generation=GenerationDefaults(Sampler(temperature=0.0), max_tokens=8)
)
EXPERIMENT = Experiment(
    task=TASK,
    model=MODEL,
    tokenizer=Bytes(),
    batching=Packing(length=64, tokens=512),
    optimizer=AdamW(Constant(2e-2, 10)),
    steps=150,
    log_every=50,
    evaluate_every=75,
    checkpoint_every=75,
    best_metric="valid/nll",
)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr("jaxlm.training.setup.data_mesh", functools.partial(data_mesh, 1))


@pytest.fixture(scope="module")
def columns():
    return TASK.encode_train(ByteTokenizer(), None, ReadStats())


@pytest.fixture(scope="module")
def params():
    return params_of(MODEL)


loss_of = jax.jit(lambda params, batch: NextToken()(MODEL, params, batch, None))


def test_no_gradient_reaches_the_label_of_a_prompt(columns, params):
    """Other labels where the mask is False change neither the loss nor the gradient by a bit."""
    ((_, batch),) = eval_batches(columns, 1024)
    changed = replace(batch, label_BT=np.where(batch.loss_mask_BT, batch.label_BT, 77))
    assert (changed.label_BT != batch.label_BT).sum() > batch.loss_mask_BT.sum()
    gradient = jax.jit(jax.value_and_grad(lambda params, batch: NextToken()(MODEL, params, batch, None).total))
    one, other = gradient(params, batch), gradient(params, changed)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), one, other))
    assert int(loss_of(params, batch).count) == sum(len(t.content) + 2 for d in ROWS for t in d.turns if
                                                    t.role == "assistant")  # fmt: skip


def test_the_loss_is_the_mean_over_trained_labels_in_float64(columns, params):
    ((_, batch),) = eval_batches(columns, 1024)
    logit_BTV = np.asarray(jax.jit(lambda params, batch: MODEL.apply({"params": params}, batch))(params, batch), float)
    logprob_BTV = logit_BTV - np.log(np.exp(logit_BTV).sum(-1, keepdims=True))
    label_logprob_BT = np.take_along_axis(logprob_BTV, batch.label_BT[..., None].astype(int), 2)[..., 0]
    loss = loss_of(params, batch)
    np.testing.assert_allclose(float(loss.total), -label_logprob_BT[batch.loss_mask_BT].sum(), rtol=1e-5)


def test_packed_rows_have_the_loss_of_rows_alone(columns, params):
    ((_, alone),) = eval_batches(columns, 1024)
    packed = collate(columns, np.array([0, 2, 1, 3]), np.array([0, 0, 1, 2]), (3, 0, 64), packed=True)
    loss, apart = (loss_of(params, batch) for batch in (packed, alone))
    assert packed.target_segment_BT.max() == 2 and loss.count == apart.count
    np.testing.assert_allclose(float(loss.total), float(apart.total), rtol=1e-5)


def test_micro_batches_add_up_to_the_batch(columns, params):
    """Sums and counts, which an update adds before it divides, though the parts have different numbers of labels."""
    batch = Buckets(tokens=512, lengths=(64,), max_length=64).batches(columns)[0]
    parts = [loss_of(params, jax.tree.map(lambda leaf, n=n: leaf[n::4], batch)) for n in range(4)]
    whole, counts = loss_of(params, batch), [float(part.count) for part in parts]
    assert len(set(counts)) > 1 and sum(counts) == float(whole.count)
    np.testing.assert_allclose(sum(float(part.total) for part in parts), float(whole.total), rtol=1e-5)


def test_scores_are_those_of_the_trained_labels(columns, params):
    ((_, batch),) = eval_batches(columns, 1024)
    scores = score_targets(MODEL, params, batch)
    np.testing.assert_allclose(-scores.logprob_B.sum(), float(loss_of(params, batch).nll), rtol=1e-5)
    assert (np.asarray(scores.count_B) == batch.loss_mask_BT.sum(1)).all()
    assert not np.asarray(scores.token_logprob_BT)[~batch.loss_mask_BT].any()


def test_prompts_are_cut_at_their_beginning():
    encoder = DialogueEncoder(ByteTokenizer(), PLAIN)
    of = dialogue("first " * 9, "1", "second " * 9, "2", "the last question", "3", system="S.")

    def cut(size: int) -> tuple[list[str], int]:
        short = cut_prompt(encoder, of, size)
        (row,) = encoder.encode([short])
        return [turn.content for turn in short.turns], len(row.loss_mask)

    assert cut(400)[0] == [turn.content for turn in of.turns]
    assert cut(150)[0] == ["S.", "second " * 9, "2", "the last question", "3"]
    contents, size = cut(40)
    assert contents == ["S.", "the last question", "3"] and size <= 40
    contents, size = cut(30)
    assert contents == ["S.", "question"[-len(contents[1]) :], "3"] and size == 30
    task, stats = replace(TASK, train=Given((of,)), cut_prompts_to=30), ReadStats()
    columns = task.encode_train(ByteTokenizer(), None, stats)
    assert len(columns["target"][0]) == 29 and stats.notes["prompts cut at their beginning"] == 1


def test_what_the_encoding_counts():
    stats = ReadStats()
    replace(TASK, valid=Given(ROWS[:2])).encode_train(ByteTokenizer(), None, stats)
    assert stats.notes["also in the validation split"] == 2 and 1 < stats.notes["% of the labels trained"] < 99
    with pytest.raises(UserError, match="no label is trained"):
        replace(TASK, train=Given((Dialogue((Turn("user", "q"),)),))).encode_train(ByteTokenizer(), None, stats)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"batching": Windows(length=16, rows=2)}, "Windows cuts running text.*choose batching=Packing"),
        ({"task": replace(TASK, chat_template=None)}, "no chat template, and neither has the model"),
        ({"task": replace(TASK, chat_template=CHATML)}, "no single token for <|im_start|>"),
        ({"task": replace(TASK, train=Given((Dialogue((Turn("tool", "t"), Turn("assistant", "a"))),)),
                          chat_template=replace(PLAIN, roles=PLAIN.roles[:2]))}, "dialogues, dialogue 1: .* no tool"),
    ],
    ids=["windows", "no template", "no control tokens", "role"],
)  # fmt: skip
def test_faults_before_the_first_step(tmp_path, changes, message):
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        train(replace(EXPERIMENT, **changes), tmp_path / "run")


def test_a_bad_pattern_is_named():
    with pytest.raises(UserError, match="answer_pattern '\\(' is not a regular expression"):
        replace(TASK, answer_pattern="(")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxlm.training.setup.data_mesh", functools.partial(data_mesh, 1))
        train(EXPERIMENT, folder)
    return folder


def test_answers_are_learnt_with_their_ends(workdir):
    run = Workdir(workdir).load()
    figures = replace(TASK, answer_pattern="[a-z]+").evaluate(run, "test")
    assert figures["ended"] == figures["exact_match"] == 100.0 and figures["pattern_match"] == 75.0
    assert figures["perplexity"] < 1.2 and figures["answers"] == figures["lines"] == 4
    answers = TASK.predict(run, ["a?", "", "d"])
    assert [answer.text for answer in answers] == ["one", "", "4"] and answers[0].json["reason"] == "stop"


def test_generate_chat(workdir, command):  # noqa: F811
    out = command("generate", workdir, "--chat", "--prompt", "a?", "--temperature", "0")
    assert (out.code, out.lines) == (0, ["one"]), out.err
    out = command("generate", workdir, "--chat", "--system", "S.", "--prompt", "c?", "--temperature", "0", "--jsonl")
    sample = json.loads(out.lines[0])
    assert (sample["text"], sample["reason"], sample["prompt"]) == ("ten", "stop", "c?")
    out = command("generate", workdir, "--system", "S.", "--prompt", "c?")
    assert out.code == 2 and "add --chat" in out.err
    out = command("generate", workdir, "--chat", "--prompt", "long " * 20)
    assert out.code == 1 and "shorten it" in out.err


def test_show_marks_the_trained_tokens(command):  # noqa: F811
    out = command("show", Path(__file__).with_name("tiny_chat.py"), "--example")
    assert out.code == 0, out.err
    assert [line.split()[:2] for line in out.lines[:4]] == [
        ["prompt", "18"], ["loss", "3"], ["prompt", "19"], ["loss", "3"],
    ]  # fmt: skip
    assert "'U' 's'" in out.lines[0] and out.lines[1].endswith("' ' 'A' '<3>'")
    out = command("show", "experiments.quickstart", "--example")
    assert out.code == 1 and "Translation has no dialogues" in out.err


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(workdir, tmp_path):
    from jaxlm.training.state import create_train_state

    train(replace(EXPERIMENT, steps=75), tmp_path / "run")
    train(EXPERIMENT, tmp_path / "run")
    optimizer = EXPERIMENT.optimizer.build(EXPERIMENT.steps)
    abstract = jax.eval_shape(lambda: create_train_state(MODEL, optimizer, next(iter_batches()), EXPERIMENT.seed))
    (a, _), (b, _) = (stored(folder, abstract) for folder in (workdir, tmp_path / "run"))
    assert jax.tree.all(jax.tree.map(np.array_equal, a.params, b.params))


def iter_batches():
    yield EXPERIMENT.batching.batches(TASK.encode_train(ByteTokenizer(), None, ReadStats()))[0]
