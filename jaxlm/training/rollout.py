"""Rollouts: before each step the parameters that learn sample answers to its prompts, and the judge rewards them.

The samples of a step are a function of its parameters and of (seed, step, example, number of the sample) alone: a
resumed run repeats them bit for bit. They are decoded by the jitted loop of `jaxlm.decode.generate`; the loss has the
log-probabilities of the training forward pass, which must not differ from those of the samples.
"""

import time
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast
from zlib import crc32

import jax
import numpy as np

from jaxlm.data.batching.bucketing import Buckets
from jaxlm.data.chat.dialogue import Dialogue
from jaxlm.data.tokenizers.base import Tokenizer
from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_STOP, GenerationOutput
from jaxlm.distributed import multihost
from jaxlm.distributed.placement import put_like_params, serialize_on_cpu
from jaxlm.distributed.sharding import all_gather_params
from jaxlm.errors import UserError
from jaxlm.experiment import INTERVALS, Experiment
from jaxlm.metrics.text import distinct_ngrams
from jaxlm.models.reward_model import ActorCritic
from jaxlm.nn.layers.adapters import drop_adapters
from jaxlm.objectives.policy_gradient import PolicyGradient, answer_batch
from jaxlm.tasks.rewards import Rewards, judge_answers
from jaxlm.training.reference import live_reference
from jaxlm.training.setup import TrainSetup
from jaxlm.types import Batch, Params

MAX_SAMPLER_GAP = 0.05
"""Nats an answer, on average, by which the log-probabilities of the samples and of the learner may differ."""


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Samples answers and rewards them. `reference`: its parameters; None: the base of the model, or no reference."""

    objective: PolicyGradient
    model: Any
    tokenizer: Tokenizer
    stop: tuple[int, ...]
    judge: Any
    reference: Params | None
    max_kl: float = 0.0

    def roll_out(
        self, params: Params, prompts: Batch, rows: list[Dialogue], samples: int, address: str
    ) -> tuple[Batch, list[str], dict[str, Any]]:
        """The rows to learn from, their answers, and figures for the log, [sum, count] each.

        The class of a prompt is its number in `rows`, or -1: none. `address` is that of the noise. Raises UserError for
        faults of the judge, and if the samples are not those of the policy.
        """
        began = time.perf_counter()
        output, sampled = self._sample(params, prompts, samples, address), time.perf_counter()
        batch = answer_batch(prompts, output.tokens_BT, output.length_B)
        # The devices compute while the judge reads.
        log_probs, placed = _make_log_probs_fn(self.model, self.objective), put_like_params(params, batch)
        (old, old_value_BT), reference_BT = serialize_on_cpu(log_probs(params, placed)), None
        if self.objective.kl:
            reference = drop_adapters(params) if self.reference is None else self.reference
            reference_BT = serialize_on_cpu(log_probs(reference, placed))[0]
        example_R, judging = np.asarray(prompts.class_B).repeat(samples), time.perf_counter()
        ended_R = output.reason_B == FINISH_STOP
        (row_N,) = np.nonzero(example_R >= 0)
        ids = [output.tokens_BT[row, : output.length_B[row] - ended_R[row]].tolist() for row in row_N]
        answers = [text.strip() for text in self.tokenizer.decode(ids)]
        reward_R = np.zeros(len(example_R), np.float32)
        own = [rows[number] for number in example_R[row_N]]
        reward_R[row_N] = judge_answers(self.judge, [row.prompt.text for row in own], answers, own)
        seconds = {"sampling": sampled - began, "judging": time.perf_counter() - judging}
        if self.objective.mask_cut:
            batch = replace(batch, loss_mask_BT=batch.loss_mask_BT & ended_R[:, None])
        batch = replace(batch, value_B=reward_R, reference_logprob_BT=reference_BT)
        batch = replace(batch, old_logprob_BT=np.asarray(old), old_value_BT=old_value_BT)
        figures = {f"time/{name}_seconds": np.array([value, 1], np.float32) for name, value in seconds.items()}
        return batch, answers, figures | _figures(batch, output, row_N, samples)

    def _sample(self, params: Params, prompts: Batch, samples: int, address: str) -> GenerationOutput:
        """The answers, NumPy arrays."""
        number_B = np.asarray(prompts.class_B)
        line_R = (np.maximum(number_B, 0)[:, None] * samples + np.arange(samples)).reshape(-1).astype(np.uint32)
        limit_R = np.where(number_B >= 0, self.objective.max_tokens, 0).repeat(samples).astype(np.int32)
        config = GenerationConfig(self.objective.max_tokens, self.stop, self.objective.sampler)
        prompt_BP, valid_BP = (np.asarray(x) for x in (prompts.target_BT, prompts.target_valid_BT))
        seed, batch = np.uint32(crc32(address.encode())), Batch(target_BT=prompt_BP, target_valid_BT=valid_BP)
        request = DecodeRequest(batch, prompt_BP, valid_BP, limit_R, seed=seed, line_B=line_R)
        return jax.device_get(generate(self.model, params, put_like_params(params, request), config))


def _figures(batch: Batch, output: GenerationOutput, row_N: np.ndarray, samples: int) -> dict[str, Any]:
    """The means over the rows that are answers, [sum, count] each. Raises UserError for a gap of the sampler."""
    gap_R, ended_R = abs(output.logprob_B - batch.old_logprob_BT.sum(1)), output.reason_B == FINISH_STOP
    values: dict[str, Any] = {"reward": batch.value_B, "length": output.length_B, "ended": ended_R}
    values["sampler/gap"] = gap_R
    if not (gap := gap_R[row_N].mean()) <= MAX_SAMPLER_GAP:
        raise UserError(
            f"log-probabilities of samples and learner differ by {gap:.3f} nats an answer, by more than "
            f"{MAX_SAMPLER_GAP}: the samples are not those of the model that learns; train in float32"
        )
    if batch.reference_logprob_BT is not None:
        ratio_BT = np.asarray(batch.reference_logprob_BT) - batch.old_logprob_BT
        values["kl"] = (np.exp(ratio_BT) - ratio_BT - 1.0).sum(1)
    if samples > 1:
        reward_PG = batch.value_B.reshape(-1, samples)
        values["group/flat"] = (reward_PG == reward_PG[:, :1]).all(1).repeat(samples)
    return {name: np.array([value_R[row_N].sum(), len(row_N)], np.float32) for name, value_R in values.items()}


@lru_cache(maxsize=4)
def _make_log_probs_fn(model: Any, objective: PolicyGradient) -> Any:
    """The jitted function (parameters, batch) -> log-probabilities of the answers' tokens (B, T), and their values."""
    return jax.jit(lambda params, batch: objective.log_probs(model, all_gather_params(params), batch))


