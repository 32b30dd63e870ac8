"""Scaled dot-product attention with several heads (Vaswani et al. 2017, section 3.2). With a cache:
`jaxlm.nn.attention.cached`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.distributed.sharding import constrain
from jaxlm.errors import UserError
from jaxlm.nn.attention.cached import cached_attention, update_cache_and_attend
from jaxlm.nn.attention.kernels import find_attention_kernel
from jaxlm.nn.attention.kv_cache import CacheView, LayerCache
from jaxlm.nn.attention.mask import MaskRule
from jaxlm.nn.layers.dropout import keep_mask
from jaxlm.nn.layers.linear import Linear, fused_projection
from jaxlm.nn.layers.positions import Rotation, rotate
from jaxlm.types import Array


def dot_product_attention(
    query_BTNH: Array, key_BSGH: Array, value_BSGH: Array, mask_BTS: Array | MaskRule, dropout_key: Array | None = None,
    dropout_rate: float = 0.0, scale: float | None = None, bias_BNTS: Array | None = None,
) -> Array:  # fmt: skip
    """softmax(Q K^T scale + bias) V over the allowed keys -> (B, T, N, H). `scale` is 1 / sqrt(H) unless given.

    `mask_BTS` is True where query t may see key s (T may be 1 in the mask, for all queries alike). Scores and softmax
    are float32; a query that may see nothing gives zeros, so padding leaves no trace and no NaN. There may be fewer
    heads of keys than of queries: N / G in a row share one, and are laid side by side as if they were more positions.
    A `MaskRule` in the place of the mask lets the accelerator's own kernel do it, where there is one for this case.
    """
    if isinstance(mask_BTS, MaskRule):
        given = query_BTNH, key_BSGH, value_BSGH, mask_BTS, query_BTNH.shape[-1] ** -0.5 if scale is None else scale
        if (
            bias_BNTS is None
            and (dropout_key is None or dropout_rate == 0.0)
            and (kernel := find_attention_kernel(*given[:4]))
        ):
            return kernel(*given)
        mask_BTS = mask_BTS.mask()
    # Queries stay where their positions are, and all keys and values come to them.
    query_BTNH = constrain(query_BTNH, "batch", "sequence", "heads", None)
    key_BSGH, value_BSGH = (constrain(x, "batch", None, "heads", None) for x in (key_BSGH, value_BSGH))
    query_BNTH, key_BGSH, value_BGSH = (jnp.swapaxes(x, 1, 2) for x in (query_BTNH, key_BSGH, value_BSGH))
    (rows, heads, length, width), groups = query_BNTH.shape, key_BGSH.shape[1]
    scale = width**-0.5 if scale is None else scale
    if heads != groups:
        query_BNTH = query_BNTH.reshape(rows, groups, -1, width)
        mask_BTS = mask_BTS if mask_BTS.shape[1] == 1 else jnp.tile(mask_BTS, (1, heads // groups, 1))
        bias_BNTS = None if bias_BNTS is None else bias_BNTS.reshape(rows, groups, -1, bias_BNTS.shape[-1])
    if dropout_key is None or dropout_rate == 0.0:
        mixed_BNTH = _attend(query_BNTH, key_BGSH, value_BGSH, mask_BTS, bias_BNTS, scale)
        return jnp.swapaxes(mixed_BNTH.reshape(rows, heads, length, width), 1, 2)
    weight_BNTS = _softmax_weights(query_BNTH, key_BGSH, mask_BTS, bias_BNTS, scale)
    weight_BNTS = jnp.where(
        keep_mask(dropout_key, dropout_rate, weight_BNTS.shape), weight_BNTS / (1.0 - dropout_rate), 0.0
    )
    if heads == groups:
        return jnp.einsum("bnts,bnsh->btnh", weight_BNTS.astype(value_BSGH.dtype), value_BGSH)
    mixed_BNTH = jnp.einsum("bnts,bnsh->bnth", weight_BNTS.astype(value_BSGH.dtype), value_BGSH)
    return jnp.swapaxes(mixed_BNTH.reshape(rows, heads, length, width), 1, 2)


def _softmax_weights(
    query_BNTH: Array, key_BNSH: Array, mask_BTS: Array, bias_BNTS: Array | None, scale: float
) -> Array:
    """softmax(Q K^T scale + bias) over the allowed keys, float32."""
    score_BNTS = jnp.einsum("bnth,bnsh->bnts", query_BNTH, key_BNSH, preferred_element_type=jnp.float32) * scale
    if bias_BNTS is not None:
        score_BNTS = score_BNTS + bias_BNTS
    score_BNTS = jnp.where(mask_BTS[:, None], score_BNTS, -jnp.inf)
    highest = jax.lax.stop_gradient(jnp.maximum(score_BNTS.max(-1, keepdims=True), jnp.finfo(jnp.float32).min))
    weight_BNTS = jnp.exp(score_BNTS - highest)
    return weight_BNTS / jnp.maximum(weight_BNTS.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(query_BNTH, key_BNSH, value_BNSH, mask_BTS, bias_BNTS, scale: float) -> Array:
    """weights V -> (B, N, T, H). Its own gradient keeps the weights and nothing else of size T x S."""
    return _attend_forward(query_BNTH, key_BNSH, value_BNSH, mask_BTS, bias_BNTS, scale)[0]


def _attend_forward(query_BNTH, key_BNSH, value_BNSH, mask_BTS, bias_BNTS, scale):
    weight_BNTS = _softmax_weights(query_BNTH, key_BNSH, mask_BTS, bias_BNTS, scale).astype(value_BNSH.dtype)
    kept = (query_BNTH, key_BNSH, value_BNSH, weight_BNTS, None if bias_BNTS is None else jnp.zeros(()))
    return jnp.einsum("bnts,bnsh->bnth", weight_BNTS, value_BNSH), kept


def _attend_backward(scale, residuals, d_mixed_BNTH):
    query_BNTH, key_BNSH, value_BNSH, weight_BNTS, biased = residuals
    d_value_BNSH = jnp.einsum("bnst,bnth->bnsh", _transpose_weights(weight_BNTS), d_mixed_BNTH)
    d_weight_BNTS = jnp.einsum("bnth,bnsh->bnts", d_mixed_BNTH, value_BNSH, preferred_element_type=jnp.float32)
    inner_BNT1 = (weight_BNTS * d_weight_BNTS).sum(-1, keepdims=True)
    d_biased_BNTS = weight_BNTS * (d_weight_BNTS - inner_BNT1)
    d_score_BNTS = (d_biased_BNTS * scale).astype(query_BNTH.dtype)
    d_query_BNTH = jnp.einsum("bnts,bnsh->bnth", d_score_BNTS, key_BNSH)
    d_key_BNSH = jnp.einsum("bnst,bnth->bnsh", _transpose_weights(d_score_BNTS), query_BNTH)
    return d_query_BNTH, d_key_BNSH, d_value_BNSH, None, None if biased is None else d_biased_BNTS


def _transpose_weights(x_BNTS: Array) -> Array:
    """(B, N, S, T). On a CPU as a copy: a product that takes its left side transposed costs twice as much there."""

    def turn(x_BNTS):
        return jnp.swapaxes(x_BNTS, 2, 3)

    return jax.lax.platform_dependent(x_BNTS, cpu=lambda x: jax.lax.optimization_barrier(turn(x)), default=turn)


_attend.defvjp(_attend_forward, _attend_backward)


class Attention(nn.Module):
    """Projections around `dot_product_attention`: q, k, v of `heads` heads, and the output map.

    Attributes:
      width, heads: model width D, heads N.
      dropout: on the attention weights.
      kv_heads: heads of keys and values, G (Ainslie et al. 2023); None: as many as of queries.
      head_dim: H; None: width / heads.
      qkv_bias, out_bias: whether these maps have one.
      scale_scores: scores are divided by sqrt(H).
      qk_norm: the epsilon of a root mean square norm of each head of q and k (Dehghani et al. 2023); None: no norm.
      init_std, out_init_std: of the normal that the maps start from; None: Xavier-uniform.
    """

    width: int
    heads: int
    dropout: float = 0.0
    dtype: str = "float32"
    kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool = True
    out_bias: bool = True
    scale_scores: bool = True
    qk_norm: float | None = None
    init_std: float | None = None
    out_init_std: float | None = None

    def setup(self) -> None:
        head_width, groups = resolve_heads(self.width, self.heads, self.kv_heads, self.head_dim)
        inner, outer = (self.qkv_bias, self.dtype, self.init_std), (self.out_bias, self.dtype, self.out_init_std)
        self.query = Linear(self.heads * head_width, *inner)
        self.key, self.value = (Linear(groups * head_width, *inner) for _ in range(2))
        self.out = Linear(self.width, *outer)
        self.scale = None if self.scale_scores else 1.0
        if self.qk_norm is not None:
            self.query_norm, self.key_norm = (nn.RMSNorm(self.qk_norm, jnp.dtype(self.dtype)) for _ in range(2))

    def project_qkv(self, x_BTD: Array, rotation: Rotation | None = None) -> tuple[Array, Array, Array]:
        """Queries (B, T, N, H), keys and values (B, T, G, H) of x: what attention of x to itself begins with."""
        query, key, value = (self._split_heads(y) for y in fused_projection(x_BTD, self.query, self.key, self.value))
        if self.qk_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        return query, key, value

    def project_kv(self, x_BSD: Array) -> tuple[Array, Array]:
        """The keys and the values of x, each (B, S, G, H)."""
        key, value = fused_projection(x_BSD, self.key, self.value)
        return self._split_heads(key), self._split_heads(value)

    def __call__(self, x_BTD: Array, key_BSGH: Array, value_BSGH: Array, mask_BTS: Array) -> Array:
        """Queries from x, attention to the given keys and values -> (B, T, D)."""
        return self._attend_and_project(self._split_heads(self.query(x_BTD)), key_BSGH, value_BSGH, mask_BTS)

    def self_attend(
        self, x_BTD: Array, mask_BTT: Array, rotation: Rotation | None = None, bias_BNTT: Array | None = None
    ) -> Array:
        """Attention of x to itself -> (B, T, D)."""
        return self._attend_and_project(*self.project_qkv(x_BTD, rotation), mask_BTT, bias_BNTT)

    def _attend_and_project(self, query_BTNH, key_BSGH, value_BSGH, mask_BTS, bias_BNTS=None) -> Array:
        """Attention of the queries to the keys and values, and the output map -> (B, T, D)."""
        key = self.make_rng("dropout") if self.dropout > 0.0 and self.has_rng("dropout") else None
        args = (query_BTNH, key_BSGH, value_BSGH, mask_BTS, key, self.dropout, self.scale, bias_BNTS)
        return self._project_out(dot_product_attention(*args))

    def self_weights(self, x_BTD: Array, mask_BTT: Array, rotation: Rotation | None = None) -> Array:
        """How much each position of x looks at each other, by head -> (B, N, T, T)."""
        query_BTNH, key_BTGH, _ = self.project_qkv(x_BTD, rotation)
        heads, width = query_BTNH.shape[2:]
        key_BTNH = jnp.repeat(key_BTGH, heads // key_BTGH.shape[2], axis=2)
        scale = width**-0.5 if self.scale is None else self.scale
        return _softmax_weights(jnp.swapaxes(query_BTNH, 1, 2), jnp.swapaxes(key_BTNH, 1, 2), mask_BTT, None, scale)

    def cross_kv(self, x_BSD: Array) -> tuple[Array, Array]:
        """The keys (B, G, H, S) and the values (B, G, S, H) of a source as `cross_attend_cached` takes them."""
        key_BSGH, value_BSGH = self.project_kv(x_BSD)
        return jnp.transpose(key_BSGH, (0, 2, 3, 1)), jnp.swapaxes(value_BSGH, 1, 2)

    def cross_attend_cached(self, x_RTD: Array, key_BGHS: Array, value_BGSH: Array, mask_B1S: Array) -> Array:
        """Queries from x, attention to the source of each slot's row -> (R, T, D)."""
        query_RTNH = self._split_heads(self.query(x_RTD))
        return self._project_out(cached_attention(query_RTNH, (key_BGHS, value_BGSH, mask_B1S), scale=self.scale))

    def cross_weights(self, x_RTD: Array, key_BGHS: Array, value_BGSH: Array, mask_B1S: Array) -> Array:
        """How much each position of x looks at each position of the source, mean of the heads -> (R, T, S)."""
        query_RTNH = self._split_heads(self.query(x_RTD))
        rows, (_, _, heads, width) = key_BGHS.shape[0], query_RTNH.shape
        query_BQNH = query_RTNH.reshape(rows, -1, heads, width)
        key_BNHS = jnp.repeat(key_BGHS, heads // key_BGHS.shape[1], axis=1)
        scale = width**-0.5 if self.scale is None else self.scale
        weight_BNQS = _softmax_weights(
            jnp.swapaxes(query_BQNH, 1, 2), jnp.swapaxes(key_BNHS, 2, 3), mask_B1S, None, scale
        )
        return weight_BNQS.mean(1).reshape(*x_RTD.shape[:2], -1)

    def self_attend_cached(
        self, x_RTD: Array, cache: LayerCache, view: CacheView, rotation: Rotation | None = None
    ) -> tuple[Array, LayerCache]:
        """Write the keys and values of T more tokens a slot, look at all that each sees -> (R, T, D), the new cache."""
        mixed_RTNH, cache = update_cache_and_attend(*self.project_qkv(x_RTD, rotation), cache, view, self.scale)
        return self._project_out(mixed_RTNH), cache

    def _project_out(self, mixed_BTNH: Array) -> Array:
        return self.out(mixed_BTNH.reshape(*mixed_BTNH.shape[:2], -1))

    def _split_heads(self, x_BTD: Array) -> Array:
        head_width, _ = resolve_heads(self.width, self.heads, self.kv_heads, self.head_dim)
        return x_BTD.reshape(*x_BTD.shape[:2], -1, head_width)


def resolve_heads(width: int, heads: int, kv_heads: int | None, head_dim: int | None) -> tuple[int, int]:
    """Width of a head and heads of keys, H and G. Raises UserError where heads do not share the width or the keys."""
    if head_dim is None and width % heads:
        raise UserError(f"a width of {width} does not divide into {heads} heads: choose a multiple of it")
    groups = heads if kv_heads is None else kv_heads
    if heads % groups:
        raise UserError(f"{heads} heads of queries cannot share {groups} of keys evenly: choose a divisor of {heads}")
    return width // heads if head_dim is None else head_dim, groups
