"""The language modeling objective. Every objective is a frozen config: (model, params, batch, dropout key) -> Loss."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.losses import Loss, cross_entropy
from jaxlm.models.rnn_lm import activation_penalty
from jaxlm.objectives.log_probs import token_log_probs
from jaxlm.types import Array, Batch, Params, State


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy -log p(label_BT) of every target token: the objective of all sequence models.

    If the rows are windows of continuous streams, the batch contains the model's state after the previous
    batch, and the loss contains the state after this one: truncated back-propagation through time, since no
    gradient crosses a batch boundary.

    Attributes:
      label_smoothing: weight of the uniform distribution in the target distribution.
      activation_reg, temporal_reg: alpha and beta of `activation_penalty` (RNN language models), in training only.
      kind: "nll", or "dft": each term is multiplied by p(label), which has no gradient: labels that the model finds
        unlikely weigh less (dynamic fine-tuning, Wu et al. 2025).
    """

    label_smoothing: float = 0.0
    activation_reg: float = 0.0
    temporal_reg: float = 0.0
    kind: Literal["nll", "dft"] = "nll"

    def __post_init__(self) -> None:
        if self.kind == "dft" and self.label_smoothing:
            raise UserError(f"label_smoothing = {self.label_smoothing} has no effect on kind = 'dft': set one of them")

    learns_from: ClassVar[str] = "target"

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sum over the valid labels that the batch's loss mask covers; dropout only with a key."""
        penalized = bool(self.activation_reg or self.temporal_reg)
        if penalized and not hasattr(model, "activations"):
            name = type(model).__name__
            raise UserError(f"activation_reg and temporal_reg are for RNN language models: set both to 0 for {name}")

        def features_and_penalty(module, batch):
            state, valid_BT = _initial_state(batch, module.start(batch, 0)), batch.target_valid_BT
            if key is None or not penalized:
                return *module.extend(batch.target_BT, state, valid_BT), 0.0
            raw_BTD, dropped_BTD, state = module.activations(batch.target_BT, state, valid_BT)
            penalty = activation_penalty(raw_BTD, dropped_BTD, valid_BT, self.activation_reg, self.temporal_reg)
            return dropped_BTD, state, penalty

        rngs = None if key is None else {"dropout": key}
        features_BTD, state, penalty = model.apply({"params": params}, batch, method=features_and_penalty, rngs=rngs)
        state = None if batch.reset_B is None else jax.lax.stop_gradient(state)
        if hasattr(model, "logprob"):  # an n-gram model looks up the label alone: no logits of the whole vocabulary
            logprob_BT = model.apply({"params": params}, features_BTD, batch.label_BT, method="logprob")
            nll = -jnp.where(batch.label_valid_BT, logprob_BT, 0.0).sum()
            return Loss(total=nll, nll=nll, count=batch.label_valid_BT.sum(dtype=jnp.float32), state=state)
        readout = partial(model.apply, {"params": params}, method="readout")
        if self.kind == "dft":
            logprob_BT = token_log_probs(readout, features_BTD, batch.label_BT, batch.label_valid_BT)
            total, fixed_BT = penalty, jax.lax.stop_gradient(logprob_BT)
            total -= (jnp.exp(fixed_BT) * logprob_BT).sum()
            count = batch.label_valid_BT.sum(dtype=jnp.float32)
            return Loss(total=total, nll=-fixed_BT.sum(), count=count, state=state)
        loss = cross_entropy(readout, features_BTD, batch.label_BT, batch.label_valid_BT, self.label_smoothing)
        return replace(loss, total=loss.total + penalty, state=state)


def _initial_state(batch: Batch, fresh: State) -> State:
    """The state after the previous batch; `fresh` in the rows in which a new stream begins."""
    if batch.state is None:
        return fresh

    def select(new: Array, old: Array) -> Array:
        reset = batch.reset_B.reshape(-1, *(1,) * (new.ndim - 1))  # (B, 1, ...), to broadcast over a leaf (B, ...)
        return jnp.where(reset, new, old.astype(new.dtype))

    return jax.tree.map(select, fresh, batch.state)
