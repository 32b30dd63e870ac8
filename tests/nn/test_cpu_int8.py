"""Products with int8 weights on a CPU against NumPy, and all C kernels on every instruction set."""

import platform
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.cli_runs import environment

from jaxlm.nn.layers.embedding import embed_ids
from jaxlm.nn.weights import cpu_kernels
from jaxlm.nn.weights.weight_formats import Int8, PackedInt8, concat_kernels, quantize_rows, to_cpu_format

needs_kernels = pytest.mark.skipif(cpu_kernels.panel_width() == 0, reason="no C compiler, or JAXLM_NATIVE=0")
PRODUCTS = [(1, 5, 3), (8, 768, 50), (17, 700, 33), (128, 1100, 96), (3, 1, 32), (31, 513, 1)]


@needs_kernels
@pytest.mark.parametrize(("count", "depth", "features"), PRODUCTS)
def test_int8_product(count, depth, features):
    """With rounded rows equal to the bit to products of integers; else as exact as x in bfloat16, for any mates."""
    rng = np.random.default_rng(count)
    x_RD = rng.standard_normal((count, depth), np.float32) * rng.choice(np.float32([1e-30, 1, 1e30]), (count, 1))
    values_FD = rng.integers(-127, 128, (features, depth), dtype=np.int8)
    scale_F = rng.random(features, np.float32)

    @partial(jax.jit, static_argnums=1)
    def multiplied(x_RD, dynamic):
        return PackedInt8.pack(Int8(jnp.asarray(values_FD), jnp.asarray(scale_F), dynamic)).matmul(x_RD)

    largest_R1 = np.maximum(abs(x_RD).max(1, keepdims=True), np.finfo(np.float32).tiny) / np.float32(127)
    exact_RF = np.rint(x_RD / largest_R1).astype(np.int64) @ values_FD.T.astype(np.int64)
    np.testing.assert_array_equal(multiplied(x_RD, True), exact_RF.astype(np.float32) * largest_R1 * scale_F)
    weights_FD = values_FD * scale_F[:, None].astype(float)
    size_RF = abs(x_RD) @ abs(weights_FD).T
    assert (abs(multiplied(x_RD, False) - x_RD.astype(float) @ weights_FD.T) <= 2.0**-8 * size_RF).all()
    for dynamic in (True, False):
        for at in range(0, count, 7):
            alone_1F = multiplied(x_RD[at : at + 1], dynamic)
            np.testing.assert_array_equal(alone_1F[0], multiplied(x_RD, dynamic)[at])


@needs_kernels
@pytest.mark.parametrize("dynamic", [True, False])
def test_int8_rows_that_are_zero_or_not_finite(dynamic):
    """No number that is not finite is hidden, and other rows do not notice it."""
    x_RD = np.ones((4, 9), np.float32)
    x_RD[0], x_RD[1, 3], x_RD[2, 8] = 0, np.nan, np.inf
    weights = Int8(jnp.full((5, 9), 3, jnp.int8), jnp.ones(5), dynamic)
    y_RF = np.asarray(PackedInt8.pack(weights).matmul(jnp.asarray(x_RD)))
    assert (y_RF[0] == 0).all() and not np.isfinite(y_RF[1:3]).any()
    np.testing.assert_allclose(y_RF[3], 27, rtol=1e-6)


@needs_kernels
@pytest.mark.parametrize("dynamic", [True, False])
def test_packed_int8_weights(dynamic):
    """Parts, embeddings and weights are those of the format that was packed."""
    rng = np.random.default_rng(3)
    kernels = [
        Int8(*quantize_rows(jnp.asarray(rng.standard_normal((width, 13), np.float32))), dynamic)
        for width in (7, 40, cpu_kernels.panel_width(), 9)
    ]
    ids = jnp.array([[3, 3], [0, 39]])
    for some in (kernels, kernels[2:]):  # the first panels are full, or not
        made, plain = concat_kernels(tuple(map(to_cpu_format, some))), concat_kernels(tuple(some))
        assert isinstance(made, PackedInt8) and to_cpu_format(made) is made
        for one, other in zip(jax.tree.leaves(made.unpack()), jax.tree.leaves(plain), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(made.unbox(), plain.unbox())
    table = to_cpu_format(replace(kernels[1], is_table=True))
    np.testing.assert_array_equal(embed_ids(table, ids), embed_ids(kernels[1], ids))
    np.testing.assert_array_equal(table.unbox(), kernels[1].values * kernels[1].scale[:, None])


MARCHES = {"AVX-512": "x86-64-v4", "AVX-VNNI": "alderlake", "AVX2": "x86-64-v3", "SSE4": "x86-64-v2", "SSE2": "x86-64"}


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("name", [*MARCHES, "sanitized"])
def test_every_instruction_set(name):
    """The kernels of other processors, as far as this one can run them, and those of this one under sanitizers."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the instruction sets are those of x86")
    known = cpu_kernels._cpu_features().decode()
    needed = {"AVX-512": "avx512vl", "AVX-VNNI": "avx_vnni", "AVX2": "avx2"}.get(name, "sse2")
    if needed not in known:
        pytest.skip(f"this processor has no {needed}")
    flags = [f"-march={MARCHES[name]}"] if name in MARCHES else ["-fsanitize=address,undefined", "-g"]
    tests = "test_product or test_attention or test_write_and_attend or int8"
    program = (
        f"from jaxlm.nn.weights import cpu_kernels; cpu_kernels.FLAGS += tuple({flags}); import pytest; "
        f"raise SystemExit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', '{tests}', '{Path(__file__).parent}']))"
    )
    preload = {}
    if name == "sanitized":
        names = ("libasan.so", "libstdc++.so.6")
        paths = (subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True) for name in names)
        preload = {
            "LD_PRELOAD": " ".join(path.strip() for path in paths),
            "ASAN_OPTIONS": "detect_leaks=0",
            "JAXLM_CACHE": "",
        }
        preload["UBSAN_OPTIONS"] = "halt_on_error=1"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment() | preload, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "runtime error" not in done.stderr and " passed" in done.stdout
