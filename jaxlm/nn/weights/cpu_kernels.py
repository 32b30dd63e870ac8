"""The kernels of `cpu_kernels.c` as functions of JAX: what decoding on a CPU spends its time in.

XLA's products of few rows read weights at half of the memory's pace, and its attention of one query a head runs on one
core. The C source is compiled for this very machine at its first use (two seconds) and kept beside the compiled
programs. Where there is no C compiler, or $JAXLM_NATIVE is 0, XLA does it all.
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

SOURCE, HEADER = (Path(__file__).with_suffix(suffix) for suffix in (".c", ".h"))

FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC")

COMPILE_TIMEOUT = 120
"""The longest that a compiler may take."""

PartialAttention = tuple[Array, Array, Array]


def supports(*arrays: Array) -> bool:
    """Whether the kernels are there for a program with these arrays in it: of float32, on one CPU."""
    plain = all(x.dtype == jnp.float32 and platform_of(x) == "cpu" and is_single_device(x) for x in arrays)
    return plain and panel_width() > 0


@functools.cache
def panel_width() -> int:
    """Output channels in a panel of weights, or 0 where there are no kernels."""
    if os.environ.get("JAXLM_NATIVE") == "0" or not (compiler := _find_compiler()):
        return 0
    try:
        library = _load_library(compiler)
    except (OSError, subprocess.SubprocessError):  # a compiler without headers, no place to write to: XLA does it
        return 0
    for name in ("jaxlm_matmul", "jaxlm_attention"):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return library.jaxlm_panel_width()


def pack_panels(weights_FD: Array) -> Array:
    """(F, D) -> (P, D, W), W = `panel_width()` output channels side by side, the last panel filled up with zeros."""
    features, depth = weights_FD.shape
    filled = jnp.pad(weights_FD, ((0, -features % panel_width()), (0, 0)))
    return jnp.swapaxes(filled.reshape(-1, panel_width(), depth), 1, 2)


def unpack_panels(panels_PDW: Array, features: int) -> Array:
    """What `pack_panels` was given: (F, D)."""
    return jnp.swapaxes(panels_PDW, 1, 2).reshape(-1, panels_PDW.shape[1])[:features]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def packed_matmul(x_RD: Array, panels_PDW: Array, features: int) -> Array:
    """x W^T, float32, with W in panels -> (R, F). A row's result is the same to the bit whatever is beside it."""
    return _ffi_call("jaxlm_matmul", [(x_RD.shape[0], features), x_RD.shape], x_RD, panels_PDW)[0]


def _packed_matmul_forward(x_RD, panels_PDW, features):
    return packed_matmul(x_RD, panels_PDW, features), (x_RD, panels_PDW)


def _packed_matmul_backward(features, residuals, d_y_RF):
    x_RD, panels_PDW = residuals
    return d_y_RF @ unpack_panels(panels_PDW, features), pack_panels(jnp.einsum("rf,rd->fd", d_y_RF, x_RD))


packed_matmul.defvjp(_packed_matmul_forward, _packed_matmul_backward)


def partial_attention(query_BGRH: Array, key_BGHS: Array, value_BGSH: Array, mask_BQS: Array) -> PartialAttention:
    """With w = exp(score - highest): sum of w * value (B, G, R, H), sum of w, and highest, (B, G, R); all float32.

    score = query . key; query r sees the keys of mask row r % Q. highest is finite where a query sees none.
    """
    rows = query_BGRH.shape[:3]
    mask_BQS = jnp.broadcast_to(mask_BQS, (rows[0], *mask_BQS.shape[1:]))
    given = query_BGRH, key_BGHS, value_BGSH, mask_BQS
    mixed, total, highest = _ffi_call("jaxlm_attention", [query_BGRH.shape, rows, rows], *given)
    return mixed, total, highest


def write_and_attend(
    query_BGRH: Array, key_BGHCK: Array, value_BGCKH: Array, mask_BQS: Array, new_key_BKTGH: Array,
    new_value_BKTGH: Array, position_BT: Array,
) -> tuple[PartialAttention, tuple[Array, Array]]:  # fmt: skip
    """`partial_attention` over caches (S = C * K) that T more keys and values a slot are first written to;
    and the caches.

    In place where they may be. Position C is nowhere.
    """
    given = query_BGRH, key_BGHCK, value_BGCKH, mask_BQS, new_key_BKTGH, new_value_BKTGH, position_BT
    shapes = [query_BGRH.shape, *(query_BGRH.shape[:3],) * 2, key_BGHCK.shape, value_BGCKH.shape]
    mixed, total, highest, *caches = _ffi_call("jaxlm_attention", shapes, *given, aliases={1: 3, 2: 4})
    return (mixed, total, highest), (caches[0], caches[1])


def _ffi_call(
    name: str, shapes: list[tuple[int, ...]], *operands: Array, aliases: dict[int, int] | None = None
) -> tuple[Array, ...]:
    out = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return tuple(jax.ffi.ffi_call(name, out, vmap_method="sequential", input_output_aliases=aliases)(*operands))


def _find_compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)


def _load_library(compiler: str) -> ctypes.CDLL:
    """The compiled source: the one that was kept for this machine, or a new one, which is kept if it can be."""
    command = [compiler, *FLAGS, f"-I{jax.ffi.include_dir()}", str(SOURCE), "-o"]
    known = (
        SOURCE.read_bytes(),
        HEADER.read_bytes(),
        " ".join(command).encode(),
        version("jaxlib").encode(),
        _cpu_features(),
    )
    name, folder = f"native-{hashlib.sha256(b'|'.join(known)).hexdigest()[:16]}.so", runtime.cache_folder()
    if folder is not None and (folder / name).exists():
        return ctypes.CDLL(str(folder / name))
    with tempfile.TemporaryDirectory() as passing:
        made = Path(passing) / name
        subprocess.run([*command, str(made)], check=True, capture_output=True, timeout=COMPILE_TIMEOUT)
        if folder is not None:
            with contextlib.suppress(OSError):
                _install(made, folder / name)
        return ctypes.CDLL(str(made))


def _install(built: Path, target: Path) -> None:
    """A copy that is whole as soon as it is seen: several processes may do this at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as beside:
        Path(shutil.copy(built, beside)).replace(target)


def _cpu_features() -> bytes:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n")
    except OSError:
        return platform.processor().encode()
    return b"".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model"))}))
