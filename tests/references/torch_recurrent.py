"""PyTorch's recurrent modules with the parameters of ours, and what they compute."""

from typing import Any

import numpy as np
import torch

from jaxlm.nn.rnn.cells import GRU, LSTM, Elman
from jaxlm.nn.rnn.layers import Recurrent


def as_torch(network: Recurrent, inputs: int) -> torch.nn.RNNBase:
    """A module of the same sizes with random parameters."""
    torch.manual_seed(0)
    kind = {Elman: torch.nn.RNN, LSTM: torch.nn.LSTM, GRU: torch.nn.GRU}[type(network.cell)]
    more = {"nonlinearity": network.cell.activation} if isinstance(network.cell, Elman) else {}
    more |= {"batch_first": True, "bidirectional": network.bidirectional}
    return kind(inputs, network.cell.width, network.layers, **more)


def from_torch(network: Recurrent, module: torch.nn.RNNBase, gradients: bool) -> Any:
    """PyTorch's parameters in our layout, or their gradients: those of both biases are equal where we have one."""
    found, D = {}, network.cell.width
    for layer in range(network.layers):
        for way in ("", "_reverse")[: 1 + network.bidirectional]:
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            tensors = [getattr(module, f"{name}_l{layer}{way}") for name in names]
            W, U, b, c = ((t.grad if gradients else t).detach().numpy() for t in tensors)
            found[f"layer_{layer}{way}"] = one = {"input": W.T, "recurrent": U.T, "bias": b if gradients else b + c}
            if isinstance(network.cell, GRU):
                one["recurrent_bias"] = c[2 * D :]
                one["bias"] = b if gradients else b + np.concatenate([c[: 2 * D], np.zeros(D, np.float32)])
    return found


def result(module: torch.nn.RNNBase, x_BTD, length_B, first, weight_BTD, last_weight) -> tuple[Any, ...]:
    """(outputs, last states, gradient of x, gradients of the first states); those of the parameters stay with them."""
    x, first = torch.tensor(x_BTD, requires_grad=True), [torch.tensor(one, requires_grad=True) for one in first]
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(length_B), batch_first=True, enforce_sorted=False)
    out, last = module(packed, tuple(first) if len(first) > 1 else first[0])
    out = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=x_BTD.shape[1])[0]
    last = last if len(first) > 1 else (last,)
    total = (out * torch.tensor(weight_BTD)).sum()
    (total + sum((one * torch.tensor(weight)).sum() for one, weight in zip(last, last_weight, strict=True))).backward()
    d_first = [one.grad.numpy() for one in first]
    return out.detach().numpy(), [one.detach().numpy() for one in last], x.grad.numpy(), d_first
