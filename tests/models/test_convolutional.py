"""The convolutional models against a PyTorch reference: logits and every gradient; and what they refuse."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.zoo import VOCAB, batch_of, examples, params_of

from jaxlm.errors import UserError
from jaxlm.models.convolutional import ConvLM, ConvSeq2Seq
from jaxlm.types import Batch, Params

LM = ConvLM(VOCAB, 8, ((6, 3), (8, 2)), dropout=0.0)
SEQ2SEQ = ConvSeq2Seq(VOCAB, 8, ((6, 3), (10, 5)), ((6, 3), (8, 2)), max_length=24, dropout=0.0)


class Reference:
    """Gated convolutions in PyTorch, by `conv1d` and `glu`, with weights of torch's own weight normalization."""

    def __init__(self, params: Any) -> None:
        self.params, self.torch = params, pytest.importorskip("torch")

    def linear(self, name: Any, x: Any, part: dict) -> Any:
        kernel = self.torch._weight_norm(part[name]["kernel"], part[name]["gain"][None], 1)
        return x @ kernel + part[name]["bias"]

    def convolution(self, name: str, x: Any, part: dict, kernel_size: int, before: int) -> Any:
        """(S, D) -> (S, F); `before`: the zeros before the first token."""
        torch, module = self.torch, part[name]
        kernel = torch._weight_norm(module["kernel"], module["gain"][None], 1)
        weights = kernel.reshape(kernel_size, x.shape[1], -1).permute(2, 1, 0)
        padded = torch.nn.functional.pad(x.T, (before, kernel_size - 1 - before))
        return torch.nn.functional.conv1d(padded[None], weights, module["bias"])[0].T

    def stack(self, layers: Any, x: Any, part: dict, causal: bool, attend: Any = lambda _, h: h) -> Any:
        h = self.linear("in_projection", x, part)
        for index, (width, size) in enumerate(layers):
            residual = h if h.shape[1] == width else self.linear(f"residual_{index}", h, part)
            gates = self.convolution(f"convolution_{index}", h, part, size, size - 1 if causal else size // 2)
            h = (attend(index, self.torch.nn.functional.glu(gates, -1)) + residual) * 0.5**0.5
        return self.linear("out_projection", h, part)

    def lm(self, target: Any) -> Any:
        features = self.stack(LM.layers, self.params["embedding"][target], self.params["convolutions"], True)
        return features @ self.params["embedding"].T + self.params["output_bias"]

    def seq2seq(self, source: Any, target: Any) -> Any:
        p = self.params
        e = p["source_embedding"][source] + p["source_position"]["table"][: len(source)]
        z = self.stack(SEQ2SEQ.encoder, e, p["encode"], False)
        z.register_hook(lambda gradient: gradient / (2 * len(SEQ2SEQ.decoder)))
        g = p["embedding"][target] + p["target_position"]["table"][: len(target)]

        def attend(index: int, h: Any) -> Any:
            query = (self.linear(f"queries_{index}", h, p) + g) * 0.5**0.5
            context = (query @ z.T).softmax(-1) @ ((z + e) * 0.5**0.5)
            out = self.linear(f"contexts_{index}", context * len(source) ** 0.5, p)
            return (out + h) * 0.5**0.5

        features = self.stack(SEQ2SEQ.decoder, g, p["decode"], True, attend)
        return features @ p["output"].T + p["output_bias"]


def params_and_batch(model: Any) -> tuple[Params, Batch]:
    return params_of(model), batch_of(examples(4, high=7), 9, 9, "holes", "holes")


@pytest.mark.parametrize("model", [LM, SEQ2SEQ], ids=["lm", "seq2seq"])
def test_logits_and_gradients_equal_pytorch(model):
    torch = pytest.importorskip("torch")
    params, batch = params_and_batch(model)
    weight_BTV = np.random.default_rng(0).normal(size=(*batch.target_BT.shape, VOCAB)).astype(np.float32)
    weight_BTV *= batch.target_valid_BT[..., None]

    @jax.jit
    def loss_and_logits(params):
        logits_BTV = model.apply({"params": params}, batch)
        return (logits_BTV * weight_BTV).sum(), logits_BTV

    (loss, logits_BTV), gradients = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))(params)
    tensors = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), params)
    reference, total = Reference(tensors), 0.0
    for row in range(batch.num_rows):
        valid_T = batch.target_valid_BT[row]
        target = torch.tensor(batch.target_BT[row][valid_T].astype(np.int64))
        source = torch.tensor(batch.source_BS[row][batch.source_valid_BS[row]].astype(np.int64))
        expected = reference.lm(target) if model is LM else reference.seq2seq(source, target)
        np.testing.assert_allclose(logits_BTV[row][valid_T], expected.detach(), rtol=1e-5, atol=1e-5)
        total = total + (expected * torch.tensor(weight_BTV[row][valid_T])).sum()
    np.testing.assert_allclose(loss, total.item(), rtol=1e-5)
    total.backward()
    for (path, gradient), tensor in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(tensors), strict=True
    ):
        expected = np.zeros(gradient.shape) if tensor.grad is None else tensor.grad
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_weights_at_first_are_their_own_normalization():
    """g = |v|: the initial map is x v + b, and its columns keep their variance."""
    params = jax.jit(LM.init)(jax.random.key(0), params_and_batch(LM)[1])["params"]["convolutions"]["convolution_0"]
    np.testing.assert_allclose(params["gain"], jnp.linalg.norm(params["kernel"], axis=0), rtol=1e-6)


def test_even_kernels_of_an_encoder_and_packed_rows_are_refused():
    params, batch = params_and_batch(SEQ2SEQ)
    with pytest.raises(UserError, match="kernel of 4 tokens: expected odd"):
        SEQ2SEQ.clone(encoder=((6, 4),)).apply({"params": params}, batch)
    with pytest.raises(UserError, match="use Buckets"):
        SEQ2SEQ.apply({"params": params}, batch.replace(target_segment_BT=batch.target_BT))
