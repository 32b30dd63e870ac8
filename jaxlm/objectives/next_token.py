"""What is minimised, as frozen configs: called with (model, parameters, batch, dropout key) -> `jaxlm.losses.Loss`."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.losses import Loss, cross_entropy
from jaxlm.models.rnn_lm import activation_penalty
from jaxlm.types import Array, Batch, Params, State


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of every next target token, with `smoothing` of the labels; the task of every sequence model.

    `activation` and `temporal` weigh the two penalties on the hidden states of a recurrent model (AWD-LSTM's alpha and
    beta, see `jaxlm.models.rnn_lm.activation_penalty`), in training only.

    A batch whose rows go on from the batch before brings the model's state with it, and the loss gives back the state
    after it (truncated back-propagation through time: no gradient passes from batch to batch).
    """

    label_smoothing: float = 0.0
    activation_reg: float = 0.0
    temporal_reg: float = 0.0

    def __call__(self, model: Any, params: Params, batch: Batch, key: Array | None) -> Loss:
        """Sums over the valid target tokens; without a key there is no dropout."""

        def features(module, batch):
            state = _carried_state(batch, module.start(batch, 0))
            if key is None or not (self.activation_reg or self.temporal_reg):
                return *module.extend(batch.target_BT, state, batch.target_valid_BT), 0.0
            raw_BTD, dropped_BTD, state = module.activations(batch.target_BT, state, batch.target_valid_BT)
            valid_BT = batch.target_valid_BT
            penalty = activation_penalty(raw_BTD, dropped_BTD, valid_BT, self.activation_reg, self.temporal_reg)
            return dropped_BTD, state, penalty

        rngs = None if key is None else {"dropout": key}
        features_BTD, state, penalty = model.apply({"params": params}, batch, method=features, rngs=rngs)
        state = None if batch.reset_B is None else jax.lax.stop_gradient(state)
        if hasattr(model, "logprob"):  # a model that looks labels up has no need of all logits
            return replace(_lookup_loss(model, params, features_BTD, batch), state=state)

        def readout(features):
            return model.apply({"params": params}, features, method="readout")

        loss = cross_entropy(readout, features_BTD, batch.label_BT, batch.target_valid_BT, self.label_smoothing)
        return replace(loss, total=loss.total + penalty, state=state)


def _carried_state(batch: Batch, fresh: State) -> State:
    """The state that each row goes on from: that of the batch before, or a fresh one where a stream begins."""
    if batch.state is None:
        return fresh

    def choose(new: Array, old: Array) -> Array:
        begins = batch.reset_B.reshape(-1, *(1,) * (new.ndim - 1))
        return jnp.where(begins, new, old.astype(new.dtype))

    return jax.tree.map(choose, fresh, batch.state)


def _lookup_loss(model: Any, params: Params, features: Array, batch: Batch) -> Loss:
    logprob_BT = model.apply({"params": params}, features, batch.label_BT, method="logprob")
    nll = -jnp.where(batch.target_valid_BT, logprob_BT, 0.0).sum()
    return Loss(nll, nll, batch.target_valid_BT.sum(dtype=jnp.float32))
