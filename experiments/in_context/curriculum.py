"""A batching in stages: the shortest rows first."""

from bisect import bisect
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from jaxlm import Buckets
from jaxlm.data.batching.batches import PlannedBatches
from jaxlm.data.ragged import Columns
from jaxlm.data.tokenizers.base import OWN_SPECIAL_IDS, SpecialIds


@dataclass(frozen=True)
class Curriculum(Buckets):
    """Buckets one after the other, the shortest rows first: bucket i up to step `ends[i]`, then the last one.

    Each has its rows in their order.
    """

    ends: tuple[int, ...] = ()

    def batches(
        self, columns: Columns, seed: int = 0, divisor: int = 1, *, special: SpecialIds = OWN_SPECIAL_IDS
    ) -> PlannedBatches:
        planned = super().batches(columns, seed, divisor, special=special)
        parts = {field.name: getattr(planned, field.name) for field in fields(PlannedBatches)}
        return CurriculumBatches(**parts, ends=self.ends)


@dataclass(frozen=True)
class StageOrder:
    """`order[k]` is (bucket, items) of batch k, as of `EpochOrder`."""

    sizes: tuple[int, ...]
    rows: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def batches_per_epoch(self) -> float:
        return sum(size / rows for size, rows in zip(self.sizes, self.rows, strict=True))

    def __getitem__(self, k: int) -> tuple[int, np.ndarray]:
        stage = bisect(self.ends, k)
        first = (k - (0, *self.ends)[stage]) * self.rows[stage]
        return stage, (first + np.arange(self.rows[stage])) % self.sizes[stage]


@dataclass(frozen=True, eq=False)
class CurriculumBatches(PlannedBatches):
    """Batches in the order of the stages."""

    ends: tuple[int, ...] = ()

    @cached_property
    def epoch_order(self) -> Any:
        sizes, rows = zip(*((len(bucket.bins), bucket.rows) for bucket in self.buckets), strict=True)
        return StageOrder(sizes, rows, self.ends)
