"""Streaming: the same tokens as in one call, whole characters, stop strings, and the repetition penalty."""

import json

import jax
import numpy as np
import pytest
from fixtures.cli_runs import command, trained, workdir  # noqa: F401 (fixtures)
from fixtures.zoo import ZOO, batch_of, examples, params_of

from jaxlm.data.tokenizers.simple import Bytes, Words
from jaxlm.decode.generate import GenerationConfig, generate, generate_stream
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.sampling import Sampler, apply_repetition_penalty
from jaxlm.errors import UserError
from jaxlm.inference.text_stream import TextStream

ROWS = examples(6)
PROMPT = batch_of(ROWS, 8, 8, target_layout="holes")


GREEDY, FEW, PENALISED = Sampler(0.0), Sampler(0.9, top_k=8), Sampler(1.0, repetition_penalty=1.7)


@pytest.mark.parametrize("name, sampler", [("lstm_lm", GREEDY), ("lstm_lm", FEW), ("transformer", PENALISED)], ids=str)
def test_a_stream_equals_one_call(name, sampler):
    """Tokens, lengths, reasons and log-probabilities; each output is a prefix of the last one."""
    model, params = ZOO[name].model, params_of(ZOO[name].model)
    limit_B = np.array([4, 0, 3, 4, 1, 4])
    request = DecodeRequest(PROMPT, PROMPT.target_BT, PROMPT.target_valid_BT, limit_B, seed=5)
    config = GenerationConfig(4, (3,), sampler)
    expected = generate(model, params, request, config)
    outputs = list(generate_stream(model, params, request, config))
    assert 1 <= len(outputs) <= 4
    np.testing.assert_array_equal(outputs[-1].tokens_BT, expected.tokens_BT)
    np.testing.assert_array_equal(outputs[-1].reason_B, expected.reason_B)
    np.testing.assert_allclose(outputs[-1].token_logprob_BT, expected.token_logprob_BT, atol=1e-5)
    for step, output in enumerate(outputs, start=1):
        np.testing.assert_array_equal(output.tokens_BT[:, :step], expected.tokens_BT[:, :step])
        assert (np.asarray(output.length_B) == np.minimum(expected.length_B, step)).all()


def test_the_repetition_penalty_equals_its_definition():
    logits = np.array([[2.0, -2.0, 0.5, -0.5]], np.float32)
    seen = np.array([[True, True, False, False]])
    np.testing.assert_allclose(apply_repetition_penalty(logits, seen, 2.0), [[1.0, -4.0, 0.5, -0.5]])
    with pytest.raises(UserError, match="repetition_penalty=0"):
        Sampler(repetition_penalty=0.0)


def test_generated_and_prompted_ids_are_penalized():
    """With a huge penalty greedy search repeats no id of the text or the prompt."""
    model, params = ZOO["lstm_lm"].model, params_of(ZOO["lstm_lm"].model)
    request = DecodeRequest(PROMPT, PROMPT.target_BT, PROMPT.target_valid_BT, np.full(6, 8))
    output = generate(model, params, request, GenerationConfig(8, (), Sampler(0.0, repetition_penalty=1e4)))
    plain = generate(model, params, request, GenerationConfig(8, ()))
    tokens_BT = jax.device_get(output.tokens_BT)
    for row, example in zip(tokens_BT, ROWS, strict=True):
        assert len(set(row)) == 8 and not set(row) & set(example.target)
    assert any(len(set(row)) < 8 for row in np.asarray(plain.tokens_BT))


@pytest.mark.parametrize("text", ["año", "a🙂b🙂", "é", "plain", "日本"])
def test_characters_are_shown_whole(text):
    """A byte at a time: no partial character, nothing twice, everything at the end."""
    tokenizer = Bytes().fit()
    ids, shown = tokenizer.encode([text])[0].tolist(), TextStream(tokenizer)
    pieces = [shown.push(ids[: size + 1], last=size + 1 == len(ids)) for size in range(len(ids))]
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces[:-1])
    assert sum(bool(piece) for piece in pieces) == len(text)


def test_invalid_bytes_are_shown_at_the_end():
    tokenizer = Bytes().fit()
    ids, shown = [tokenizer.encode(["é"])[0][0]], TextStream(tokenizer)
    assert shown.push(ids) == "" and shown.push(ids, last=True) == "\ufffd"


def test_a_stop_string_over_several_tokens():
    """Its beginning is held back, shown if the string does not continue, and never shown if it is complete."""
    tokenizer = Bytes().fit()
    shown, pieces = TextStream(tokenizer, ["END"]), []
    ids = tokenizer.encode(["an EN, an END, more"])[0].tolist()
    for size in range(1, len(ids) + 1):
        pieces.append(shown.push(ids[:size], last=size == len(ids)))
        if shown.ended:
            break
    assert "".join(pieces) == "an EN, an " == shown.text and size == len("an EN, an END")
    assert pieces[3] == "" and pieces[4] == "" and pieces[5] == "EN,"


def test_words_are_shown_at_once():
    """Words are joined by spaces; a word never changes, so each is shown at once."""
    tokenizer = Words().fit(["a b c"])
    shown = TextStream(tokenizer)
    assert [shown.push([4]), shown.push([4, 5]), shown.push([4, 5])] == ["a", " b", ""]


def test_the_command_streams_and_stops(workdir, command):  # noqa: F811
    plain = command("generate", workdir, "--prompt", "a witch", "--max-tokens", 12)
    live = command("generate", workdir, "--prompt", "a witch", "--max-tokens", 12, "--stream")
    assert live.code == plain.code == 0, live.err
    assert live.out.decode().split() == plain.out.decode().split()
    text = plain.out.decode().rstrip("\n")
    stop = text[3:5]
    ended = command("generate", workdir, "--prompt", "a witch", "--max-tokens", 12, "--stop", stop, "--jsonl")
    record = json.loads(ended.lines[0])
    assert record["reason"] == "string" and record["text"] == text[: text.index(stop)], (text, record)
