"""Pre-training from text to answers: hidden tokens, next sentences, spans, prefixes; resumed, judged, by the verbs."""

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from fixtures.cli_runs import command, loaded_once  # noqa: F401 (fixtures)
from fixtures.tiny_run import lines, stored

from jaxlm.data.batching.lm_windows import Windows
from jaxlm.data.files import ReadStats
from jaxlm.data.pretraining.masked_lm import MaskedLMRows
from jaxlm.data.pretraining.span_corruption import PrefixLMWindows, SpanCorruption
from jaxlm.data.pretraining.token_types import mask_token_column, token_flag_columns
from jaxlm.data.sources.text import Documents, Shards
from jaxlm.data.storage.shards import build_shards as prepare_shards
from jaxlm.data.tokenizers.loading import SavedTokenizer
from jaxlm.data.tokenizers.sentencepiece import SentencePiece
from jaxlm.decode.beam_config import Beam
from jaxlm.distributed.sharding import data_mesh
from jaxlm.errors import UserError
from jaxlm.experiment import Experiment
from jaxlm.inference.translate import Search
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder import Encoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.prefix_lm import PrefixLM
from jaxlm.objectives.masked_lm import MaskedLM
from jaxlm.optim import AdamW, Constant
from jaxlm.tasks.language_modeling import LanguageModeling
from jaxlm.tasks.masked_lm import MaskedLanguageModeling
from jaxlm.tasks.span_corruption import T5_SENTINELS, Denoising
from jaxlm.training.loop import train
from jaxlm.training.setup import setup_training
from jaxlm.workdir import Workdir

