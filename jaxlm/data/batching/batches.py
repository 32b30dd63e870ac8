"""The interface of all batches: an indexable whose batch k is a pure function of (columns, configuration, seed, k)."""

from dataclasses import dataclass
from typing import Any

from jaxlm.data.ragged import Columns
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds
from jaxlm.types import Batch


class Batches:
    """Base of the batches that `batching.batches(columns, seed)` returns for every batching.

    `batches[k]` is batch k, made of NumPy arrays. Objects can be read by several threads and pickled to
    worker processes.
    """

    @property
    def row_multiple(self) -> int:
        """The greatest number that divides the rows of every batch."""
        raise NotImplementedError

    def statistics(self) -> dict[str, float]:
        """Numbers for the log: examples, shapes, batches of an epoch, tokens and positions of a batch, padding."""
        raise NotImplementedError

    def host_part(self, k: int, host_index: int, num_hosts: int) -> Batch:
        """The rows of batch k that one of `num_hosts` hosts needs: an equal share each."""
        from jax import tree

        return tree.map(lambda leaf: leaf[host_slice(len(leaf), host_index, num_hosts)], self[k])

    def __getitem__(self, k: int) -> Batch:
        return self.host_part(k, 0, 1)


@dataclass(frozen=True)
class HostShard:
    """The part of every batch that host `host_index` of `num_hosts` needs."""

    batches: Batches
    host_index: int = 0
    num_hosts: int = 1

    def __getitem__(self, k: int) -> Batch:
        if self.num_hosts == 1:
            return self.batches[k]
        return self.batches.host_part(k, self.host_index, self.num_hosts)


class RunningTextBatches(Batches):
    """Base of the batches of running text: all have one shape."""

    config: Any
    batches_per_epoch: int

    @property
    def row_multiple(self) -> int:
        return self.config.rows

    def _statistics(self, examples: int, tokens: float, side: str) -> dict[str, float]:
        """`tokens`: real tokens of a batch, counted on `side`."""
        padding = 1 - tokens / self.config.tokens
        counts: dict[str, float] = {"examples": examples, "dropped": 0, "truncated": 0, "shapes": 1}
        counts |= {"batches_per_epoch": self.batches_per_epoch, "tokens": tokens, "positions": self.config.tokens}
        return counts | {f"padding_{side}": padding, "padding_both": padding}


@dataclass(frozen=True)
class RunningText:
    """Base of the batchings that cut running text into rows.

    Attributes:
      rows, length: a batch has `rows` rows of `length` positions.
    """

    length: int
    rows: int

    @property
    def tokens(self) -> int:
        """Positions of a batch."""
        return self.rows * self.length

    def batches(self, columns: Columns, seed: int = 0, *, special: SpecialIds = OWN_SPECIAL_IDS) -> RunningTextBatches:
        """The batches of the text in column "target", whose special ids are `special`."""
        raise NotImplementedError


def host_slice(rows: int, host_index: int, num_hosts: int) -> slice:
    """The rows of one host."""
    return slice(rows * host_index // num_hosts, rows * (host_index + 1) // num_hosts)
