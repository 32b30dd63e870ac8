"""Kernels of accelerators for attention, which never write the scores of T x S to memory (Dao et al. 2022).

On a TPU it is JAX's "splash" attention: blocks that a causal mask or a window rules out are not computed. On a GPU it
is cuDNN's, through `jax.nn.dot_product_attention`, for 16 bit types; the rule of who sees whom goes in as a mask. All
else (dropout on the weights, a bias, short texts, a mesh with `sequence`) is
`jaxlm.nn.attention.multi_head.attend`'s own code.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.distributed.mesh_axes import SEQUENCE, TENSOR
from jaxlm.distributed.sharding import LOGICAL_AXIS_RULES, partition_spec, platform_of
from jaxlm.nn.attention.mask import PAD_SEGMENT, MaskRule
from jaxlm.types import Array

TPU_LANES = 128
"""Positions that a TPU's kernel takes at least, and of which it takes multiples."""

TPU_BLOCK_SIZES = (512, 256, TPU_LANES)
"""Positions of a block of the TPU's kernel: the largest that divides them."""

CUDNN_MAX_HEAD_DIM = 128
"""The widest head of cuDNN's attention on every GPU that has it."""

AttentionKernel = Callable[[Array, Array, Array, MaskRule, float], Array]


def find_attention_kernel(
    query_BTNH: Array, key_BSGH: Array, value_BSGH: Array, mask_rule: MaskRule
) -> AttentionKernel | None:
    """The kernel that computes this attention on the platform that the program is compiled for; None: there is none."""
    platform = platform_of(query_BTNH)
    if platform == "tpu":
        return splash_attention if _supports_splash(query_BTNH, key_BSGH) else None
    sixteen = query_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    fits = query_BTNH.shape[-1] % 8 == 0 and query_BTNH.shape[-1] <= CUDNN_MAX_HEAD_DIM
    # A program that is compiled for a GPU elsewhere has no cuDNN at hand.
    return cudnn_attention if platform == jax.default_backend() == "gpu" and sixteen and fits else None


def _supports_splash(query_BTNH: Array, key_BSGH: Array) -> bool:
    mesh = jax.typeof(query_BTNH).sharding.mesh
    (rows, target, *_), (source, groups) = query_BTNH.shape, key_BSGH.shape[1:3]
    if min(target, source) < TPU_LANES or mesh.shape.get(SEQUENCE, 1) > 1 or groups % mesh.shape.get(TENSOR, 1):
        return False
    return rows % math.prod(mesh.shape.get(axis, 1) for axis in LOGICAL_AXIS_RULES["batch"]) == 0


def splash_attention(
    query_BTNH: Array, key_BSGH: Array, value_BSGH: Array, mask_rule: MaskRule, scale: float, interpret: bool = False
) -> Array:  # fmt: skip
    """By the TPU's kernel, each device its rows and heads -> (B, T, N, H). `interpret`: in Python, for a CPU."""
    mesh = jax.typeof(query_BTNH).sharding.mesh
    sees_BT = mask_rule.mask().any(-1)  # fused with the comparisons: nothing of size T x S is kept
    query_BTNH = (query_BTNH * scale).astype(query_BTNH.dtype)

    def local(query_BTNH: Array, key_BSGH: Array, value_BSGH: Array, query_BT: Array, key_BS: Array) -> Array:
        return _splash_on_device(query_BTNH, key_BSGH, value_BSGH, query_BT, key_BS, mask_rule, interpret)

    given = query_BTNH, key_BSGH, value_BSGH, mask_rule.query_BT, mask_rule.key_BS
    if mesh.size > 1:
        names = 3 * [("batch", None, "heads", None)] + 2 * [("batch", None)]
        specs = tuple(partition_spec(one, x.shape, mesh) for one, x in zip(names, given, strict=True))
        local = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
    return jnp.where(sees_BT[:, :, None, None], local(*given), 0).astype(query_BTNH.dtype)


def _splash_on_device(
    query_BTNH: Array,
    key_BSGH: Array,
    value_BSGH: Array,
    query_BT: Array,
    key_BS: Array,
    mask_rule: MaskRule,
    interpret: bool,
) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (_, target, heads, _), source = query_BTNH.shape, key_BSGH.shape[1]
    query_BTNH, query_BT = (_pad_positions(x, -target % TPU_LANES, 0) for x in (query_BTNH, query_BT))
    key_BSGH, value_BSGH = (_pad_positions(x, -source % TPU_LANES, 0) for x in (key_BSGH, value_BSGH))
    key_BS = _pad_positions(key_BS, -source % TPU_LANES, PAD_SEGMENT)
    shape = query_BT.shape[1], key_BS.shape[1]
    mask: Any = masks.FullMask(shape)
    if mask_rule.causal or mask_rule.window is not None:
        sides = (None if mask_rule.window is None else mask_rule.window - 1, 0 if mask_rule.causal else None)
        mask = masks.LocalMask(shape, sides, 0)
    q, kv = (next(block for block in TPU_BLOCK_SIZES if size % block == 0) for size in shape)
    kernel = kernels.make_splash_mha(
        mask=masks.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=1, interpret=interpret,
        block_sizes=kernels.BlockSizes(
            block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=kv,
            block_q_dq=q, block_kv_dq=kv,
        ),
    )  # fmt: skip
    turned = (jnp.swapaxes(x, 1, 2) for x in (query_BTNH, key_BSGH, value_BSGH))
    mixed_BNTH = jax.vmap(kernel)(*turned, kernels.SegmentIds(query_BT, key_BS))
    return jnp.swapaxes(mixed_BNTH, 1, 2)[:, :target]


def _pad_positions(x: Array, extra: int, value: int) -> Array:
    """x with so many more positions."""
    return jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2), constant_values=value) if extra else x


def cudnn_attention(query_BTNH: Array, key_BSGH: Array, value_BSGH: Array, mask_rule: MaskRule, scale: float) -> Array:
    """By cuDNN -> (B, T, N, H)."""
    return jax_attention(query_BTNH, key_BSGH, value_BSGH, mask_rule, scale, "cudnn")


def jax_attention(
    query_BTNH: Array, key_BSGH: Array, value_BSGH: Array, mask_rule: MaskRule, scale: float, implementation: Any
) -> Array:
    """By JAX's own function, whose implementation "xla" runs everywhere: (B, T, N, H)."""
    mask_BTS = mask_rule.mask()
    mixed_BTNH = jax.nn.dot_product_attention(
        query_BTNH, key_BSGH, value_BSGH, mask=mask_BTS[:, None], scale=scale, implementation=implementation
    )
    return jnp.where(mask_BTS.any(-1)[:, :, None, None], mixed_BTNH, 0).astype(query_BTNH.dtype)
