"""Attention kernels of accelerators, which never write the scores (B, N, T, S) to memory (Dao et al. 2022).

| platform | kernel                                 | takes                                                          |
|----------|----------------------------------------|----------------------------------------------------------------|
| TPU      | splash attention, `splash.py`          | every `MaskRule`; T and S from MIN_LENGTH                      |
| GPU      | cuDNN's fused attention, `cudnn.py`    | the same, 16-bit types, heads of a multiple of 8 up to 128     |

A kernel runs on the rows and heads of each device alone. All other cases (dropout of the weights, a bias, short texts,
a mesh with `sequence`, rows or heads that the mesh does not divide, a GPU on which `jaxlm doctor` found plain products
to be faster) are computed by `jaxlm.nn.attention.multi_head`.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm import runtime
from jaxlm.distributed.platforms import choices_for
from jaxlm.distributed.sharding import device_kind_of, num_shards, partition_spec, platform_of
from jaxlm.nn.attention.cudnn import CUDNN_FORWARD, cudnn_attention, has_cudnn
from jaxlm.nn.attention.mask import KERNEL_PLATFORMS, MaskRule
from jaxlm.nn.attention.splash import RESIDUAL_NAME, splash_attention
from jaxlm.types import Array

AttentionKernel = Callable[[Array, Array, Array, MaskRule, float], Array]
"""(query, key, value, mask rule, scale) -> (B, T, N, H)."""

MIN_LENGTH = 128
"""Positions on either side. The TPU's kernel takes multiples of this number; on a GPU short texts lose by a kernel."""

TIMES_FILE = "attention_kernels.json"
"""Times of cuDNN's kernel and of plain products by `jaxlm doctor`, in the folder of the compiled programs."""

CUDNN_MAX_HEAD_DIM = 128
"""The widest head that cuDNN supports on every GPU."""


def find_attention_kernel(query_BTNH: Array, key_BSGH: Array) -> AttentionKernel | None:
    """Return the kernel for these arrays on the platform of their program; None: there is none."""
    platform = platform_of(query_BTNH)
    if platform not in KERNEL_PLATFORMS or min(query_BTNH.shape[1], key_BSGH.shape[1]) < MIN_LENGTH:
        return None
    row_shards, position_shards, head_shards = (num_shards(query_BTNH, of) for of in ("batch", "sequence", "heads"))
    has_whole_rows = position_shards == 1 and query_BTNH.shape[0] % row_shards == 0
    has_whole_heads = key_BSGH.shape[2] % head_shards == 0
    if not (has_whole_rows and has_whole_heads and choices_for(query_BTNH).attention_kernel):
        return None
    if platform == "tpu":
        return functools.partial(run_on_each_device, splash_attention)
    if remembered_kernel(device_kind_of(query_BTNH)) == "plain" or not has_cudnn():
        return None
    is_16_bit = query_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    head_fits = query_BTNH.shape[-1] % 8 == 0 and query_BTNH.shape[-1] <= CUDNN_MAX_HEAD_DIM
    return functools.partial(run_on_each_device, cudnn_attention) if is_16_bit and head_fits else None


def run_on_each_device(
    kernel: Callable[..., Array], query_BTNH: Array, key_BSGH: Array, value_BSGH: Array, mask_rule: MaskRule,
    scale: float, **options: Any,
) -> Array:  # fmt: skip
    """Return the output (B, T, N, H) of a kernel that each device of the mesh runs on its rows and heads."""
    mesh = jax.typeof(query_BTNH).sharding.mesh
    kernel = functools.partial(kernel, scale=scale, **options)
    if mesh.size > 1:
        heads = partition_spec(("batch", None, "heads", None), key_BSGH.shape, mesh)
        rows = partition_spec(("batch", None), mask_rule.key_BS.shape, mesh)
        specs = heads, heads, heads, rows
        kernel = jax.shard_map(kernel, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)
    return kernel(query_BTNH, key_BSGH, value_BSGH, mask_rule)


def save_attention(primitive: Any, *_: Any, **params: Any) -> bool:
    """Policy of `jax.checkpoint`: save a kernel's output and the logarithms of its softmax's sums, (B, N, T).

    The backward pass then has all that it needs, and does not run the forward kernel again.
    """
    return primitive.name == CUDNN_FORWARD or (primitive.name == "name" and params["name"] == RESIDUAL_NAME)


def remembered_kernel(device_kind: str) -> str | None:
    """Return the attention that was the fastest on this kind of device, "cudnn" or "plain"; None if none was timed."""
    times = _stored_times().get(_key(device_kind))
    return min(times, key=times.__getitem__) if times else None


def remember_times(device_kind: str, milliseconds: Mapping[str, float]) -> None:
    """Store the measured milliseconds of "cudnn" and "plain" for this kind of device and these versions of JAX."""
    if (folder := runtime.cache_folder()) is not None:
        stored = _stored_times() | {_key(device_kind): dict(milliseconds)}
        runtime.write_checked(folder / TIMES_FILE, json.dumps(stored).encode())
        _stored_times.cache_clear()


@functools.cache  # tracing asks for every layer
def _stored_times() -> dict[str, dict[str, float]]:
    folder = runtime.cache_folder()
    content = None if folder is None else runtime.read_checked(folder / TIMES_FILE)
    return json.loads(content) if content else {}


def _key(device_kind: str) -> str:
    versions = runtime.library_versions()
    return f"{device_kind}, jax {versions['jax']}, jaxlib {versions['jaxlib']}"
