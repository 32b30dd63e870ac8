"""Relative position as a learned number that is added to attention scores (Raffel et al. 2020, T5, section 2.1).

Each head has one number a bucket of distances: small distances have a bucket each, larger ones share buckets that grow
with the logarithm, and all from `distance` on share the last. All layers of a stack use the same numbers.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxlm.types import Array


def buckets_of(count: int, distance: int) -> np.ndarray:
    """The bucket of every distance 0 .. `distance`, of `count` in all: half for one distance each, half logarithmic."""
    exact, far = count // 2, np.arange(distance + 1, dtype=np.float32)
    fraction = np.log(np.maximum(far, 1) / np.float32(exact)) / np.float32(math.log(distance / exact))
    logarithmic = exact + (fraction * np.float32(count - exact)).astype(np.int32)
    return np.where(far < exact, far.astype(np.int32), np.minimum(logarithmic, count - 1))


class RelativeBias(nn.Module):
    """What each head adds to the score of a key that lies so many tokens before the query.

    Attributes:
      heads: N.
      buckets, distance: see the module. With `two_sided` half of the buckets are for keys after the query; otherwise
        such a key counts as being at the query.
    """

    heads: int
    buckets: int = 32
    distance: int = 128
    two_sided: bool = False

    @nn.compact
    def __call__(self, back_BTS: Array) -> Array:
        """Position of the query less that of the key (B, T, S) -> what is added (B, N, T, S), float32."""
        table = self.param("table", nn.initializers.normal(0.02), (self.buckets, self.heads))
        sided = self.buckets // 2 if self.two_sided else self.buckets
        far_BTS = jnp.abs(back_BTS) if self.two_sided else jnp.maximum(back_BTS, 0)
        bucket_BTS = jnp.asarray(buckets_of(sided, self.distance))[jnp.minimum(far_BTS, self.distance)]
        if self.two_sided:
            bucket_BTS = jnp.where(back_BTS < 0, bucket_BTS + sided, bucket_BTS)
        return jnp.moveaxis(table[bucket_BTS], -1, 1)
