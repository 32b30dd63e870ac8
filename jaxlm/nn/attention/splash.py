"""JAX's splash attention on TPUs: blocks that a causal mask or a window excludes are not computed.

Tested in Pallas's interpreter, and compiled for TPUs; not yet run on one.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.distributed.sharding import device_kind_of
from jaxlm.nn.attention.mask import MaskRule, pad_to_multiple
from jaxlm.perf.chips import chip_for_device_kind
from jaxlm.types import Array

LANES = 128
"""Blocks are multiples of this number of positions."""

WIDE_HEAD_BYTES = 256
"""A head of 128 channels of bfloat16; wider ones have smaller blocks."""

MAX_PARTIAL_SUMS = 8
"""Blocks of keys, at most, for a fused backward kernel, which writes one array like the queries for each of them."""

RESIDUAL_NAME = "attention"
"""The name of the output and of the softmax's statistics for policies of `jax.checkpoint`."""


@dataclass(frozen=True)
class SplashBlocks:
    """The blocks of positions that suit a chip.

    A block costs its area and a fixed time, `overhead`, as a share of the time of the area of 512 x 512 positions.
    Larger blocks save overhead; smaller ones compute less of what a causal mask or a window excludes.

    Attributes:
      max_size: the largest that the kernels' memory (VMEM) holds in the backward pass, by compiling them; half of it
        for heads of more than WIDE_HEAD_BYTES.
      overhead: from published times of two sizes: v5p, 512 against 1,024 for a million tokens
        (github.com/AI-Hypercomputer/maxtext/pull/4929); v6e, the same sizes (github.com/apple/axlearn/pull/958).
    """

    max_size: int
    overhead: float

    def best_size(self, length: int, head_bytes: int, mask_rule: MaskRule) -> int:
        """Return the divisor of a length, a multiple of LANES, whose blocks cost least."""
        max_size = self.max_size if head_bytes <= WIDE_HEAD_BYTES else self.max_size // 2

        def cost(size: int) -> float:
            count = length // size
            computed = (count + 1) / 2 if mask_rule.causal else count  # blocks of keys for a block of queries
            if mask_rule.window is not None:
                computed = min(computed, 1 + -(-(mask_rule.window - 1) // size))
            return computed * (size + self.overhead * 512**2 / size)

        sizes = range(LANES, min(length, max_size) + 1, LANES)
        return min((size for size in sizes if length % size == 0), key=cost)


SPLASH_BLOCKS = {
    "default": SplashBlocks(512, 0.35),
    "v5e": SplashBlocks(1024, 0.35),
    "v5p": SplashBlocks(1024, 0.35),
    "v6e": SplashBlocks(2048, 0.7),
}
"""Name of a chip -> its blocks."""


def splash_attention(
    query_BTNH: Array, key_BSGH: Array, value_BSGH: Array, mask_rule: MaskRule, scale: float, interpret: bool = False
) -> Array:  # fmt: skip
    """Return the attention output (B, T, N, H); `interpret`: on any platform."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    target, heads = query_BTNH.shape[1:3]
    query_BTNH = (query_BTNH * scale).astype(query_BTNH.dtype)
    *inputs, mask_rule = pad_to_multiple(query_BTNH, key_BSGH, value_BSGH, mask_rule, LANES)
    segments = kernels.SegmentIds(mask_rule.query_BT, mask_rule.key_BS)
    shape = segments.q.shape[1], segments.kv.shape[1]
    mask: Any = masks.FullMask(shape)
    if mask_rule.causal or mask_rule.window is not None:
        left = None if mask_rule.window is None else mask_rule.window - 1
        mask = masks.LocalMask(shape, (left, 0 if mask_rule.causal else None), 0)
    chip = chip_for_device_kind(device_kind_of(query_BTNH))
    blocks = SPLASH_BLOCKS["default" if chip is None or chip.name not in SPLASH_BLOCKS else chip.name]
    head_bytes = query_BTNH.shape[-1] * query_BTNH.dtype.itemsize
    q, kv = (blocks.best_size(size, head_bytes, mask_rule) for size in shape)
    is_fused = shape[1] // kv <= MAX_PARTIAL_SUMS
    backward: Any = {"use_fused_bwd_kernel": True} if is_fused else {"block_q_dq": q, "block_kv_dq": kv}
    sizes = kernels.BlockSizes(q, kv, kv, block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=kv, **backward)
    kernel = kernels.make_splash_mha(
        mask=masks.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=1, interpret=interpret,
        block_sizes=sizes, residual_checkpoint_name=RESIDUAL_NAME,
    )  # fmt: skip
    mixed_BNTH = jax.vmap(kernel)(*(jnp.swapaxes(x, 1, 2) for x in inputs), segments)
    mixed_BTNH = jnp.swapaxes(mixed_BNTH, 1, 2)
    return (mixed_BTNH if mask_rule.to_itself else mask_rule.zero_unseeing(mixed_BTNH))[:, :target]
