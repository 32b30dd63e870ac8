"""A trained model with strings in and strings, scores or vectors out: the methods behind the commands."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxlm.data.chat.dialogue import Turn
from jaxlm.data.chat.encoding import ChatFormat
from jaxlm.decode.sampling import Sampler
from jaxlm.distributed.sharding import make_mesh, train_state_shardings
from jaxlm.errors import UserError
from jaxlm.experiment import TrainedRun
from jaxlm.grammar.constraint import Constraint
from jaxlm.inference.base import Answer, ProgressCallback
from jaxlm.inference.constraints import constrain_search
from jaxlm.inference.embed import EVAL_BATCH_TOKENS, PoolingMode, TextEmbedder
from jaxlm.inference.generate import (
    GENERATION_DEFAULTS,
    GenerationDefaults,
    GenerationRequest,
    Sample,
    TextCallback,
    draw_samples,
)
from jaxlm.inference.score import TextScore, score_pairs
from jaxlm.inference.translate import Search, translate
from jaxlm.models.ensemble import Ensemble, ensemble_params
from jaxlm.models.properties import dummy_batch, forward_method, max_target_positions
from jaxlm.nn.transformer.layer_stack import decoding_params
from jaxlm.nn.weights.weight_formats import PRECISIONS, can_be_narrow, in_precision, weight_path, weight_users
from jaxlm.types import Params
from jaxlm.workdir import Workdir

MAX_TEXT_TOKENS = 4096
"""Tokens of a text that a language model scores; the rest of a longer text is left out."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline(TrainedRun):
    """The trained model of a workdir, ready for lists of strings; `jaxlm.load` makes one.

    Each method is the command of the same name: the same answers, in the order of the input. What the model is asked
    (the search, the labels, the data) is the task's, `experiment.task`; a frozen copy with another task comes from
    `dataclasses.replace`.
    """

    def predict(self, lines: Sequence[str]) -> list[str]:
        """The task's answer to each line: its translation, class, tags, ...; "" to a blank line."""
        return [answer.text for answer in self.answers(lines)]

    def answers(self, lines: Sequence[str], progress: ProgressCallback = None) -> list[Answer]:
        """The same with their records (`predict --jsonl`): hypotheses and scores, probabilities, spans, ..."""
        return self.experiment.task.predict(self, lines, progress)

    def translate(
        self, lines: Sequence[str], search: Search | None = None, progress: ProgressCallback = None
    ) -> list[str]:
        """The best translation of each line, by the task's search or another one. Raises UserError without one."""
        hypotheses = translate(self, lines, search or self._search(), progress)
        return [best_first[0].text for best_first in hypotheses]

    def generate(
        self,
        prompts: Sequence[str],
        sampler: Sampler | None = None,
        *,
        num_samples: int = 1,
        max_tokens: int | None = None,
        seed: int = 0,
        stop_strings: Sequence[str] = (),
        constraint: Constraint | None = None,
    ) -> list[Sample]:
        """Sampled texts, `num_samples` for each prompt. See `jaxlm.inference.generate.GenerationRequest`.

        What is None is that of the task, by default a draw from the model's own distribution.
        """
        request = GenerationRequest(sampler, seed, num_samples, max_tokens, tuple(stop_strings), constraint)
        return list(self.generate_stream(prompts, request))

    def generate_stream(
        self, prompts: Sequence[str], request: GenerationRequest, on_text: TextCallback = None
    ) -> Iterator[Sample]:
        """The same, one by one; `on_text` gets the pieces of a prompt's first one. Raises UserError without text."""
        task = self.experiment.task
        if not task.input_kind:
            raise UserError(f"the task {type(task).__name__} writes no text: `predict` answers lines")
        search = task.search if task.input_kind == "source" else None
        return draw_samples(self, prompts, request, search, on_text, self.generation_defaults)

    def chat(self, turns: Iterable[str], request: GenerationRequest, on_text: TextCallback = None) -> Iterator[Sample]:
        """An answer to each turn of a user in one dialogue, given all before it; blank turns are left out."""
        chat = request.chat or self.chat_format()
        for text in filter(str.strip, turns):
            sample = next(self.generate_stream([text], dataclasses.replace(request, chat=chat), on_text))
            yield sample
            history = (*chat.history, Turn("user", text), Turn("assistant", sample.text))
            chat = dataclasses.replace(chat, history=history)

    @property
    def generation_defaults(self) -> GenerationDefaults:
        """The sampler and the limits of `generate` where a request has none."""
        return getattr(self.experiment.task, "generation", GENERATION_DEFAULTS)

    def chat_format(self, system: str = "") -> ChatFormat:
        """The form in which the model is asked in a dialogue, for `GenerationRequest`. Raises UserError without one."""
        template = getattr(self.experiment.task, "chat_template", None)
        if template is None:
            raise UserError(
                "the model has no chat template: train it on dialogues (the task InstructionTuning), or import a model "
                "whose files have one"
            )
        return ChatFormat(template, system)

    def score(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[TextScore]:
        """log p of each text, or of each (source, target) pair's target. Raises UserError if the task has none."""
        task: Any = self.experiment.task
        if not task.input_kind:
            raise UserError(f"the task {type(task).__name__} gives no text a probability")
        pairs: Any = [(None, text) for text in texts] if task.input_kind == "text" else texts
        batch_tokens = task.batch_tokens if task.search is None else task.search.batch_tokens
        return score_pairs(self, pairs, batch_tokens, self.max_score_tokens, task.append_eos)

    @property
    def max_score_tokens(self) -> int:
        """Tokens of a side beyond which `score` leaves the rest out."""
        search = self.experiment.task.search
        limit = MAX_TEXT_TOKENS if search is None else search.max_source_len
        return min(limit, max_target_positions(self.model) or limit)

    def embed(
        self,
        lines: Sequence[str],
        pooling: PoolingMode = "mean",
        layer: int | None = None,
        *,
        batch_tokens: int = EVAL_BATCH_TOKENS,
        progress: ProgressCallback = None,
    ) -> np.ndarray | list[np.ndarray]:
        """float32 (lines, width); with pooling="token" a list of (positions, width). See `TextEmbedder`."""
        vectors = TextEmbedder(pooling, layer, batch_tokens)(self, lines, progress)
        if pooling == "token":
            return vectors
        return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)

    def evaluate(self, split: Any = "test", progress: ProgressCallback = None) -> dict[str, Any]:
        """The scores of a split ("train", "valid", "test" or one of the task's `extra_tests`), or of a data source."""
        task: Any = self.experiment.task
        if not isinstance(split, str):
            task, split = dataclasses.replace(task, extra_tests={"data": split}), "data"
        return task.evaluate(self, split, progress)

    def constrain(self, constraint: Constraint) -> "Pipeline":
        """A pipeline whose answers keep to a constraint. Raises UserError if the tokenizer cannot write any such."""
        search = constrain_search(self._search(), constraint, self.tokenizer)
        task: Any = dataclasses.replace(self.experiment.task, search=search)  # type: ignore[type-var]
        return dataclasses.replace(self, experiment=dataclasses.replace(self.experiment, task=task))

    def _search(self) -> Search:
        task = self.experiment.task
        if task.search is None:
            raise UserError(f"the task {type(task).__name__} does not search: `predict` answers lines")
        return task.search