ANIMALS, COLOURS = ("cat", "dog", "owl"), ("red", "green", "blue")
STORIES = [" ".join(f"the {a} is {c} . the {a} was {c} ." for _ in range(4)) for a in ANIMALS for c in COLOURS]
VOCAB = 48
PIECES = SentencePiece(VOCAB, "bpe", byte_fallback=False, user_defined_symbols=("[MASK]", *T5_SENTINELS[:4]))
ROWS = MaskedLMRows(length=24, rows=8, next_sentence=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Stories, a document a line, and shards of them."""
    folder = tmp_path_factory.mktemp("stories")
    (folder / "stories.txt").write_text("".join(f"{story}\n" for story in STORIES))
    prepare_shards(STORIES, folder / "shards", PIECES.fit(STORIES))
    return folder


@pytest.fixture(autouse=True)
def data(folder, monkeypatch):
    monkeypatch.setenv("JAXLM_DATA", str(folder))
    monkeypatch.setattr("jaxlm.training.setup.data_mesh", functools.partial(data_mesh, 1))  # eight take twice as long


def masked_task(rows: MaskedLMRows) -> MaskedLanguageModeling:
    train, test = Shards("shards"), Documents(("stories.txt",))
    return MaskedLanguageModeling(train, test, test, eval_batching=rows, valid_batches=2, batch_tokens=256)


def masked(**changes) -> Experiment:
    made = Experiment(
        task=masked_task(ROWS),
        tokenizer=SavedTokenizer("shards", VOCAB),
        model=Encoder(VOCAB, 16, 2, 32, 1, max_length=24, nsp_head=True, norm="pre", dropout=0.1),
        batching=ROWS,
        optimizer=AdamW(Constant(1e-2)),
        objective=MaskedLM(),
        steps=6,
        log_every=2,
        evaluate_every=6,
        checkpoint_every=3,
        best_metric="valid/nll",
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    """Long enough to know which colours there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXLM_DATA", str(folder))
        patch.setattr("jaxlm.training.setup.data_mesh", functools.partial(data_mesh, 1))
        place = tmp_path_factory.mktemp("masked") / "run"
        train(masked(steps=120, evaluate_every=120, checkpoint_every=120), place)
    return place


@pytest.mark.slow
def test_resume_is_bit_for_bit(tmp_path):
    """The gaps of a step are those of its number: a run that was broken off is the unbroken one."""
    train(masked(), tmp_path / "whole")
    train(masked(steps=3), tmp_path / "parts")
    train(masked(), tmp_path / "parts")
    abstract = setup_training(masked(), Workdir(tmp_path / "whole"), lambda _: None).compiled.abstract_state
    expected, found = stored(tmp_path / "whole", abstract), stored(tmp_path / "parts", abstract)
    assert expected[1] == found[1] == 6
    jax.tree.map(np.testing.assert_array_equal, expected[0], found[0])
    assert lines(tmp_path / "whole")[-1] == lines(tmp_path / "parts")[-1]


def test_figures_by_hand(trained):
    """Loss, accuracy and the pairs of a split, from all logits at once."""
    run = Workdir(trained).load()
    task, model = run.experiment.task, run.model
    figures = task.evaluate(run, "test")
    columns = token_flag_columns(run.tokenizer, ["[MASK]"]) | {"target": task.test.encode(run.tokenizer, ReadStats())}
    batches = ROWS.batches(columns)
    hits = nll = count = pairs = 0
    apply = jax.jit(lambda batch: (model.apply({"params": run.params}, batch), _told(model, run.params, batch)))
    for batch in (batches[k] for k in range(batches.batches_per_epoch)):
        logits_BSV, told_BC = map(np.asarray, apply(batch))
        asked = batch.token_label_BS >= 0
        logprob = np.asarray(jax.nn.log_softmax(logits_BSV))[asked]
        hits += (logprob.argmax(-1) == batch.token_label_BS[asked]).sum()
        nll -= logprob[np.arange(len(logprob)), batch.token_label_BS[asked]].sum()
        count, pairs = count + len(logprob), pairs + (told_BC.argmax(-1) == batch.class_B).sum()
    assert figures["tokens"] == count and figures["lines"] == 8 * batches.batches_per_epoch
    assert figures["nll"] == pytest.approx(nll / count, rel=1e-4)
    assert figures["accuracy"] == pytest.approx(100 * hits / count)
    assert figures["next_sentence"] == pytest.approx(100 * pairs / figures["lines"])
    assert figures["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-4)
    assert figures["nll"] < 0.7 * math.log(VOCAB), "it learnt something"


def _told(model, params, batch):
    features_BSD = model.apply({"params": params}, batch, method="features")
    return model.apply({"params": params}, features_BSD, batch.source_valid_BS, method="next_sentence_logits")


def test_the_verbs_fill_gaps(trained, command, loaded_once):  # noqa: F811
    """A line for a line; every gap is filled by itself, and the best tokens have probabilities."""
    asked = b"the cat is [MASK] .\n\nno gap\nthe [MASK] is red . the [MASK] was red .\n"
    found = command("predict", trained, stdin=asked)
    assert found.code == 0 and len(found.lines) == 4, found.err
    assert found.lines[1:3] == ["", "no gap"] and "[MASK]" not in found.lines[0] + found.lines[3]
    record = json.loads(command("predict", trained, "--jsonl", stdin=asked).lines[3])
    assert len(record["masks"]) == 2 and record["prediction"] == found.lines[3]
    for gap in record["masks"]:
        shares = [best["probability"] for best in gap]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1.0001
    alone = command("predict", trained, stdin=b"the cat is [MASK] .\n")
    assert alone.lines[0] == found.lines[0], "batch mates leave no trace"
    scores = json.loads(command("evaluate", trained, "--split", "valid").lines[-1])
    assert {"nll", "accuracy", "next_sentence", "perplexity"} <= set(scores)
    refused = command("generate", trained, "--prompt", "the")
    assert refused.code == 2 and "writes no text" in refused.err


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"model": Encoder(VOCAB, 16, 2, 32, 1, max_length=24)},
            "nsp_head = False and num_token_types = 2: set --model.nsp-head",
        ),
        ({"model": Decoder(VOCAB, 16, 2, 32, 1)}, "Decoder cannot fill masks"),
        ({"best_metric": "valid/f1"}, "valid/next_sentence"),
        (
            {"tokenizer": SentencePiece(VOCAB, "bpe", byte_fallback=False)},
            r"no id for '\[MASK\]'|are ids of the tokenizer",
        ),
        (
            {
                "model": Encoder(VOCAB, 16, 2, 32, 1, max_length=24),
                "task": masked_task(replace(ROWS, next_sentence=False)),
            },
            "the model has no head for next sentence prediction",
        ),
        ({"batching": replace(ROWS, length=40)}, "a source of 40 tokens, but the model has 24 positions"),
    ],
)
def test_parts_that_do_not_fit(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        train(masked(**change), tmp_path / "run")


@pytest.mark.slow
def test_full_sentences_without_pairs(tmp_path):
    """As RoBERTa: no pairs, whole words; validation has no figure of the next sentence."""
    rows = MaskedLMRows(length=24, rows=8, masking=replace(ROWS.masking, whole_word_mask=True))
    chosen = masked(batching=rows, steps=2, evaluate_every=2, checkpoint_every=2)
    model = Encoder(VOCAB, 16, 2, 32, 1, max_length=24, num_token_types=1)
    chosen = replace(chosen, model=model, task=replace(chosen.task, eval_batching=rows))
    summary = train(chosen, tmp_path / "run")
    assert "valid/accuracy" in summary and "valid/next_sentence" not in summary


def denoising(rows, model, **changes) -> Experiment:
    texts = Documents(("stories.txt",))
    search = Search(Beam(1), max_len_ratio=0.5, max_len_extra=4, batch_tokens=128, max_source_len=24)
    task = Denoising(texts, texts, texts, eval_batching=rows, sentinels=T5_SENTINELS[:4], search=search)
    parts = {"task": task, "batching": rows, "model": model, "tokenizer": PIECES, "best_metric": "valid/nll"}
    from jaxlm.objectives.next_token import NextToken

    return masked(objective=NextToken(), **parts | changes)


PREFIX = PrefixLM(Decoder(VOCAB, 16, 2, 32, 1, max_length=64), bidirectional_source=True)
TRANSLATOR = EncoderDecoder(VOCAB, 16, 2, 32, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows, model",
    [(SpanCorruption(24, 8), TRANSLATOR), (PrefixLMWindows(16, 8, prefix_steps=2), PREFIX)],
    ids=["spans", "prefix"],
)
def test_completing_texts(tmp_path, rows, model, command):  # noqa: F811
    """Trained, judged on every target token, asked; and what the task says of itself is what the model says."""
    chosen = denoising(rows, model, steps=4, evaluate_every=4, checkpoint_every=4)
    summary = train(chosen, tmp_path / "run")
    scores = json.loads(command("evaluate", tmp_path / "run").lines[-1])
    assert scores["nll"] == pytest.approx(summary["valid/nll"], rel=1e-4)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["nll"]))
    columns = mask_token_column(PIECES.fit(STORIES), T5_SENTINELS[:4])
    columns |= {"target": chosen.task.test.encode(PIECES.fit(STORIES), ReadStats())}
    batches = rows.batches(columns)
    assert scores["tokens"] == sum(batches[k].target_valid_BT.sum() for k in range(batches.batches_per_epoch))
    answers = command("predict", tmp_path / "run", stdin=b"the cat <extra_id_0> green .\n\n")
    assert answers.code == 0 and len(answers.lines) == 2, answers.err
    run = Workdir(tmp_path / "run").load()
    assert len(list(chosen.task.show_examples(run, 2))) == 2


