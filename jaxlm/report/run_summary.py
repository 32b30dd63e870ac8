"""The contents of a report about one run: metrics, example answers, gradient flow, attention."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cached_property, partial
from itertools import islice
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.batching.mixture import make_batches
from jaxlm.data.files import ReadStats
from jaxlm.errors import UserError
from jaxlm.experiment import TrainedRun
from jaxlm.inference.embed import attention_maps
from jaxlm.nn.rnn.layers import Recurrent
from jaxlm.nn.transformer.layer_stack import Stack
from jaxlm.training.metrics_log import read_metrics
from jaxlm.types import Array, Batch, Params
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
        """(distance, norm) on the first training batches; see `jaxlm.report.run_summary`."""
        run, curves = self.trained, []
        columns = run.experiment.task.encode_train(run.tokenizer, self.workdir.train_data, ReadStats())
        special = run.tokenizer.special
        batches = make_batches(run.experiment.batching, columns, run.experiment.seed, special)
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


Phase = Literal["start", "extend"]


def gradient_flow(model: Any, params: Params, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """(distance, norm), by increasing distance: the mean over rows of |d loss_T / d h_t|, T the last label.

    h_t is the top hidden state of the recurrent network that reads the source or, in a model without a source, the
    target. For a Transformer, which has no such state, it is the input of the first layer: embedding plus position. The
    distance counts the valid tokens after t up to the last target token; a source is followed by the whole target.
    In a recurrent network d h_T / d h_t is a product of T - t Jacobians. If their singular values stay below 1, it
    decays geometrically, and long-distance dependencies cannot be learned (Hochreiter 1991; Bengio, Simard and Frasconi
    1994; Pascanu et al. 2013, section 2). The derivative is the total one, through everything that depends on h_t: that
    with respect to a perturbation, zero, which is added to h_t before the recurrence continues.
    Raises UserError for a model with neither a `Recurrent` nor a `Stack`.
    """
    phase, shape = _find_perturbed_state(model, params, batch)
    grad_BTD = np.asarray(_perturbation_grad(model, phase, shape, params, batch))
    distance_BT, valid_BT = _distances_to_loss(batch, phase, shape[1])
    valid_BT &= np.asarray(batch.target_valid_BT).any(1, keepdims=True)
    norm_BT = np.sqrt(np.square(grad_BTD.astype(np.float64)).sum(-1))
    count = np.bincount(distance_BT[valid_BT])
    total = np.bincount(distance_BT[valid_BT], norm_BT[valid_BT])
    distance = np.flatnonzero(count)
    return distance, total[distance] / count[distance]


def _find_perturbed_state(model: Any, params: Params, batch: Batch) -> tuple[Phase, tuple[int, ...]]:
    """The phase of the perturbation, reading the source or else the target, and its shape (B, T, D)."""
    if not hasattr(model, "extend"):
        raise UserError(f"{type(model).__name__} does not predict token by token: it has no loss at T to differentiate")
    for phase in ("start", "extend"):
        shapes: list[tuple[int, ...]] = []
        jax.eval_shape(partial(_last_losses, model, phase, None, shapes), params, batch)
        if shapes:
            return phase, shapes[0]
    raise UserError(
        f"{type(model).__name__} has no recurrent network and no stack of layers: gradient flow is defined for models "
        "with a jaxlm.nn Recurrent or Stack"
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def _perturbation_grad(model: Any, phase: Phase, shape: tuple[int, ...], params: Params, batch: Batch) -> Array:
    """d loss_T / d h_t of every row, (B, T, D): the gradient of the sum, since rows are independent."""

    def total(perturbation_BTD: Array) -> Array:
        return _last_losses(model, phase, perturbation_BTD, [], params, batch).sum()

    return jax.grad(total)(jnp.zeros(shape))


def _last_losses(
    model: Any, phase: Phase, perturbation_BTD: Array | None, shapes: list, params: Params, batch: Batch
) -> Array:
    """-log p of each row's last label (B,), 0 in a row without labels. Appends the shape of h to `shapes`."""

    def losses(module: Any, batch: Batch) -> Array:
        perturbed = nn.intercept_methods(_perturbing_interceptor(perturbation_BTD, shapes))
        with perturbed if phase == "start" else nullcontext():
            state = module.start(batch, 0)
        with perturbed if phase == "extend" else nullcontext():
            features, _ = module.extend(batch.target_BT, state, batch.target_valid_BT)
        valid_BT, row_B = jnp.asarray(batch.target_valid_BT), jnp.arange(batch.target_BT.shape[0])
        last_B = valid_BT.shape[1] - 1 - jnp.argmax(valid_BT[:, ::-1], axis=1)
        logits_BV = module.readout(jax.tree.map(lambda x: x[row_B, last_B], features))
        logprob_BV = jax.nn.log_softmax(logits_BV)
        return jnp.where(valid_BT.any(1), -logprob_BV[row_B, jnp.asarray(batch.label_BT)[row_B, last_B]], 0.0)

    return model.apply({"params": params}, batch, method=losses)


def _perturbing_interceptor(perturbation_BTD: Array | None, shapes: list) -> Callable[..., Any]:
    """Add the perturbation in the first call of a recurrent network (to h_t) or of a stack (to its input)."""

    def intercept(call: Callable, arguments: tuple, options: dict, context: Any) -> Any:
        recurrent = isinstance(context.module, Recurrent)
        if shapes or context.method_name != "__call__" or not (recurrent or isinstance(context.module, Stack)):
            return call(*arguments, **options)
        shapes.append(arguments[0].shape)
        if recurrent:
            bound = inspect.signature(call).bind(*arguments, **options)
            bound.arguments["perturbation_BTD"] = perturbation_BTD
            result = call(*bound.args, **bound.kwargs)
            shapes[0] = result[0].shape
            return result
        x_BTD = arguments[0] if perturbation_BTD is None else arguments[0] + perturbation_BTD.astype(arguments[0].dtype)
        return call(x_BTD, *arguments[1:], **options)

    return intercept


def _distances_to_loss(batch: Batch, phase: Phase, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The distance of each perturbed position, and whether it is that of a token; both (B, T)."""
    source_BS, target_BT = batch.source_valid_BS, np.asarray(batch.target_valid_BT)
    valid_BT, after_B = target_BT, np.zeros(len(target_BT), int)
    if phase == "start":
        valid_BT, after_B = np.asarray(source_BS), target_BT.sum(1)
    elif length > target_BT.shape[1]:  # one network reads source and target together
        valid_BT = np.concatenate([np.asarray(source_BS), target_BT], 1)
    from_here_BT = np.cumsum(valid_BT[:, ::-1], axis=1)[:, ::-1]
    return np.maximum(from_here_BT - 1, 0) + after_B[:, None], valid_BT.copy()