def load(
    folder: str | Path,
    *,
    average_last: int | None = None,
    step: int | None = None,
    precision: str = "float32",
    mesh: Mapping[str, int] | None = None,
    ensemble: Sequence[str | Path] = (),
    ensemble_mean: Literal["probabilities", "logarithms"] = "probabilities",
) -> Pipeline:
    """The trained model of a workdir, as `predict`, `generate` and the other commands use it.

    Args:
      average_last: checkpoints whose mean the parameters are (1: the best one); None: as the experiment has it.
      step: the checkpoint of this step instead.
      precision: of the weights: "float32", "bfloat16", "int8" or "int8_dynamic".
      mesh: devices along each axis, such as {"data": 2, "tensor": 2}; None: one device.
      ensemble: workdirs of further models with the same tokenizer; all predict each token together.
      ensemble_mean: the mean of their "probabilities" or of the "logarithms".

    Raises UserError if the folder is not a workdir, has no checkpoint, or if an option does not fit.
    """
    workdir = Workdir(folder)
    run = workdir.load(average_last, step)
    members = [_load_member(workdir, Workdir(other)) for other in ensemble]
    parts = [cast_for_inference(member.model, member.params, precision) for member in (run, *members)]
    model, params = parts[0]
    if members:
        model = Ensemble(tuple(model for model, _ in parts), ensemble_mean)
        params = ensemble_params([params for _, params in parts])
    if mesh:
        params = jax.device_put(params, train_state_shardings(params, make_mesh(dict(mesh))))
    return Pipeline(model, prepare_params(model, params), run.tokenizer, run.experiment, run.steps)


