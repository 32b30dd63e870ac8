"""The thread that decodes the lines of all requests together."""

import itertools
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxlm.data.batching.eval_batches import collate_rows, round_up_length
from jaxlm.data.ragged import Ragged
from jaxlm.decode.continuous_batching import BeamQueue, search_params
from jaxlm.decode.request import DecodeRequest
from jaxlm.inference.base import TrainedModel
from jaxlm.inference.translate import Search, decode_request, max_source_tokens, search_config, to_hypotheses


class _Shape(NamedTuple):
    """The lines of one padded length and number of answers: the search of some, the requests of those that wait."""

    queue: BeamQueue
    waiting: deque[tuple[np.ndarray, DecodeRequest]]


class DecodingThread(threading.Thread):
    """Continuous batching of lines. An answer equals that of `translate` with the same search to the bit, for any other
    lines; `search.fixed_batch` is needed. The future of a line may be canceled at any time: its place is then free.
    """

    def __init__(self, trained: TrainedModel, search: Search):
        super().__init__(name="decoding", daemon=True)
        self._trained, self._search = trained, search
        self._params: Any = None
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._futures: dict[int, Future] = {}
        self._numbers, self._condition = itertools.count(), threading.Condition()
        self._arrived: list[tuple[str, int, Future]] = []
        self._is_closed = False

    def submit(self, line: str, n_best: int) -> Future:
        """The future list of `n_best` hypotheses for a line that is not blank, best first."""
        future: Future = Future()
        with self._condition:
            self._arrived.append((line, n_best, future))
            self._condition.notify()
        return future

    def close(self) -> None:
        """End the thread after its present step; lines without an answer get none."""
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        self.join()

    def run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._is_closed or self._arrived or self._futures)
                if self._is_closed:
                    return
                arrived, self._arrived = self._arrived, []
            numbered = [(next(self._numbers), line, n_best, future) for line, n_best, future in arrived]
            self._futures |= {number: future for number, _, _, future in numbered}
            try:
                for number, line, n_best, _ in numbered:
                    self._add(line, n_best, number)
                for shape in self._shapes.values():
                    self._advance(shape)
            except Exception as error:  # such as a device without memory: the next lines may be shorter
                self._shapes.clear()
                for number in list(self._futures):
                    self._end(number, error)
            idle = [key for key, shape in self._shapes.items() if not (shape.waiting or shape.queue.rows)]
            for key in idle[4:]:  # the caches of four stay allocated
                del self._shapes[key]

    def _add(self, line: str, n_best: int, number: int) -> None:
        column = Ragged.from_rows(self._trained.tokenizer.encode([line]))
        limit = max_source_tokens(self._trained.model, self._search)
        length = round_up_length(min(int(column.lengths[0]) + 1, limit), limit)
        search = replace(self._search, beam=replace(self._search.beam, num_return_sequences=n_best))
        model, row_1 = self._trained.model, np.array([number])
        batch = collate_rows({"source": column}, np.zeros(1, int), length, self._trained.tokenizer.special)
        request = decode_request(self._trained, search, row_1, batch)
        if (n_best, length) not in self._shapes:
            config = search_config(self._trained, search, length)
            if self._params is None:
                self._params = search_params(model, self._trained.params, request, config)
            queue = BeamQueue(model, self._params, config, search.fixed_batch or 1)
            self._shapes[n_best, length] = _Shape(queue, deque())
        self._shapes[n_best, length].waiting.append((row_1, request))

    def _advance(self, shape: _Shape) -> None:
        queue = shape.queue
        for row in [row for row in queue.rows if self._futures[row].cancelled()]:
            queue.release(row)
            del self._futures[row]
        while shape.waiting and queue.num_free:
            row_1, request = shape.waiting.popleft()
            if self._futures[row_1[0]].cancelled():
                del self._futures[row_1[0]]
            else:
                queue.admit(row_1, request)
        rows, hypotheses = queue.step() if queue.rows else ((), {})
        for index, number in enumerate(rows):
            self._end(int(number), to_hypotheses(hypotheses, index, self._trained.tokenizer))

    def _end(self, number: int, result: object) -> None:
        future = self._futures.pop(number)
        if future.set_running_or_notify_cancel():
            future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)
