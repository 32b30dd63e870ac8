"""cuDNN's fused attention on NVIDIA GPUs, through `jax.nn.dot_product_attention`.

What cuDNN gets, from the cheapest form of a rule:

| rows                                               | cuDNN gets                                             |
|----------------------------------------------------|--------------------------------------------------------|
| tokens before padding, causal, T a multiple of 128 | `is_causal` and the window; it skips excluded blocks   |
| the same, another T                                | also the lengths of the rows                           |
| tokens before padding, not causal                  | the lengths of queries and keys                        |
| packed, or padding anywhere                        | a mask (B, 1, T, S), read as a bias in each pass       |

Lengths, and the padding of masks to whole blocks, also avoid a fault of its backward pass, which gave NaN beyond the
last whole block (github.com/pytorch/pytorch/issues/196678, github.com/NVIDIA/cudnn-frontend/issues/160). Packed rows
take the mask because their other form, offsets of segments, needs a bound on the segments of a row, by which cuDNN
multiplies the size of its statistics.

Tested with XLA's implementation of the same arguments, and lowered for a GPU; not yet run on one.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.nn.attention.mask import MaskRule, pad_to_multiple
from jaxlm.types import Array

CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"
"""JAX's primitive of the forward kernel, whose results are all that the backward kernel needs."""

BLOCK, EVEN = 128, 2
"""Positions of the largest block of cuDNN's kernels, and what JAX wants the positions of a gradient to be."""

PLANNED_VERSION = 91200
"""The version of cuDNN, 9.12, that a plan assumes."""


def has_cudnn() -> bool:
    """Return True if programs may call cuDNN: its library is there, or a plan assumes it."""
    from jax._src.cudnn import fused_attention_stablehlo

    try:
        return fused_attention_stablehlo.check_cudnn_version() > 0
    except RuntimeError:  # JAX: "cuDNN is not detected", "Unable to load cuDNN"
        return False


def assume_cudnn() -> None:
    """Let this process compile calls of cuDNN that it cannot run: for plans, on machines without a GPU."""
    from jax._src.cudnn import fused_attention_stablehlo

    if not has_cudnn():
        fused_attention_stablehlo.check_cudnn_version = lambda: PLANNED_VERSION


def cudnn_attention(
    query_BTNH: Array, key_BSGH: Array, value_BSGH: Array, mask_rule: MaskRule, scale: float,
    implementation: Any = "cudnn",
) -> Array:  # fmt: skip
    """Return the attention output (B, T, N, H) of JAX's own function, "cudnn" or, on any platform, "xla"."""
    target, whole_blocks = query_BTNH.shape[1], query_BTNH.shape[1] % BLOCK == key_BSGH.shape[1] % BLOCK == 0
    needs_no_mask = mask_rule.tokens_first and (mask_rule.causal or mask_rule.window is None)
    multiple = EVEN if needs_no_mask else BLOCK
    *inputs, mask_rule = pad_to_multiple(query_BTNH, key_BSGH, value_BSGH, mask_rule, multiple)
    options: dict[str, Any] = {"scale": scale, "implementation": implementation}
    if not needs_no_mask:
        options["mask"] = mask_rule.mask()[:, None]
    else:
        options["is_causal"] = mask_rule.causal
        if mask_rule.window is not None:
            options["local_window_size"] = mask_rule.window - 1, 0
        if not (mask_rule.causal and whole_blocks):
            for name, x_BS in (("query_seq_lengths", mask_rule.query_BT), ("key_value_seq_lengths", mask_rule.key_BS)):
                options[name] = jnp.maximum((x_BS > 0).sum(1, dtype=jnp.int32), 1)  # the kernel requires 1 or more
    mixed_BTNH = jax.nn.dot_product_attention(*inputs, **options)
    return (mixed_BTNH if mask_rule.to_itself else mask_rule.zero_unseeing(mixed_BTNH))[:, :target]
