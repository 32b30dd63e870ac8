"""Chunks of the positions of a batch: positions in groups that do not cross devices, and a loop over their chunks.

Shape letters of this file: G groups of tokens, M = B T / G positions per group, R positions of a group per chunk.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.distributed.platforms import PlatformChoices
from jaxlm.distributed.sharding import UNCONSTRAINED, constrain
from jaxlm.types import Array

MAX_CHUNK_LOGITS_WIDE = 2**25  # of a chunk that has more than `chunk_logits`, since the features are wide: 128 MiB
TILE = 256  # chunks of accelerators are a multiple of this many positions, for fast products
MAX_UNROLLED_CHUNKS = 4  # of a static loop
SPARSE_CHUNKS = 16  # of all positions, at least, if few are valid: the loop takes those that the valid ones fill


def to_groups(x: Array, row_groups: int, position_groups: int) -> Array:
    """(B, T, ...) -> (G, M, ...), with the groups in the order of the devices that hold rows and positions."""
    (rows, length), trailing = x.shape[:2], x.shape[2:]
    if position_groups == 1:
        return x.reshape(row_groups, -1, *trailing)
    x = x.reshape(row_groups, rows // row_groups, position_groups, length // position_groups, *trailing)
    # (row group, row, position group, position) -> (row group, position group, row, position) -> (G, M)
    return constrain_groups(jnp.swapaxes(x, 1, 2).reshape(row_groups * position_groups, -1, *trailing))


def from_groups(x: Array, shape: tuple[int, ...], row_groups: int, position_groups: int) -> Array:
    """The inverse of the split of positions into groups: (G, M) -> (B, T) = `shape`."""
    if position_groups == 1:
        return x.reshape(shape)
    rows, length = shape
    x = x.reshape(row_groups, position_groups, rows // row_groups, length // position_groups)
    return jnp.swapaxes(x, 1, 2).reshape(shape)


def constrain_groups(x: Array) -> Array:
    """x (G, ...), split over the devices that hold its groups."""
    return constrain(x, "group", *(UNCONSTRAINED,) * (x.ndim - 1))


@dataclass(frozen=True)
class ChunkLoop:
    """A loop over the M positions of each group: `num_chunks` chunks of `size` positions, R, hold all of them.

    is_static: it takes all positions in their own order, in a number of chunks that the compiler knows. Otherwise valid
    positions are sorted to the front, and it takes the chunks that they fill, so that padding costs nothing.
    """

    size: int
    num_chunks: int
    is_static: bool

    @classmethod
    def for_logits(
        cls, positions: int, vocab: int, width: int, choices: PlatformChoices, is_sparse: bool
    ) -> "ChunkLoop":
        """The loop that a platform chooses to compute logits (positions, vocab) from features of this width."""
        # Every chunk reads the output table and adds to its gradient, V x D numbers each, against R x V logits: with R
        # far below D the tables would cost more than the logits (a third of the loss at V = 10,000, D = 650).
        size = max(choices.chunk_logits // vocab, min(width, MAX_CHUNK_LOGITS_WIDE // vocab), 1)
        size = -(-positions // max(round(positions / size), 1))  # chunks of equal size, rounded up
        if choices.static_loss:
            # A multiple of TILE, without a remainder if it need not be less than half of the size for that.
            size = min(size, -(-positions // SPARSE_CHUNKS)) if is_sparse else size
            tiles, count = -(-positions // TILE), -(-positions // size)
            count = next((divisor for divisor in range(count, 2 * count) if tiles % divisor == 0), count)
            size = min(-(-tiles // count) * TILE, positions)
        return cls(size, -(-positions // size), choices.static_loss and not is_sparse)

    def pad(self, x: Array) -> Array:
        """(G, M, ...) -> (G, num_chunks R, ...), with zeros."""
        padding = self.size * self.num_chunks - x.shape[1]
        return jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))

    def run(self, chunk: Callable, features: Array, label_GM: Array, valid_GM: Array, initial: Any) -> Any:
        """Apply carry <- chunk(carry, first position, features, labels, valid mask) to the chunks."""
        size = self.size
        if self.is_static:
            inputs = [self.pad(x) for x in (features, label_GM, valid_GM)]
        else:
            count_G1 = valid_GM.sum(1, keepdims=True, dtype=jnp.int32)
            # Valid positions first, then padded to whole chunks; the loop ends before chunks without valid positions.
            order = self.pad(_valid_first(valid_GM))
            inputs = [_gather_positions(features, order), _gather_positions(label_GM, order)]

        def step(index: Any, carry: Any) -> Any:
            first = index * size
            parts = [jax.lax.dynamic_slice_in_dim(x, first, size, 1) for x in inputs]
            parts += [] if self.is_static else [first + jnp.arange(size)[None] < count_G1]
            return chunk(carry, first, *parts)

        if not self.is_static:
            return jax.lax.fori_loop(0, (count_G1.max() + size - 1) // size, step, initial)
        if self.num_chunks > MAX_UNROLLED_CHUNKS:
            return jax.lax.fori_loop(0, self.num_chunks, step, initial)
        return functools.reduce(lambda carry, index: step(index, carry), range(self.num_chunks), initial)

    def in_order(self, x_GM: Array, valid_GM: Array) -> Array:
        """(G, M) -> (G, num_chunks R), in the order of the loop."""
        return self.pad(x_GM if self.is_static else _gather_positions(x_GM, _valid_first(valid_GM)))

    def inverse(self, valid_GM: Array) -> Callable[[Array], Array]:
        """The map of arrays (G, num_chunks R, ...) in the order of the loop to (G, M, ...) in that of the batch."""
        if self.is_static:
            return lambda x: x[:, : valid_GM.shape[1]]
        position_GM = jnp.argsort(_valid_first(valid_GM), axis=1)  # the inverse permutation
        return lambda x: _gather_positions(x, position_GM)


def _valid_first(valid_GM: Array) -> Array:
    """The positions of each group, valid ones first; stable, so that their order stays."""
    return jnp.argsort(~valid_GM, axis=1, stable=True)


_gather_positions = jax.vmap(lambda x, index_M: jnp.take(x, index_M, axis=0, mode="clip"))
