"""What a report says about one run: its figures over time, its answers, its gradients, where it looked."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.text import BadLines
from jaxlm.errors import UserError
from jaxlm.flow import gradient_flow
from jaxlm.log import read_metrics
from jaxlm.tasks.embedding import self_attention
from jaxlm.types import Batch
from jaxlm.workdir import Trained

FLOW_BATCHES = 4
"""Batches of training data over which the gradient's norm is averaged."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One workdir. `samples`: how many answers to show; `flow`: whether to follow gradients; `texts`: what to read
    with its attention drawn; `layer`, `head`: of a model that only reads, from 1 (None: the last layer, all heads)."""

    folder: Path
    trained: Trained
    samples: int
    flow: bool
    texts: tuple[str, ...]
    layer: int | None = None
    head: int | None = None

    @property
    def name(self) -> str:
        """For legends."""
        return self.folder.name or str(self.folder.resolve().name)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_metrics(self.folder)

    def curve(self, figure: str) -> tuple[list[int], list[float]]:
        """(steps, values) of one figure."""
        found = [(line["step"], float(line[figure])) for line in self.metrics if figure in line]
        return [step for step, _ in found], [value for _, value in found]

    def answers(self) -> list[str]:
        """A few lines of what was asked and answered."""
        if not self.samples:
            return []
        run = self.trained
        samples = run.experiment.task.samples(run.experiment.model, run.params, run.tokenizer, self.samples)
        return list(islice(samples, self.samples))

    def gradient_flow(self) -> tuple[np.ndarray, np.ndarray]:
        """(distance, norm) on the first training batches; see `jaxlm.flow`."""
        run, parts = self.trained, []
        columns = run.experiment.task.columns(run.tokenizer, self.folder / "data" / "train", BadLines())
        plan = run.experiment.batching.plan(columns, run.experiment.seed)
        for batch in _some(plan, columns):
            parts.append(gradient_flow(run.experiment.model, run.params, dataclasses.replace(batch, begins_B=None)))
        longest = max(int(distance.max()) for distance, _ in parts) + 1
        total, count = np.zeros(longest), np.zeros(longest)
        for distance, norm in parts:
            total[distance] += norm
            count[distance] += 1
        distance = np.flatnonzero(count)
        return distance, total[distance] / count[distance]

    def attention(self) -> list[dict[str, Any]]:
        """For each text {"source", "target", "weights"}. Raises UserError where there is nothing to draw."""
        if not self.texts:
            return []
        run, task = self.trained, self.trained.experiment.task
        if task.search is None:
            return [found for text in self.texts for found in self._heads(text)]
        looking: Any = dataclasses.replace(task, search=dataclasses.replace(task.search, attention=True))  # type: ignore[type-var]
        answers = looking.predict(run.experiment.model, run.params, run.tokenizer, self.texts)
        return [answer.record["attention"] for answer in answers]

    def _heads(self, text: str) -> Iterator[dict[str, Any]]:
        """What each head of a layer looks at in a text."""
        run = self.trained
        names, weight_LNSS = self_attention(run.experiment.model, run.params, run.tokenizer, text)
        layers, heads = weight_LNSS.shape[:2]
        layer = layers if self.layer is None else self.layer
        for name, asked, there in (("layer", layer, layers), ("head", self.head or 1, heads)):
            if not 1 <= asked <= there:
                raise UserError(f"--{name} {asked}: the model of {self.folder} has 1 to {there}")
        for head in range(1, heads + 1) if self.head is None else [self.head]:
            weights = weight_LNSS[layer - 1, head - 1].tolist()
            yield {"source": names, "target": names, "weights": weights, "title": f"layer {layer}, head {head}"}


def _some(plan: Any, columns: Any) -> list[Batch]:
    from jaxlm.data.batching import Plan
    from jaxlm.data.collate import Batches

    batches = Batches(columns, plan) if isinstance(plan, Plan) else plan
    return [batches[k] for k in range(FLOW_BATCHES)]
