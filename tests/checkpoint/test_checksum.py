"""Laws of the checksum: its definition in Python integers, every bit, the order, any sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.tiny_state import make_state

from jaxlm.checkpoint.step_io import checksums
from jaxlm.pytree import named_leaves


def reference(array: np.ndarray) -> str:
    """The definition of `jaxlm.checkpoint.step_io`, in Python integers."""
    width = min(array.dtype.itemsize, 4)
    words = [int(x) for x in np.ascontiguousarray(array).reshape(-1).view(f"uint{8 * width}")]
    first = second = 0
    for i, word in enumerate(words):
        h = word ^ (i * 0x9E3779B1) & 0xFFFFFFFF
        h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
        h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
        h ^= h >> 16
        first, second = (first + h) % 2**32, (second + (2 * i + 1) * h) % 2**32
    return f"{first:08x}{second:08x}"


def check(x) -> str:
    return checksums({"x": x})["x"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "uint8", "uint16", "uint32", "float8_e4m3fn"])
def test_checksum_is_its_definition(dtype):
    x = np.asarray(jax.random.normal(jax.random.key(0), (3, 5, 2)) * 50).astype(jnp.dtype(dtype))
    assert check(jnp.asarray(x)) == check(x) == reference(x)


def test_checksum_of_wide_numbers_and_keys():
    wide = np.array([1.5, -2.25, 1e300])
    assert check(wide) == reference(wide.view(np.uint32))
    assert check(7) == reference(np.array([7, 0], np.uint32))
    key = jax.random.key(5)
    assert check(key) == reference(np.asarray(jax.random.key_data(key)))
    assert check(np.array([1 + 2j], np.complex64)) == reference(np.array([1.0, 2.0], np.float32))


def test_checksum_sees_every_byte_and_the_order():
    x = np.random.default_rng(0).integers(0, 256, 24, dtype=np.uint8)
    for dtype in (np.uint8, np.float32):
        seen = {check(x.view(dtype))}
        for byte in range(24):
            for bit in (0, 7):
                y = x.copy()
                y[byte] ^= 1 << bit
                seen.add(check(y.view(dtype)))
        assert len(seen) == 49
    values = np.arange(6, dtype=np.float32)
    orders = [np.roll(values, k) for k in range(6)] + [values[::-1].copy()]
    assert len({check(order) for order in orders}) == 7
    signs = {check(np.array(s, np.float32)) for s in ([0.0, 0.0], [-0.0, 0.0], [0.0, -0.0], [-0.0, -0.0])}
    assert len(signs) == 4  # two flipped sign bits: invisible to plain sums with odd factors


def test_checksum_does_not_depend_on_sharding():
    devices = jax.devices()
    x = np.arange(16 * len(devices), dtype=np.float32).reshape(len(devices), 16)
    sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices), "d"), jax.P("d"))
    assert check(jax.device_put(x, sharding)) == check(x) == check(x.reshape(-1))


def test_paths_are_unique():
    assert list(named_leaves(make_state().optimizer))[:2] == ["0/count", "0/mu/embed"]
    with pytest.raises(ValueError, match="same path"):
        named_leaves({"a/b": 1, "a": {"b": 2}})
