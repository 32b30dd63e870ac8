"""The contents of a report about one run: metrics, example answers, gradient flow, attention."""

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
"""Training batches over which the gradient norms are averaged."""


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """One workdir and what to show of it.

    Attributes:
      num_examples: answers to show.
      show_gradient_flow: whether to compute the gradient flow.
      attention_texts: the texts whose attention weights are plotted.
      layer, head: of an encoder, from 1 (None: the last layer, all heads).
    """

    workdir: Workdir
    trained: TrainedRun
    num_examples: int
    show_gradient_flow: bool
    attention_texts: tuple[str, ...]
    layer: int | None = None
    head: int | None = None

    @property
    def name(self) -> str:
        """The name of the run in legends."""
        return self.workdir.folder.resolve().name

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_metrics(self.workdir.metrics_file)

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """(steps, values) of one metric."""
        lines = [line for line in self.metrics if metric in line]
        return [line["step"] for line in lines], [float(line[metric]) for line in lines]

    def examples(self) -> list[str]:
        """Some inputs with their answers."""
        if not self.num_examples:
            return []
        run = self.trained
        samples = run.experiment.task.show_examples(run, self.num_examples)
        return list(islice(samples, self.num_examples))

    def gradient_flow(self) -> tuple[np.ndarray, np.ndarray]:
        """(distance, norm) on the first training batches; see `jaxlm.report.gradient_flow`."""
        run, curves = self.trained, []
        columns = run.experiment.task.encode_train(run.tokenizer, self.workdir.train_data, ReadStats())
        special = run.tokenizer.special
        batches = run.experiment.batching.batches(columns, run.experiment.seed, special=special)
        for batch in map(batches.__getitem__, range(GRADIENT_FLOW_BATCHES)):
            curves.append(gradient_flow(run.model, run.params, dataclasses.replace(batch, reset_B=None)))
        distances, norms = (np.concatenate(parts) for parts in zip(*curves, strict=True))
        total, count = np.bincount(distances, norms), np.bincount(distances)
        distance = np.flatnonzero(count)
        return distance, total[distance] / count[distance]

    def attention(self) -> list[dict[str, Any]]:
        """For each text {"source", "target", "weights"}. Raises UserError for a model without attention."""
        if not self.attention_texts:
            return []
        run, task = self.trained, self.trained.experiment.task
        if task.search is None:
            return [weights for text in self.attention_texts for weights in self._head_weights(text)]
        search = dataclasses.replace(task.search, attention=True)  # type: ignore[type-var]
        answers = dataclasses.replace(task, search=search).predict(run, self.attention_texts)  # type: ignore[type-var]
        return [answer.json["attention"] for answer in answers]

    def _head_weights(self, text: str) -> Iterator[dict[str, Any]]:
        """The attention weights of the selected heads of a layer in a text."""
        tokens, weight_LNSS = attention_maps(self.trained, text)
        num_layers, num_heads = weight_LNSS.shape[:2]
        layer = self.layer or num_layers
        for name, value, largest in (("layer", layer, num_layers), ("head", self.head or 1, num_heads)):
            if value > largest:
                raise UserError(f"--{name} {value}: the model of {self.workdir} has 1 to {largest}")
        for head in [self.head] if self.head else range(1, num_heads + 1):
            weights = weight_LNSS[layer - 1, head - 1].tolist()
            yield {"source": tokens, "target": tokens, "weights": weights, "title": f"layer {layer}, head {head}"}
