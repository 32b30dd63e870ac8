"""The C kernels of `cpu_kernels.c` as JAX functions: the hot loops of decoding on a CPU.

XLA's products of few rows read weights at half of the memory bandwidth, and its attention of one query per head uses
one core. The C source is compiled for the machine at its first use (two seconds) and cached with the compiled
programs. Without a C compiler, or if $JAXLM_NATIVE is 0, XLA computes everything.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxlm import runtime
from jaxlm.distributed.sharding import is_single_device, platform_of
from jaxlm.types import Array

SOURCES = [str(Path(__file__).with_name(name)) for name in ("cpu_kernels.c", "cpu_int8.c")]
HEADER = Path(__file__).with_suffix(".h")

FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC")

COMPILE_TIMEOUT = 120
"""In seconds."""

PartialAttention = tuple[Array, Array, Array]
"""Of some keys: sum of w * value, sum of w, and the highest score, with w = exp(score - highest)."""


def supports(*arrays: Array) -> bool:
    """Return whether the kernels exist for a program with these arrays: float32, on one CPU."""
    is_plain = all(x.dtype == jnp.float32 and platform_of(x) == "cpu" and is_single_device(x) for x in arrays)
    return is_plain and panel_width() > 0


@functools.cache
def panel_width() -> int:
    """Return the output channels of a panel of weights, or 0 without kernels."""
    if os.environ.get("JAXLM_NATIVE") == "0" or not (compiler := _find_compiler()):
        return 0
    try:
        library = _load_library(compiler)
    except (OSError, subprocess.SubprocessError):  # a compiler without headers, no writable folder: use XLA
        return 0
    for name in ("jaxlm_matmul", "jaxlm_attention", "jaxlm_matmul_int8", "jaxlm_matmul_int8_dynamic"):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return library.jaxlm_panel_width()


def pack_panels(weights_FD: Array) -> Array:
    """(F, D) -> (P, D, W) with W = `panel_width()` adjacent output channels; the last panel is padded with zeros."""
    features, depth = weights_FD.shape
    padded_FD = jnp.pad(weights_FD, ((0, -features % panel_width()), (0, 0)))
    return jnp.swapaxes(padded_FD.reshape(-1, panel_width(), depth), 1, 2)


def unpack_panels(panels_PDW: Array, features: int) -> Array:
    """Return the inverse of `pack_panels`: (F, D)."""
    return jnp.swapaxes(panels_PDW, 1, 2).reshape(-1, panels_PDW.shape[1])[:features]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def packed_matmul(x_RD: Array, panels_PDW: Array, features: int) -> Array:
    """Return x W^T, float32, (R, F), with W in panels. The result of a row does not depend on the other rows."""
    # The second result is scratch memory for x in blocks of rows.
    return _ffi_call("jaxlm_matmul", [(x_RD.shape[0], features), x_RD.shape], x_RD, panels_PDW)[0]


def pack_int8(values_FD: Array) -> Array:
    """int8 (F, D) -> (P, D / 4, W, 4): four adjacent depths of a channel are one word; the rest is zeros."""
    features, depth = values_FD.shape
    padded_FD = jnp.pad(values_FD, ((0, -features % panel_width()), (0, -depth % 4)))
    return jnp.swapaxes(padded_FD.reshape(-1, panel_width(), padded_FD.shape[1] // 4, 4), 1, 2)


def unpack_int8(values_PDWB: Array, features: int, depth: int) -> Array:
    """Return the inverse of `pack_int8`: (F, D)."""
    panels, words, width, size = values_PDWB.shape
    return jnp.swapaxes(values_PDWB, 1, 2).reshape(panels * width, words * size)[:features, :depth]


def packed_int8_matmul(x_RD: Array, values_PDWB: Array, scale_F: Array, sum_F: Array | None) -> Array:
    """Return x W^T, float32, (R, F), for int8 weights in panels.

    With the sums (int32) of the int8 weights, rows of x are rounded to int8 too: the products are those of integers,
    equal on every processor.
    """
    rows, words = x_RD.shape[0], values_PDWB.shape[1]
    shapes: list[tuple[int, ...]]
    if sum_F is None:
        shapes = [(rows, scale_F.shape[0]), (rows, 4 * words)]  # y, and memory for blocks of x
        return _ffi_call("jaxlm_matmul_int8", shapes, x_RD, values_PDWB, scale_F)[0]
    shapes = [(rows, scale_F.shape[0]), (rows, words), (rows,)]  # y, and memory for bytes and scales of x
    return _ffi_call("jaxlm_matmul_int8_dynamic", shapes, x_RD, values_PDWB, scale_F, sum_F)[0]


def _packed_matmul_backward(features, residuals, d_y_RF):
    x_RD, panels_PDW = residuals
    return d_y_RF @ unpack_panels(panels_PDW, features), pack_panels(jnp.einsum("rf,rd->fd", d_y_RF, x_RD))


packed_matmul.defvjp(lambda x, w, features: (packed_matmul(x, w, features), (x, w)), _packed_matmul_backward)


def partial_attention(query_BGRH: Array, key_BGHS: Array, value_BGSH: Array, mask_BQS: Array) -> PartialAttention:
    """Return `PartialAttention` with shapes (B, G, R, H), (B, G, R) and (B, G, R), float32.

    score = query . key; query r has mask row r % Q. The highest score is finite even if a query sees no key.
    """
    shape = query_BGRH.shape[:3]
    mask_BQS = jnp.broadcast_to(mask_BQS, (shape[0], *mask_BQS.shape[1:]))
    operands = query_BGRH, key_BGHS, value_BGSH, mask_BQS
    mixed, total, highest = _ffi_call("jaxlm_attention", [query_BGRH.shape, shape, shape], *operands)
    return mixed, total, highest


def write_and_attend(
    query_BGRH: Array, key_BGHCK: Array, value_BGCKH: Array, mask_BQS: Array, new_key_BKTGH: Array,
    new_value_BKTGH: Array, position_BT: Array,
) -> tuple[PartialAttention, tuple[Array, Array]]:  # fmt: skip
    """Write T new keys and values per beam to the caches, then attend to them, S = C * K; return the caches too.

    The caches are updated in place if XLA allows it. Position C does not exist: nothing is written.
    """
    operands = query_BGRH, key_BGHCK, value_BGCKH, mask_BQS, new_key_BKTGH, new_value_BKTGH, position_BT
    shapes = [query_BGRH.shape, *(query_BGRH.shape[:3],) * 2, key_BGHCK.shape, value_BGCKH.shape]
    # Operands 1 and 2, the caches, share their memory with results 3 and 4.
    mixed, total, highest, *caches = _ffi_call("jaxlm_attention", shapes, *operands, aliases={1: 3, 2: 4})
    return (mixed, total, highest), (caches[0], caches[1])


def _ffi_call(
    name: str, shapes: list[tuple[int, ...]], *operands: Array, aliases: dict[int, int] | None = None
) -> tuple[Array, ...]:
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return tuple(jax.ffi.ffi_call(name, results, vmap_method="sequential", input_output_aliases=aliases)(*operands))


def _find_compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)


def _load_library(compiler: str) -> ctypes.CDLL:
    """The compiled source, from the cache of this machine if possible, else compiled and cached."""
    command = [compiler, *FLAGS, f"-I{jax.ffi.include_dir()}", *SOURCES, "-o"]
    sources = b"|".join([*(Path(file).read_bytes() for file in [*SOURCES, str(HEADER)]), " ".join(command).encode()])
    digest = hashlib.sha256(b"|".join([sources, version("jaxlib").encode(), _cpu_features()])).hexdigest()
    name, folder = f"native-{digest[:16]}.so", runtime.cache_folder()
    if folder is not None and runtime.read_checked(folder / name) is not None:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(folder / name))
    with tempfile.TemporaryDirectory() as build_folder:
        built = Path(build_folder) / name
        subprocess.run([*command, str(built)], check=True, capture_output=True, timeout=COMPILE_TIMEOUT)
        if folder is not None:
            runtime.write_checked(folder / name, built.read_bytes())
        return ctypes.CDLL(str(built))


def _cpu_features() -> bytes:
    """A description of the CPU that determines the meaning of `-march=native`."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n")
    except OSError:
        return platform.processor().encode()
    return b"".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model"))}))
