"""The answers to requests: the methods of a `Pipeline` on JSON, canceled when nobody waits for them any longer."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from jaxlm import runtime
from jaxlm.config.checks import MAX_SEED
from jaxlm.errors import UserError
from jaxlm.inference.base import token_texts
from jaxlm.inference.embed import unwrap_trunk
from jaxlm.inference.generate import SAMPLE_BATCH, GenerationRequest, Sample
from jaxlm.inference.translate import Hypothesis, answer_attention_weights, to_answer
from jaxlm.models.properties import max_target_positions
from jaxlm.pipeline.pipeline import Pipeline
from jaxlm.serving.decoding import DecodingThread
from jaxlm.serving.fields import CURE, SAMPLER_FIELDS, Limits, RequestError, number_of, texts_of
from jaxlm.tasks.base import NoTask
from jaxlm.tasks.language_modeling import LanguageModeling
from jaxlm.tasks.translation import Translation

MAX_PROGRAMS = 64  # settings of sampling whose compiled programs are kept


class Answers:
    """The endpoints: path -> coroutine function of the fields of a body. `batch` lines are translated at a time."""

    def __init__(self, pipeline: Pipeline, name: str, limits: Limits, batch: int):
        self.pipeline, self.name, self.limits = pipeline, name, limits
        self._pool, self._settings = ThreadPoolExecutor(4, "call"), set[Any]()
        task: Any = pipeline.experiment.task
        self.endpoints: dict[str, Callable] = {}
        self._decoding: Any = None
        if type(task).predict is Translation.predict and not task.search.constraint:
            self._decoding = DecodingThread(pipeline, replace(task.search, fixed_batch=batch))
            self._decoding.start()
            self.endpoints["/v1/translate"] = self.translate
        elif not isinstance(task, NoTask | LanguageModeling):  # these have no answer to a line
            self.endpoints["/v1/predict"] = self.predict
        if task.input_kind:
            self.endpoints |= {"/v1/completions": self.complete, "/v1/score": self.score}
        with contextlib.suppress(UserError):  # of a model without vectors
            unwrap_trunk(pipeline)
            self.endpoints["/v1/embeddings"] = self.embed

    @property
    def model(self) -> dict[str, Any]:
        """The model in OpenAI's form, with what it can do."""
        task: Any = self.pipeline.experiment.task
        about = {"input_kind": task.input_kind, "max_n_best": task.search.beam.num_beams if task.search else 1}
        return {"id": self.name, "object": "model", "owned_by": "jaxlm", "endpoints": list(self.endpoints)} | about

    def close(self) -> None:
        """End the threads, whose requests have been canceled."""
        if self._decoding:
            self._decoding.close()
        self._pool.shutdown(cancel_futures=True)

    async def translate(self, body: dict[str, Any]) -> dict[str, Any]:
        """The records of `predict --jsonl` with this `n_best`, and the log-probability of each token on request."""
        search: Any = self.pipeline.experiment.task.search
        lines, n_best = self._lines(body, "text"), number_of(body, "n_best", 1, search.beam.num_beams, 1)
        texts, blank = filter(str.strip, lines), [Hypothesis("", 0.0, 0.0, 0, "blank", ())] * n_best
        futures = [asyncio.wrap_future(self._decoding.submit(line, n_best)) for line in texts]
        decoded = iter(await asyncio.gather(*futures))
        answers = [next(decoded) if line.strip() else blank for line in lines]
        records = [to_answer(line, hypotheses).json for line, hypotheses in zip(lines, answers, strict=True)]
        weights = partial(answer_attention_weights, self.pipeline, search=search)
        for line, record, hypotheses in zip(lines, records, answers, strict=True):
            if body.get("attention"):
                (record["attention"],) = await self._call(weights, [line], hypotheses[:1])
            for one, hypothesis in zip(record["hypotheses"], hypotheses, strict=False):
                if body.get("token_logprobs"):
                    one["pieces"] = token_texts(self.pipeline.tokenizer.side("target"), hypothesis.ids)
                    one["token_logprobs"] = hypothesis.token_logprobs
        return {"answers": records}

    async def predict(self, body: dict[str, Any]) -> dict[str, Any]:
        """The records of `predict --jsonl`, each as if its line were alone."""
        answers = await self._call_each(self.pipeline.answers, self._lines(body, "text"))
        return {"answers": [answer.json | {"prediction": answer.text} for answer in answers]}

    async def score(self, body: dict[str, Any]) -> dict[str, Any]:
        """The records of `score --jsonl --per-token`, each as if its text were alone."""
        texts: Sequence[Any] = texts_of(body, "text", self.limits.max_texts)
        if ("source" in body) != (self.pipeline.experiment.task.input_kind == "source"):
            problem = "the model has none" if "source" in body else "missing, the model scores texts given their source"
            raise UserError(f"the body.source: {problem}: {CURE}")
        if "source" in body:
            sources = texts_of(body, "source", self.limits.max_texts)
            if len(sources) != len(texts):
                raise UserError(f"the body.source: {len(sources)} texts, expected {len(texts)}, as many as in text")
            texts = list(zip(sources, texts, strict=True))
        return {"scores": [vars(score) for score in await self._call_each(self.pipeline.score, texts)]}

    async def embed(self, body: dict[str, Any]) -> dict[str, Any]:
        """The vectors of `embed`, each as if its text were alone; with pooling "token" a list of vectors."""
        self._check_model(body)
        texts = texts_of(body, "input", self.limits.max_texts)
        embed = partial(self.pipeline.embed, pooling=body.get("pooling", "mean"), layer=body.get("layer"))
        vectors = [vector.tolist() for vector in await self._call_each(embed, texts)]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        usage = dict.fromkeys(("prompt_tokens", "total_tokens"), self._count(texts))
        return {"object": "list", "data": data, "model": self.name, "usage": usage}

    async def complete(self, body: dict[str, Any]) -> "dict[str, Any] | AsyncGenerator[dict[str, Any], None]":
        """The samples of `generate` in OpenAI's form; with `stream` an iterator of their pieces."""
        prompts, request = self._read_completion(body)
        if body.get("stream"):
            if len(prompts) * request.num_samples > 1:
                raise UserError("the body.stream: one text at a time: send one prompt, and leave n out")
            return self._stream(prompts[0], request)
        # Texts are read token by token although nobody sees the pieces: a canceled call ends at its next token.
        draw = partial(self._draw, request=request, on_text=lambda piece: None)
        samples = [sample for prompt in prompts for sample in await self._call(draw, prompt)]
        choices = [_choice(index, sample.text, sample) for index, sample in enumerate(samples)]
        read, new = self._count(prompts), sum(sample.tokens for sample in samples)
        usage = {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}
        return self._completion(choices) | {"usage": usage}

    def _read_completion(self, body: dict[str, Any]) -> tuple[list[str], GenerationRequest]:
        self._check_model(body)
        prompts, limits = self._lines(body, "prompt"), self.limits
        for name, most in (("temperature", 100), ("repetition_penalty", 100), ("top_k", MAX_SEED)):
            number_of(body, name, 0, most, 0)
        given = {name: body[name] for name in SAMPLER_FIELDS if name in body}
        sampler = replace(self.pipeline.generation_defaults.sampler, **given)
        seed, samples = number_of(body, "seed", 0, MAX_SEED, 0), number_of(body, "n", 1, SAMPLE_BATCH, 1)
        max_tokens = number_of(body, "max_tokens", 1, limits.max_tokens, None)
        stop = texts_of(body, "stop", limits.max_texts) if body.get("stop") else ()
        self._settings.add((sampler, max_tokens))
        if len(self._settings) > MAX_PROGRAMS:
            self._settings.clear()
            jax.clear_caches()
        return prompts, GenerationRequest(sampler, seed, samples, max_tokens, tuple(stop))

    def _draw(self, prompt: str, request: GenerationRequest, on_text: Callable[[str], None]) -> list[Sample]:
        return list(self.pipeline.generate_stream([prompt], request, on_text))

    async def _stream(self, prompt: str, request: GenerationRequest) -> AsyncGenerator[dict[str, Any], None]:
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        loop: Any = asyncio.get_running_loop()
        draw = partial(self._draw, on_text=partial(loop.call_soon_threadsafe, pieces.put_nowait))
        drawn = asyncio.ensure_future(self._call(draw, prompt, request))
        drawn.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield self._completion([_choice(0, piece)])
            (sample,) = await drawn
            yield self._completion([_choice(0, "", sample)])
        finally:
            drawn.cancel()

    def _completion(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": f"cmpl-{time.time_ns():x}", "object": "text_completion", "created": int(time.time())}
        return head | {"model": self.name, "choices": choices}

    async def _call_each(self, function: Callable[[list], Any], items: Sequence[Any]) -> list[Any]:
        return [(await self._call(function, [item]))[0] for item in items]

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function that runs in a thread; if this coroutine is canceled, it ends at its next batch."""
        is_canceled = threading.Event()

        def check() -> None:
            if is_canceled.is_set():
                raise CancelledError

        def run() -> Any:
            with runtime.call_between_batches(check):
                check()
                return function(*arguments)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, run)
        finally:
            is_canceled.set()

    def _count(self, texts: Sequence[str]) -> int:
        return sum(map(len, self.pipeline.tokenizer.encode(texts)))

    def _check_model(self, body: dict[str, Any]) -> None:
        if (model := body.get("model", self.name)) != self.name:
            raise RequestError(404, f"the body.model: no model {model!r:.60}; this server has {self.name!r}")

    def _lines(self, body: dict[str, Any], name: str) -> list[str]:
        """The texts of a field. Raises UserError for one that is too long, or a line break if the model reads lines."""
        task, model = self.pipeline.experiment.task, self.pipeline.model
        is_text = task.input_kind == "text"
        texts = texts_of(body, name, self.limits.max_texts, one_line=not is_text)
        limit = max_target_positions(model) if is_text else task.max_input_tokens(model)
        sizes = map(len, self.pipeline.tokenizer.encode(texts)) if limit else ()
        if limit and (longest := max(sizes) + 1) > limit:
            raise UserError(f"the body.{name}: a text of {longest} tokens, the model reads {limit}: shorten it")
        return texts


def _choice(index: int, text: str, sample: Sample | None = None) -> dict[str, Any]:
    reason = sample and ("length" if sample.reason == "length" else "stop")
    return {"text": text, "index": index, "logprobs": None, "finish_reason": reason}