def _load_member(first: Workdir, other: Workdir) -> TrainedRun:
    """Another run of an ensemble. Raises UserError if its tokenizer is not that of the first."""
    first_files, files = (
        {path.name: path.read_bytes() for path in workdir.tokenizer_folder.iterdir()} for workdir in (first, other)
    )
    if files != first_files:
        raise UserError(
            f"{other} has another tokenizer than {first}: an ensemble needs one; before training, copy "
            f"{first.tokenizer_folder} into the new workdir"
        )
    return other.load()


@functools.partial(jax.jit, static_argnames="model")
def prepare_params(model: Any, params: Params) -> Params:
    """Return the parameters as decoding needs them, see `decoding_params`; unchanged ones are not copied."""
    return decoding_params(params, functools.partial(_call, model))


def _call(model: Any, params: Params) -> Any:
    return model.apply({"params": params}, dummy_batch(), method=forward_method(model))


def cast_for_inference(model: Any, params: Params, precision: str) -> tuple[Any, Params]:
    """Return the model and its parameters in one of `PRECISIONS`, which the kernels and tables of its layers get.

    On an accelerator all activations of a model with a `dtype` become bfloat16, unless they become int8. On a CPU only
    the inputs of products do, since XLA's other bfloat16 operations are slow there. Parameters of layers that are
    neither jaxlm's nor Flax's stay. Raises UserError if there are no others, or if the model cannot compute with them.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
    if precision == "float32":
        return model, params
    users = weight_users(functools.partial(_call, model), params)

    def cast(path: tuple, leaf: Any) -> Any:
        names = weight_path(path)
        return in_precision(leaf, precision, users.get(names, set()), is_table=names[-1:] != ("kernel",))

    name, hint = type(model).__name__, f"leave out --precision {precision}"
    if not any(map(can_be_narrow, users.values())):
        raise UserError(f"no weights of {name} are in a layer of jaxlm or Flax, and no others have a precision: {hint}")
    narrow = jax.jit(functools.partial(jax.tree_util.tree_map_with_path, cast))(params)
    if precision != "int8_dynamic" and jax.default_backend() != "cpu":
        model = _with_dtype(model, "bfloat16")
    try:
        jax.eval_shape(functools.partial(_call, model), narrow)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} cannot compute with {precision} weights ({reason}): {hint}") from error
    return model, narrow


def _with_dtype(model: Any, dtype: str) -> Any:
    """The model, or the model that it wraps, with activations of this dtype; unchanged if it has no `dtype`."""
    if hasattr(model, "dtype"):
        return model.clone(dtype=dtype)
    return model.clone(model=_with_dtype(model.model, dtype)) if hasattr(model, "model") else model
