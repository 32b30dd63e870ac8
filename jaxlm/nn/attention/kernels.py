"""Attention kernels of accelerators, which never write the scores (B, N, T, S) to memory (Dao et al. 2022).

On a TPU, JAX's splash attention: blocks that a causal mask or a window excludes are not computed. On a GPU, cuDNN
through `jax.nn.dot_product_attention`, for 16-bit types, with the `MaskRule` as a mask. All other cases (dropout of
the weights, a bias, short texts, a mesh with `sequence`) are computed by `jaxlm.nn.attention.multi_head`.
"""

import functools
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
"""The TPU kernel takes a multiple of this number of positions."""

TPU_BLOCK_SIZES = (512, 256, TPU_LANES)
"""Positions per block of the TPU kernel: the largest that divides their number."""

CUDNN_MAX_HEAD_DIM = 128
"""The widest head that cuDNN supports on every GPU."""


def find_attention_kernel(query_BTNH: Array, key_BSGH: Array) -> Callable[..., Array] | None:
    """Return (query, key, value, mask rule, scale) -> (B, T, N, H) for the target platform; None: no kernel."""
    platform = platform_of(query_BTNH)
    if platform == "tpu":
        return splash_attention if _supports_splash(query_BTNH, key_BSGH) else None
    is_16_bit = query_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    head_fits = query_BTNH.shape[-1] % 8 == 0 and query_BTNH.shape[-1] <= CUDNN_MAX_HEAD_DIM
    # A program that is compiled for a GPU on another machine has no cuDNN available.
    if platform == jax.default_backend() == "gpu" and is_16_bit and head_fits:
        return functools.partial(jax_attention, implementation="cudnn")
    return None


def _supports_splash(query_BTNH: Array, key_BSGH: Array) -> bool:
    mesh = jax.typeof(query_BTNH).sharding.mesh
    (rows, target, *_), (source, kv_heads) = query_BTNH.shape, key_BSGH.shape[1:3]
    if min(target, source) < TPU_LANES or mesh.shape.get(SEQUENCE, 1) > 1 or kv_heads % mesh.shape.get(TENSOR, 1):
        return False
    return rows % math.prod(mesh.shape.get(axis, 1) for axis in LOGICAL_AXIS_RULES["batch"]) == 0


def splash_attention(
    query_BTNH: Array, key_BSGH: Array, value_BSGH: Array, mask_rule: MaskRule, scale: float, interpret: bool = False
) -> Array:  # fmt: skip
    """Return the output (B, T, N, H) of the TPU kernel, a device its rows and heads; `interpret`: on any platform."""
    mesh = jax.typeof(query_BTNH).sharding.mesh
    sees_any_BT = mask_rule.mask().any(-1)  # fused with the comparisons: nothing of size T x S is stored
    query_BTNH = (query_BTNH * scale).astype(query_BTNH.dtype)
    kernel = functools.partial(_splash_on_device, mask_rule=mask_rule, interpret=interpret)
    operands = query_BTNH, key_BSGH, value_BSGH, mask_rule.query_BT, mask_rule.key_BS
    if mesh.size > 1:
        axes = 3 * [("batch", None, "heads", None)] + 2 * [("batch", None)]
        specs = tuple(partition_spec(names, x.shape, mesh) for names, x in zip(axes, operands, strict=True))
        kernel = jax.shard_map(kernel, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
    return jnp.where(sees_any_BT[:, :, None, None], kernel(*operands), 0).astype(query_BTNH.dtype)


def _splash_on_device(
    query_BTNH: Array, key_BSGH: Array, value_BSGH: Array, query_BT: Array, key_BS: Array, mask_rule: MaskRule,
    interpret: bool,
) -> Array:  # fmt: skip
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (_, target, heads, _), source = query_BTNH.shape, key_BSGH.shape[1]
    query_BTNH, query_BT = (_pad_positions(x, -target % TPU_LANES, 0) for x in (query_BTNH, query_BT))
    key_BSGH, value_BSGH = (_pad_positions(x, -source % TPU_LANES, 0) for x in (key_BSGH, value_BSGH))
    key_BS = _pad_positions(key_BS, -source % TPU_LANES, PAD_SEGMENT)
    shape = query_BT.shape[1], key_BS.shape[1]
    mask: Any = masks.FullMask(shape)
    if mask_rule.causal or mask_rule.window is not None:
        left = None if mask_rule.window is None else mask_rule.window - 1
        mask = masks.LocalMask(shape, (left, 0 if mask_rule.causal else None), 0)
    q, kv = (next(block for block in TPU_BLOCK_SIZES if size % block == 0) for size in shape)
    kernel = kernels.make_splash_mha(
        mask=masks.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=1, interpret=interpret,
        block_sizes=kernels.BlockSizes(
            block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=kv,
            block_q_dq=q, block_kv_dq=kv,
        ),
    )  # fmt: skip
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (query_BTNH, key_BSGH, value_BSGH))
    mixed_BNTH = jax.vmap(kernel)(*heads_first, kernels.SegmentIds(query_BT, key_BS))
    return jnp.swapaxes(mixed_BNTH, 1, 2)[:, :target]


def _pad_positions(x: Array, count: int, value: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, count)) + ((0, 0),) * (x.ndim - 2), constant_values=value) if count else x


def jax_attention(
    query_BTNH: Array, key_BSGH: Array, value_BSGH: Array, mask_rule: MaskRule, scale: float, implementation: Any
) -> Array:
    """Return the attention output (B, T, N, H) of JAX's own function, "cudnn" or, on any platform, "xla"."""
    mask_BTS = mask_rule.mask()
    mixed_BTNH = jax.nn.dot_product_attention(
        query_BTNH, key_BSGH, value_BSGH, mask=mask_BTS[:, None], scale=scale, implementation=implementation
    )
    return jnp.where(mask_BTS.any(-1)[:, :, None, None], mixed_BTNH, 0).astype(query_BTNH.dtype)
