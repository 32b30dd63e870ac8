"""A sequence model whose every row is its own random language: a table of logits by the last tokens read.

The tables travel as `batch.source_BS` (float32, [B, contexts * V]), so that many random cases are rows of one batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from jaxlm.types import Array, Batch


@struct.dataclass
class TableState:
    table_BCV: Array
    context_B: Array


@dataclass(frozen=True)
class TableModel:
    """size: ids; order: how many of the last tokens choose the row of the table (0 before them)."""

    size: int
    order: int = 2

    @property
    def contexts(self) -> int:
        return self.size**self.order

    def apply(self, variables: Any, *args: Any, method: str) -> Any:
        return getattr(self, method)(*args)

    def start(self, batch: Batch, capacity: int) -> TableState:
        rows = batch.source_BS.shape[0]
        return TableState(batch.source_BS.reshape(rows, self.contexts, self.size), jnp.zeros(rows, jnp.int32))

    def extend(self, tokens_BT: Array, state: TableState, valid_BT: Array) -> tuple[Array, TableState]:
        rows = jnp.arange(tokens_BT.shape[0])

        def read(context_B: Array, column: tuple[Array, Array]) -> tuple[Array, Array]:
            token_B, valid_B = column
            context_B = jnp.where(valid_B, (context_B * self.size + token_B) % self.contexts, context_B)
            return context_B, context_B

        context_B, context_TB = lax.scan(read, state.context_B, (tokens_BT.T, valid_BT.T))
        return state.table_BCV[rows[:, None], context_TB.T], state.replace(context_B=context_B)

    def readout(self, features: Array) -> Array:
        return features

    def batch(self, table_BCV: np.ndarray) -> Batch:
        return Batch(source_BS=np.asarray(table_BCV, np.float32).reshape(len(table_BCV), -1))

    def context(self, tokens: list[int]) -> int:
        """The row of the table after these tokens, prompt included: for references in NumPy."""
        context = 0
        for token in tokens:
            context = (context * self.size + token) % self.contexts
        return context


@dataclass(frozen=True)
class Cases:
    """Random languages and prompts, a case a row."""

    model: TableModel
    table_BCV: np.ndarray
    prompt_BP: np.ndarray
    prompt_valid_BP: np.ndarray

    @property
    def batch(self) -> Batch:
        return self.model.batch(self.table_BCV)

    def take(self, rows: np.ndarray) -> "Cases":
        return Cases(self.model, self.table_BCV[rows], self.prompt_BP[rows], self.prompt_valid_BP[rows])

    def logprob(self, row: int, temperature: float = 1.0) -> Callable[[list[int]], np.ndarray]:
        """The float32 log-probabilities of the next token of a row, as a function of the generated tokens."""
        logits_CV = self.table_BCV[row] / np.float32(temperature)
        peak_C1 = logits_CV.max(axis=-1, keepdims=True)
        logprob_CV = logits_CV - (np.log(np.exp(logits_CV - peak_C1).sum(axis=-1, keepdims=True)) + peak_C1)
        prompt = list(self.prompt_BP[row][self.prompt_valid_BP[row]])
        return lambda tokens: logprob_CV[self.model.context([*prompt, *tokens])]


def random_cases(model: TableModel, rng: np.random.Generator, rows: int, prompt: int = 1) -> Cases:
    """Even rows: normal logits. Odd rows: whole numbers, for ties that any summation order gives exactly.

    In an odd row one id of each context has logit 0 and the others at most -20: in float32 the log-sum-exp is 0, so
    that log-probabilities are those whole numbers, in XLA as in NumPy. Some ids are impossible. Prompts of 1 to
    `prompt` tokens are padded on the left or on the right.
    """
    shape = (rows, model.contexts, model.size)
    table_BCV = rng.normal(size=shape) * 2
    tied_BCV = -rng.integers(20, 24, size=shape).astype(np.float64)
    np.put_along_axis(tied_BCV, rng.integers(0, model.size, size=shape[:2])[:, :, None], 0.0, axis=2)
    table_BCV[1::2] = tied_BCV[1::2]
    impossible_BCV = (rng.random(shape) < 0.05) & (table_BCV < table_BCV.max(axis=2, keepdims=True))
    table_BCV = np.where(impossible_BCV, -np.inf, table_BCV).astype(np.float32)
    prompt_BP = rng.integers(0, model.size, (rows, prompt)).astype(np.int32)
    start_B1 = rng.integers(0, prompt, (rows, 1))
    left_BP = np.arange(prompt)[None, :] >= start_B1
    valid_BP = np.where(rng.random((rows, 1)) < 0.5, left_BP, left_BP[:, ::-1])
    return Cases(model, table_BCV, prompt_BP, valid_BP)
