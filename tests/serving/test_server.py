"""`jaxlm serve`: the answers of the commands to the bit, with any requests beside them; refusals; clients that go."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest
from fixtures import cli_runs
from fixtures.zoo import params_of

import jaxlm
from jaxlm.inference.translate import to_answer, translate

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from fixtures.http_server import BATCH, JSON, LIMITS, ask, served  # noqa: E402

command, trained, workdir = cli_runs.command, cli_runs.trained, cli_runs.workdir  # fixtures
LINES = ["the green witch", "John", "", "the film", "a king saw it", "I slept"]


@pytest.fixture(scope="module")
def shared():
    """What the tests of this file use together, under "pipeline" and "port"; the server ends after them."""
    with ExitStack() as stack:
        yield {"stack": stack}


@pytest.fixture
def pipeline(trained, shared):
    if "pipeline" not in shared:
        shared["pipeline"] = jaxlm.load(trained[0])
    return shared["pipeline"]


@pytest.fixture
def port(pipeline, shared):
    if "port" not in shared:
        shared["port"] = shared["stack"].enter_context(served(pipeline))
    return shared["port"]


def expected(pipeline, lines, n_best=1):
    search = pipeline.experiment.task.search
    beam = replace(search.beam, num_return_sequences=n_best)
    answers = translate(pipeline, lines, replace(search, beam=beam, fixed_batch=BATCH))
    return [json.loads(json.dumps(to_answer(*pair).json)) for pair in zip(lines, answers, strict=True)]


def test_answers_equal_those_of_translate_beside_any_others(port, pipeline):
    """To the bit: scores too. Every fifth request is broken, and some clients go before their answer."""
    wanted = {n_best: expected(pipeline, LINES, n_best) for n_best in (1, 2)}

    def one(number):
        index, n_best = number % len(LINES), 1 + number % 2
        if number % 5 == 4:
            return ask(port, "/v1/translate", b'{"text": ')[0] == 400
        if number % 7 == 6:
            return vanish(port, LINES[index])
        status, body = ask(port, "/v1/translate", {"text": LINES[index], "n_best": n_best})
        return status == 200 and body["answers"] == [wanted[n_best][index]]

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(one, range(36)))
    assert ask(port, "/v1/translate", {"text": LINES})[1]["answers"] == wanted[1]
    assert idle(port)


def vanish(port, line):
    """Send a request and close the connection."""
    body = json.dumps({"text": line}).encode()
    head = "POST /v1/translate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return True


def idle(port):
    """True as soon as no request is in progress."""
    for _ in range(200):
        if ask(port, "/health")[1] == {"status": "ok", "requests": 0}:
            return True
        time.sleep(0.05)
    return False


def test_canceled_lines_free_their_places(pipeline):
    """More lines are canceled than there are places, while they wait and while they are decoded."""
    from jaxlm.serving.decoding import DecodingThread

    decoding = DecodingThread(pipeline, replace(pipeline.experiment.task.search, fixed_batch=BATCH))
    early = [decoding.submit("the green witch", 1) for _ in range(9)]
    assert all(future.cancel() for future in early[:8])
    decoding.start()
    late = [decoding.submit("the green witch", 1) for _ in range(9)]
    for future in late[:8]:
        future.cancel()
    assert early[8].result(60) == late[8].result(60)
    decoding.close()
    assert not decoding._futures


def test_a_search_that_fails_ends_its_lines_alone(pipeline, monkeypatch):
    """The lines get the error, and the next ones their answers."""
    from jaxlm.serving import decoding

    def fail(*_):
        raise MemoryError("full")

    thread = decoding.DecodingThread(pipeline, replace(pipeline.experiment.task.search, fixed_batch=BATCH))
    thread.start()
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode_request", fail)
        with pytest.raises(MemoryError):
            thread.submit("the film", 1).result(60)
    assert thread.submit("the film", 1).result(60)[0].text == expected(pipeline, ["the film"])[0]["prediction"]
    thread.close()


def test_details_of_a_translation(port, pipeline):
    body = {"text": LINES[0], "n_best": 2, "attention": True, "token_logprobs": True}
    (answer,) = ask(port, "/v1/translate", body)[1]["answers"]
    attention = answer["attention"]
    assert len(attention["weights"]) == len(attention["target"]) and len(attention["source"]) == len(LINES[0]) + 1
    for one in answer["hypotheses"]:
        assert len(one["pieces"]) == len(one["token_logprobs"]) == one["tokens"]
        assert sum(one["token_logprobs"]) == pytest.approx(one["logprob"], rel=1e-5)


def test_completions_equal_generate(port, pipeline):
    """Also piece by piece, and with a string that ends a text."""
    body = {"prompt": LINES[0], "temperature": 0.7, "seed": 3, "max_tokens": 8}
    sampler = jaxlm.Sampler(0.7)
    one, two = pipeline.generate([LINES[0]], sampler, num_samples=2, max_tokens=8, seed=3)
    status, answer = ask(port, "/v1/completions", body | {"n": 2})
    assert status == 200 and [choice["text"] for choice in answer["choices"]] == [one.text, two.text]
    assert answer["usage"]["completion_tokens"] == one.tokens + two.tokens
    status, text = ask(port, "/v1/completions", body | {"stream": True})
    *events, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    choices = [json.loads(event)["choices"][0] for event in events]
    assert done == "[DONE]" and "".join(choice["text"] for choice in choices) == one.text
    assert choices[-1]["finish_reason"] in ("stop", "length") and choices[0]["finish_reason"] is None
    (stopped,) = ask(port, "/v1/completions", body | {"stop": one.text[2]})[1]["choices"]
    assert stopped["text"] == one.text[: one.text.index(one.text[2])]


def test_scores_equal_score(port, pipeline):
    pairs = [("the film", "la bruja"), ("John", "Juan")]
    body = {"source": [source for source, _ in pairs], "text": [text for _, text in pairs]}
    scores = ask(port, "/v1/score", body)[1]["scores"]
    for score, pair in zip(scores, pairs, strict=True):
        assert score == json.loads(json.dumps(vars(pipeline.score([pair])[0])))


@pytest.mark.parametrize(
    "path, body, status, message",
    [
        ("/v1/translate", b"", 400, "not JSON"),
        ("/v1/translate", b'{"text": "a"', 400, "not JSON"),
        ("/v1/translate", b"[1]", 400, "expected an object"),
        ("/v1/translate", b'{"text": "\xff"}', 400, "not UTF-8"),
        ("/v1/translate", b'{"text": "\\ud800"}', 400, "surrogate"),
        ("/v1/translate", b"[" * 200 + b"]" * 200, 400, "200 levels, expected at most 100"),
        ("/v1/translate", b'{"text": "a", "text": "b"}', 400, "twice"),
        ("/v1/translate", {}, 400, "lacks the field 'text'"),
        ("/v1/translate", {"text": 3}, 400, "body.text: expected a string"),
        ("/v1/translate", {"text": ["a", None]}, 400, "body.text"),
        ("/v1/translate", {"text": []}, 400, "1 to 6 texts, found 0"),
        ("/v1/translate", {"text": ["a"] * 7}, 400, "1 to 6 texts, found 7"),
        ("/v1/translate", {"text": "a\nb"}, 400, "line break"),
        ("/v1/translate", {"text": "a" * 24}, 400, "25 tokens, the model reads 24"),
        ("/v1/translate", {"text": "a" * 2000}, 413, "2,000 bytes"),
        ("/v1/translate", {"text": "a", "beams": 2}, 400, "no field 'beams'"),
        ("/v1/translate", {"text": "a", "n_best": 3}, 400, "expected 1 to 2, found 3"),
        ("/v1/translate", {"text": "a", "n_best": True}, 400, "body.n_best"),
        ("/v1/completions", {"prompt": "a", "temperature": -1}, 400, "body.temperature: expected 0 to 100"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 31}, 400, "expected 1 to 30"),
        ("/v1/completions", {"prompt": "a", "model": "other"}, 404, "no model 'other'"),
        ("/v1/completions", {"prompt": "a", "n": 2, "stream": True}, 400, "one text at a time"),
        ("/v1/completions", {"prompt": "a", "logprobs": 1}, 400, "no field 'logprobs'"),
        ("/v1/score", {"text": "a"}, 400, "body.source: missing"),
        ("/v1/score", {"text": "a", "source": ["a", "b"]}, 400, "2 texts, expected 1"),
        ("/v1/embeddings", {"input": "a"}, 404, "this run has /v1/translate"),
        ("/v1/models", {"text": "a"}, 405, "expected GET"),
    ],
)
def test_refusals(port, path, body, status, message):
    got, answer = ask(port, path, body)
    assert got == status and message in answer["error"]["message"] and answer["error"]["code"] == status


def test_refusals_of_headers_and_loads(pipeline, port):
    assert ask(port, "/v1/translate", {"text": "a"}, method="PUT")[0] == 405
    assert ask(port, "/v1/translate")[0] == 405 and ask(port, "/nowhere")[0] == 404
    assert ask(port, "/v1/translate", b'{"text": "a"}', {})[0] == 415
    assert ask(port, "/v1/translate", {"text": "a"}, JSON | {"Host": "example.org"})[0] == 421
    with served(pipeline, replace(LIMITS, max_requests=0), token="geheimnis ß") as other:
        assert ask(other, "/health")[0] == 200 and "<html lang" in ask(other, "/")[1]
        assert ask(other, "/v1/translate", {"text": "a"})[0] == 401
        right = JSON | {"Authorization": "Bearer geheimnis ß".encode(), "Host": "example.org"}
        assert ask(other, "/v1/models", None, right)[1]["data"][0]["id"] == "tiny"
        assert ask(other, "/v1/translate", {"text": "a"}, right)[0] == 503
    with served(pipeline, replace(LIMITS, timeout=1e-4)) as other:
        status, answer = ask(other, "/v1/score", {"source": "a", "text": "b"})
        assert status in (408, 504) and idle(other)


def test_a_language_model():
    """Completions of its prompts, scores without sources, and vectors."""
    tokenizer, model = jaxlm.Bytes().fit([]), jaxlm.Decoder(260, 16, 2, 16, 1, max_length=24)
    experiment = jaxlm.Experiment(jaxlm.LanguageModeling([], [], [], windows=None), model, tokenizer)
    pipeline = jaxlm.Pipeline(model, params_of(model), tokenizer, experiment, [0])
    with served(pipeline) as port:
        assert ask(port, "/v1/models")[1]["data"][0]["endpoints"] == ["/v1/completions", "/v1/score", "/v1/embeddings"]
        (sample,) = pipeline.generate(["a\nb"], max_tokens=5)
        assert ask(port, "/v1/completions", {"prompt": "a\nb", "max_tokens": 5})[1]["choices"][0]["text"] == sample.text
        (score,) = pipeline.score(["abc"])
        assert ask(port, "/v1/score", {"text": "abc"})[1]["scores"][0]["logprob"] == score.logprob
        (item,) = ask(port, "/v1/embeddings", {"input": ["abc"], "pooling": "last"})[1]["data"]
        assert item["embedding"] == pipeline.embed(["abc"], "last")[0].tolist()
        assert ask(port, "/v1/embeddings", {"input": "a", "layer": 7})[0] == 400
        assert ask(port, "/v1/completions", {"prompt": "a" * 24})[0] == 400


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_after_its_answers(workdir, number):
    command = [sys.executable, "-m", "jaxlm", "serve", str(workdir), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=cli_runs.environment())
    lines = iter(server.stderr)
    port = next(int(line.split(":")[2].split(";")[0]) for line in lines if line.startswith("serving at"))
    assert ask(port, "/v1/translate", {"text": "John"})[0] == 200
    with socket.create_connection(("127.0.0.1", port)):  # an idle client
        os.kill(server.pid, number)
        assert server.wait(30) == 0
    assert list(lines) == []
