"""Batches of a mixture: each row is a row of the batches of one source, which has an order and epochs of its own."""

import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from jaxlm.data.batching.batches import Batches, host_slice
from jaxlm.data.batching.bucketing import Packing
from jaxlm.data.ragged import Columns
from jaxlm.data.sources.mixed import MixedColumn, MixedOrder
from jaxlm.data.tokenizers.base import SpecialIds
from jaxlm.errors import UserError
from jaxlm.types import Batch

MANY_EPOCHS = 4
"""Repeating data costs almost nothing up to here (Muennighoff et al. 2023)."""


def make_batches(batching: Any, columns: Columns, seed: int, special: SpecialIds) -> Batches:
    """The batches of the columns, also of a mixture. Raises UserError if its rows depend on each other."""
    column = columns.get("target")
    if not isinstance(column, MixedColumn):
        return batching.batches(columns, seed, special=special)
    if isinstance(batching, Packing):
        rows = batching.tokens // batching.length // batching.row_multiple * batching.row_multiple
        one_row: Any = replace(batching, tokens=batching.length, row_multiple=1)
    elif hasattr(batching, "rows") and not getattr(batching, "carry_rows", 0):
        rows, one_row = batching.rows, replace(batching, rows=1)
    else:
        raise UserError(
            f"{batching} of a mixture: each row has the text of one source, so rows must be of one length and carry no "
            "state: choose Windows(carry_state=False), Packing or a batching for denoising"
        )
    names = [source.describe() for source in column.mixture.sources]
    lanes = [np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()),)) for name in names]
    parts = [
        one_row.batches({**columns, "target": part}, int(lane.generate_state(1)[0]), special=special)
        for part, lane in zip(column.parts, lanes, strict=True)
    ]
    return MixedBatches(tuple(parts), column.order(rows), rows, tuple(names))


@dataclass(frozen=True, eq=False)
class MixedBatches(Batches):
    """Batches of `rows` rows; `parts[i][j]` is row j of source i, a batch of one row."""

    parts: tuple[Batches, ...]
    order: MixedOrder
    rows: int
    names: tuple[str, ...]

    @property
    def row_multiple(self) -> int:
        return self.rows

    def host_part(self, k: int, host_index: int, num_hosts: int) -> Batch:
        import jax

        part = host_slice(self.rows, host_index, num_hosts)
        places = zip(*self.order.rows(k * self.rows + part.start, part.stop - part.start), strict=True)
        rows = [self.parts[source][int(row)] for source, row in places]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)

    @cached_property
    def _statistics(self) -> list[dict[str, float]]:
        return [part.statistics() for part in self.parts]

    def statistics(self) -> dict[str, float]:
        share, parts = self.order.weight_KS[0], self._statistics
        means = {n: float(sum(w * s[n] for w, s in zip(share, parts, strict=True))) for n in parts[0]}
        sums = {n: sum(s[n] for s in parts) for n in ("examples", "dropped", "truncated", "batches_per_epoch")}
        sums["batches_per_epoch"] /= self.rows
        return means | sums | {name: means[name] * self.rows for name in ("tokens", "positions")} | {"shapes": 1}

    def longest_example(self) -> dict[str, int]:
        longest = [part.longest_example() for part in self.parts]
        return {name: max(of[name] for of in longest) for name in longest[0]}

    def table(self, steps: int) -> list[dict[str, Any]]:
        """Of each source in a run of so long: its share of the rows, its tokens, and its epochs."""
        source_N, _ = self.order.rows(0, steps * self.rows)
        counts = np.bincount(source_N, minlength=len(self.parts)).tolist()
        return [
            {"source": name, "weight": count / (steps * self.rows), "tokens": round(count * statistics["tokens"])}
            | {"epochs": count / statistics["batches_per_epoch"]}
            for name, count, statistics in zip(self.names, counts, self._statistics, strict=True)
        ]

    def describe(self, steps: int) -> str:
        """The table as text, with a warning for sources that are repeated too often."""
        lines = []
        for row in self.table(steps):
            often = f"; more than {MANY_EPOCHS} epochs teach less and less" if row["epochs"] > MANY_EPOCHS else ""
            counts = f"{row['weight']:.2%} of the rows, {row['tokens']:,} tokens, {row['epochs']:.2f} epochs"
            lines.append(f"  {row['source']}: {counts}{often}")
        return "\n".join(["mixture:", *lines])