def with_rollout(setup: TrainSetup, params: Params, is_new: bool) -> TrainSetup:
    """The set-up of a run on rewards, which samples before each step; others are returned as they are.

    Arguments as of `with_reference`. Raises UserError for parts of the experiment that do not fit.
    """
    run, experiment = setup.run, setup.run.experiment
    objective, task = experiment.objective, cast(Any, experiment.task)
    if not isinstance(objective, PolicyGradient) and not isinstance(task, Rewards):
        return setup
    _check_parts(experiment)
    reference = live_reference(setup, params, is_new) if objective.kl else None
    stop = task.encoder(run.tokenizer).stop_ids
    rollouts = Rollouts(objective, experiment.model, run.tokenizer, stop, task.judge, reference, objective.max_kl)
    rows = list(task.train)

    def roll_out(params: Params, prompts: Batch, step: int) -> tuple[Batch, dict[str, Any]]:
        address = f"sample {experiment.seed} {step}"
        batch, answers, figures = rollouts.roll_out(params, prompts, rows, objective.num_samples, address)
        return batch, figures | distinct_ngrams(answers)

    run = replace(run, experiment=replace(experiment, objective=rollouts))
    return replace(setup, run=run, roll_out=roll_out, updates=objective.updates)


def _check_parts(experiment: Experiment) -> None:
    objective, task, batching = experiment.objective, experiment.task, experiment.batching
    if not (isinstance(objective, PolicyGradient) and isinstance(task, Rewards)):
        names = f"the task {type(task).__name__} with the objective {type(objective).__name__}"
        raise UserError(f"{names}: Rewards and PolicyGradient need each other")
    if (objective.kind == "ppo") != isinstance(experiment.model, ActorCritic):
        raise UserError(f"{objective.kind}, {type(experiment.model).__name__}: ppo and ActorCritic need each other")
    if not isinstance(batching, Buckets):
        raise UserError(f"batching = {type(batching).__name__}: answers have rows of their own: choose Buckets(...)")
    if multihost.num_hosts() > 1:
        raise UserError("a run on rewards needs one process only: its judge reads all answers of a step")
    if uneven := [name for name in INTERVALS[:4] if getattr(experiment, name) % objective.updates]:
        raise UserError(f"{', '.join(uneven)}: expected multiples of updates = {objective.updates}: a rollout is whole")