@pytest.mark.slow
def test_a_language_model_on_shards(tmp_path):
    """Documents one after the other, none of which sees another; the figures are those of the text itself."""
    shards, texts = Shards("shards"), Documents(("stories.txt",))
    windows = Windows(16, 4, carry_state=False, isolate_documents=True)
    model = Decoder(VOCAB, 16, 2, 32, 1, position="rotary")
    task = LanguageModeling(shards, shards, texts, windows=windows, sample_tokens=4)
    from jaxlm.objectives.next_token import NextToken

    chosen = masked(task=task, model=model, batching=windows, objective=NextToken(), steps=2, evaluate_every=2)
    train(replace(chosen, checkpoint_every=2), tmp_path / "run")
    run = Workdir(tmp_path / "run").load()
    one, other = (task.evaluate(run, split) for split in ("valid", "test"))
    assert one.pop("split") == "valid" and other.pop("split") == "test"
    assert one == other and one["lines"] == len(STORIES)
    tokens = sum(map(len, run.tokenizer.encode(STORIES))) + len(STORIES)
    assert one["tokens"] == tokens
    alone, joined = (
        replace(task, windows=read).evaluate(run, "test")["nll"]
        for read in (None, Windows(tokens, 1, isolate_documents=True))
    )
    assert joined == pytest.approx(alone, rel=1e-5) and one["nll"] != pytest.approx(alone, rel=1e-5)
