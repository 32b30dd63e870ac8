"""What a report says about one run: its figures over time, its answers, its gradients, where it looked."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from jaxlm.data.files import ReadStats
from jaxlm.errors import UserError
from jaxlm.experiment import TrainedRun
from jaxlm.inference.embed import attention_maps
from jaxlm.report.gradient_flow import gradient_flow
from jaxlm.training.metrics_log import read_metrics
from jaxlm.workdir import Workdir

GRADIENT_FLOW_BATCHES = 4
"""Batches of training data over which the gradient's norm is averaged."""


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """One workdir. `samples`: how many answers to show; `flow`: whether to follow gradients; `texts`: what to read
    with its attention drawn; `layer`, `head`: of a model that only reads, from 1 (None: the last layer, all heads)."""

    workdir: Workdir
    trained: TrainedRun
    num_examples: int
    show_gradient_flow: bool
    attention_texts: tuple[str, ...]
    layer: int | None = None
    head: int | None = None

    @property
    def name(self) -> str:
        """For legends."""
        return self.workdir.folder.resolve().name

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_metrics(self.workdir.metrics_file)

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """(steps, values) of one figure."""
        found = [(line["step"], float(line[metric])) for line in self.metrics if metric in line]
        return [step for step, _ in found], [value for _, value in found]

    def examples(self) -> list[str]:
        """A few lines of what was asked and answered."""
        if not self.num_examples:
            return []
        run = self.trained
        samples = run.experiment.task.show_examples(run, self.num_examples)
        return list(islice(samples, self.num_examples))

    def gradient_flow(self) -> tuple[np.ndarray, np.ndarray]:
        """(distance, norm) on the first training batches; see `jaxlm.report.gradient_flow`."""
        run, parts = self.trained, []
        columns = run.experiment.task.encode_train(run.tokenizer, self.workdir.train_data, ReadStats())
        special = run.tokenizer.special
        batches = run.experiment.batching.batches(columns, run.experiment.seed, special=special)
        for batch in map(batches.__getitem__, range(GRADIENT_FLOW_BATCHES)):
            parts.append(gradient_flow(run.model, run.params, dataclasses.replace(batch, reset_B=None)))
        longest = max(int(distance.max()) for distance, _ in parts) + 1
        total, count = np.zeros(longest), np.zeros(longest)
        for distance, norm in parts:
            total[distance] += norm
            count[distance] += 1
        distance = np.flatnonzero(count)
        return distance, total[distance] / count[distance]

    def attention(self) -> list[dict[str, Any]]:
        """For each text {"source", "target", "weights"}. Raises UserError where there is nothing to draw."""
        if not self.attention_texts:
            return []
        run, task = self.trained, self.trained.experiment.task
        if task.search is None:
            return [found for text in self.attention_texts for found in self._head_weights(text)]
        looking: Any = dataclasses.replace(task, search=dataclasses.replace(task.search, attention=True))  # type: ignore[type-var]
        answers = looking.predict(run, self.attention_texts)
        return [answer.json["attention"] for answer in answers]

    def _head_weights(self, text: str) -> Iterator[dict[str, Any]]:
        """What each head of a layer looks at in a text."""
        run = self.trained
        names, weight_LNSS = attention_maps(run, text)
        layers, heads = weight_LNSS.shape[:2]
        layer = layers if self.layer is None else self.layer
        for name, asked, there in (("layer", layer, layers), ("head", self.head or 1, heads)):
            if not 1 <= asked <= there:
                raise UserError(f"--{name} {asked}: the model of {self.workdir} has 1 to {there}")
        for head in range(1, heads + 1) if self.head is None else [self.head]:
            weights = weight_LNSS[layer - 1, head - 1].tolist()
            yield {"source": names, "target": names, "weights": weights, "title": f"layer {layer}, head {head}"}
