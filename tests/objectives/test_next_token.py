"""The losses of supervised fine-tuning against NumPy in float64: -log p of the trained labels, and p times it."""

import jax
import numpy as np
import pytest
from fixtures.preference_rows import Bigram, bigram_params, preference_batch

from jaxlm.errors import UserError
from jaxlm.objectives.next_token import NextToken

BATCH, PARAMS = preference_batch().replace(other=None), bigram_params()


def oracle(kind):
    """Loss, plain loss and gradient of the output matrix, in float64; the weights p are constants."""
    table_VD, output_DV = (np.asarray(PARAMS[name], np.float64) for name in ("table", "output"))
    features_ND = table_VD[BATCH.target_BT[BATCH.loss_mask_BT]]
    label_N = BATCH.label_BT[BATCH.loss_mask_BT]
    logits_NV = features_ND @ output_DV
    p_NV = np.exp(logits_NV) / np.exp(logits_NV).sum(-1, keepdims=True)
    p_N = p_NV[np.arange(len(label_N)), label_N]
    weight_N = p_N if kind == "dft" else np.ones_like(p_N)
    one_hot_NV = np.eye(p_NV.shape[1])[label_N]
    gradient_DV = features_ND.T @ (weight_N[:, None] * (p_NV - one_hot_NV))
    return -(weight_N * np.log(p_N)).sum(), -np.log(p_N).sum(), gradient_DV


@pytest.mark.parametrize("kind", ["nll", "dft"])
def test_loss_and_gradient(kind):
    def total(params):
        loss = NextToken(kind=kind)(Bigram(), params, BATCH, None)
        return loss.total, loss

    (_, loss), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(PARAMS)
    expected, nll, gradient_DV = oracle(kind)
    np.testing.assert_allclose((loss.total, loss.nll), (expected, nll), rtol=1e-5)
    assert loss.count == BATCH.loss_mask_BT.sum()
    assert abs(gradient["output"] - gradient_DV).max() <= 1e-4 * abs(gradient_DV).max()


def test_smoothing_has_no_part_in_dft():
    with pytest.raises(UserError, match="label_smoothing = 0.1 has no effect"):
        NextToken(label_smoothing=0.1, kind="dft")
