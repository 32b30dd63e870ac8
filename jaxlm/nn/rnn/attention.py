"""Attention scores of a decoder state and each source position, for recurrent encoder-decoders.

| kind         | score of query h and memory m      | source                                                     |
|--------------|------------------------------------|------------------------------------------------------------|
| "dot"        | h . m                              | Luong et al. 2015, section 3.1                             |
| "scaled_dot" | h . m / sqrt(D)                    | Vaswani et al. 2017, section 3.2.1                         |
| "general"    | h . (W m)                          | Luong et al. 2015, section 3.1                             |
| "additive"   | v . tanh(W h + U m + b)            | Bahdanau et al. 2015, section A.1.2; Luong's "concat"      |

With coverage the score depends on the attention so far, c_s = sum_{t' < t} a_{t's}: the additive one becomes
v . tanh(W h + U m + b + w c) (See et al. 2017, equation 11; Tu et al. 2016); the others add w c, w a scalar.

The parts that depend on the source only (W m, U m) are the keys, computed once per source instead of once per step.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.nn.layers.linear import Linear
from jaxlm.types import Array

ScoreKind = Literal["dot", "scaled_dot", "general", "additive"]


class AttentionScore(nn.Module):
    """The score of one kind. `width` is that of the queries, D, and of the additive score's tanh."""

    kind: ScoreKind
    width: int
    coverage: bool = False

    def setup(self) -> None:
        if self.kind in ("general", "additive"):
            self.key = Linear(self.width, bias=False)
        if self.kind == "additive":
            self.query = Linear(self.width)
            self.vector = self.param("vector", nn.initializers.normal(self.width**-0.5), (self.width,))
        if self.coverage:
            shape = (self.width,) if self.kind == "additive" else (1,)
            self.cover = self.param("cover", nn.initializers.zeros_init(), shape)

    def project_keys(self, memory_BSD: Array) -> Array:
        """Return the keys of a source, (B, S, width). Raises UserError if a dot product would have unequal widths."""
        if self.kind in ("general", "additive"):
            return self.key(memory_BSD)
        if memory_BSD.shape[-1] != self.width:
            raise UserError(
                f'score="{self.kind}" multiplies encoder states of width {memory_BSD.shape[-1]} with decoder states of '
                f'width {self.width}: make the widths equal, or use score="general" or "additive"'
            )
        return memory_BSD

    def __call__(self, query_BTD: Array, key_BSD: Array, coverage_BTS: Array | None = None) -> Array:
        """Return scores (B, T, S). `coverage_BTS` (T may be 1) is the attention to each source position so far."""
        if self.kind == "additive":
            cover_D = self.cover if self.coverage else None
            return _additive_score(self.query(query_BTD), key_BSD, self.vector, coverage_BTS, cover_D)
        score_BTS = jnp.einsum("btd,bsd->bts", query_BTD, key_BSD)
        if self.kind == "scaled_dot":
            score_BTS = score_BTS * self.width**-0.5
        if coverage_BTS is not None:
            score_BTS += coverage_BTS * self.cover[None, None]
        return score_BTS


@jax.checkpoint
def _additive_score(
    query_BTD: Array, key_BSD: Array, vector_D: Array, coverage_BTS: Array | None, coverage_weight_D: Array | None
):
    """v . tanh(..) of every pair. The tanh, T x S x D numbers per row, is recomputed in the backward pass."""
    inner_BTSD = query_BTD[:, :, None] + key_BSD[:, None]
    if coverage_BTS is not None:
        inner_BTSD += coverage_BTS[..., None] * coverage_weight_D[None, None, None]
    # A matrix-vector product of (B T S, D) and (D,).
    return (jnp.tanh(inner_BTSD).reshape(-1, vector_D.shape[0]) @ vector_D).reshape(inner_BTSD.shape[:-1])


def masked_softmax(score_BTS: Array, valid_BS: Array) -> Array:
    """Return softmax over the valid source positions, exactly 0 on the others, (B, T, S); zeros if none is valid."""
    mask_B1S = valid_BS[:, None]
    score_BTS = jnp.where(mask_B1S, score_BTS, jnp.finfo(score_BTS.dtype).min)
    return jnp.where(mask_B1S, jax.nn.softmax(score_BTS, axis=-1), 0.0)
