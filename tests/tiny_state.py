"""A small training state of every kind of leaf, and a folder with three checkpoints of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxlm.checkpoint import Checkpoints

OPTIMIZER = optax.adamw(1e-3)


@struct.dataclass
class State:
    params: dict
    optimizer: tuple
    step: jax.Array
    key: jax.Array
    extra: dict


def make_state(seed: int = 0) -> State:
    w, e = (jax.random.normal(jax.random.key(seed + i), shape) for i, shape in enumerate([(6, 8), (4,)]))
    params = {"encoder": {"w": w, "b": jnp.full(8, seed + 0.5, jnp.bfloat16)}, "embed": e}
    extra = {
        "keys": jax.random.split(jax.random.key(seed), 3),
        "none": None,
        "empty": jnp.zeros((0, 3)),
        "special": jnp.array([jnp.nan, -0.0, jnp.inf]),
        "int": 7,
        "float": 0.1,
        "wide": np.array([2**40, -1]),
        "mask": jnp.array([True, False]),
        "small": jnp.array([-3, 2], jnp.int8),
    }
    return State(params, OPTIMIZER.init(params), jnp.int32(seed), jax.random.key(seed), extra)


ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x, make_state()
)


def bits(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).dtype, np.asarray(leaf).shape, np.asarray(leaf).tobytes()


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        assert bits(x) == bits(y), path
        assert isinstance(x, jax.Array) == isinstance(y, jax.Array), path


def three_steps(parent):
    """A folder with the steps 10, 20 and 30 of the seeds 10, 20 and 30, the best at 20."""
    folder = parent / "checkpoints"
    with Checkpoints(folder, keep=3, keep_best="valid/bleu") as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, make_state(step), {"seed": step, "tuple": (1, None)}, metric=-abs(step - 20))
    return folder


def listing(folder):
    return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*"))


def data_files(step_folder, item):
    """Every file that holds array bytes (tensorstore may put them into either of two folders)."""
    return [f for f in sorted((step_folder / item).rglob("d/*")) if f.is_file()]
