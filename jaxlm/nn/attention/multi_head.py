"""Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2); with a cache: `cached.py`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.distributed.sharding import constrain
from jaxlm.errors import UserError
from jaxlm.nn.attention.cached import KeysValues, cached_attention, update_cache_and_attend
from jaxlm.nn.attention.kernels import find_attention_kernel
from jaxlm.nn.attention.kv_cache import CacheView, LayerCache
from jaxlm.nn.attention.mask import MaskRule
from jaxlm.nn.layers.dropout import drop_elements
from jaxlm.nn.layers.linear import Linear, fused_projection
from jaxlm.nn.layers.positions import Rotation, rotate
from jaxlm.types import Array


def dot_product_attention(
    query_BTNH: Array, key_BSGH: Array, value_BSGH: Array, mask_BTS: Array | MaskRule, scale: float | None = None,
    bias_BNTS: Array | None = None, dropout: tuple[Array, float] | None = None,
) -> Array:  # fmt: skip
    """Return softmax(scale Q K^T + bias) V over the keys that the mask allows, (B, T, N, H).

    Scores and softmax are float32. A query that may attend to nothing gives zeros: padding leaves no trace and no NaN.
    G may be less than N: N / G adjacent query heads share a key head (Ainslie et al. 2023).

    Args:
      mask_BTS: True if query t may attend to key s; T may be 1, one mask for all queries. If it is a `MaskRule`, an
        accelerator computes the attention by a kernel, if there is one for this case.
      scale: None: 1 / sqrt(H).
      dropout: key and rate of the dropout of the attention weights.
    """
    (rows, length, heads, width), kv_heads = query_BTNH.shape, key_BSGH.shape[2]
    scale = width**-0.5 if scale is None else scale
    if isinstance(mask_BTS, MaskRule):
        plain = bias_BNTS is None and dropout is None
        if plain and (kernel := find_attention_kernel(query_BTNH, key_BSGH)):
            return kernel(query_BTNH, key_BSGH, value_BSGH, mask_BTS, scale)
        mask_BTS = mask_BTS.mask()
    # With split positions, queries stay on their device and all keys and values are gathered.
    query_BTNH = constrain(query_BTNH, "batch", "sequence", "heads", None)
    key_BSGH, value_BSGH = (constrain(x, "batch", None, "heads", None) for x in (key_BSGH, value_BSGH))
    query_BNTH, key_BGSH, value_BGSH = (jnp.swapaxes(x, 1, 2) for x in (query_BTNH, key_BSGH, value_BSGH))
    if heads != kv_heads:
        # The N / G query heads of a key head become more positions of one head: (B, G, N / G * T, H).
        query_BNTH = query_BNTH.reshape(rows, kv_heads, -1, width)
        mask_BTS = mask_BTS if mask_BTS.shape[1] == 1 else jnp.tile(mask_BTS, (1, heads // kv_heads, 1))
        bias_BNTS = None if bias_BNTS is None else bias_BNTS.reshape(rows, kv_heads, -1, bias_BNTS.shape[-1])
    if dropout is None:
        mixed_BNTH = _attend(query_BNTH, key_BGSH, value_BGSH, mask_BTS, bias_BNTS, scale)
    else:
        weight_BNTS = drop_elements(_softmax_weights(query_BNTH, key_BGSH, mask_BTS, bias_BNTS, scale), *dropout)
        weight_BNTS = weight_BNTS.astype(value_BSGH.dtype)
        if heads == kv_heads:
            # One einsum to the final order of axes: a transpose after it would change the rounding of its gradient.
            return jnp.einsum("bnts,bnsh->btnh", weight_BNTS, value_BGSH)
        mixed_BNTH = jnp.einsum("bnts,bnsh->bnth", weight_BNTS, value_BGSH)
    return jnp.swapaxes(mixed_BNTH.reshape(rows, heads, length, width), 1, 2)


def _softmax_weights(
    query_BNTH: Array, key_BNSH: Array, mask_BTS: Array, bias_BNTS: Array | None, scale: float
) -> Array:
    """softmax(scale Q K^T + bias) over the allowed keys, float32."""
    score_BNTS = jnp.einsum("bnth,bnsh->bnts", query_BNTH, key_BNSH, preferred_element_type=jnp.float32) * scale
    if bias_BNTS is not None:
        score_BNTS = score_BNTS + bias_BNTS
    score_BNTS = jnp.where(mask_BTS[:, None], score_BNTS, -jnp.inf)
    # The maximum is finite and the sum at least the smallest float: a row without keys gives 0 / tiny = 0.
    max_BNT1 = jax.lax.stop_gradient(jnp.maximum(score_BNTS.max(-1, keepdims=True), jnp.finfo(jnp.float32).min))
    weight_BNTS = jnp.exp(score_BNTS - max_BNT1)
    return weight_BNTS / jnp.maximum(weight_BNTS.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(query_BNTH, key_BNSH, value_BNSH, mask_BTS, bias_BNTS, scale: float) -> Array:
    """weights V -> (B, N, T, H), with a gradient that keeps the weights and nothing else of size T x S."""
    return _attend_forward(query_BNTH, key_BNSH, value_BNSH, mask_BTS, bias_BNTS, scale)[0]


def _attend_forward(query_BNTH, key_BNSH, value_BNSH, mask_BTS, bias_BNTS, scale):
    weight_BNTS = _softmax_weights(query_BNTH, key_BNSH, mask_BTS, bias_BNTS, scale).astype(value_BNSH.dtype)
    residuals = (query_BNTH, key_BNSH, value_BNSH, weight_BNTS, None if bias_BNTS is None else jnp.zeros(()))
    return jnp.einsum("bnts,bnsh->bnth", weight_BNTS, value_BNSH), residuals


def _attend_backward(scale, residuals, d_mixed_BNTH):
    query_BNTH, key_BNSH, value_BNSH, weight_BNTS, has_bias = residuals
    d_value_BNSH = jnp.einsum("bnst,bnth->bnsh", _transpose_weights(weight_BNTS), d_mixed_BNTH)
    d_weight_BNTS = jnp.einsum("bnth,bnsh->bnts", d_mixed_BNTH, value_BNSH, preferred_element_type=jnp.float32)
    # Gradient of the softmax: d_score = w * (d_w - sum_s w d_w); masked keys have w = 0.
    inner_BNT1 = (weight_BNTS * d_weight_BNTS).sum(-1, keepdims=True)
    d_biased_BNTS = weight_BNTS * (d_weight_BNTS - inner_BNT1)
    d_score_BNTS = (d_biased_BNTS * scale).astype(query_BNTH.dtype)
    d_query_BNTH = jnp.einsum("bnts,bnsh->bnth", d_score_BNTS, key_BNSH)
    d_key_BNSH = jnp.einsum("bnst,bnth->bnsh", _transpose_weights(d_score_BNTS), query_BNTH)
    return d_query_BNTH, d_key_BNSH, d_value_BNSH, None, None if has_bias is None else d_biased_BNTS


def _transpose_weights(x_BNTS: Array) -> Array:
    """(B, N, S, T). On a CPU a copy: a product with a transposed left side costs twice as much there."""

    transpose = functools.partial(jnp.swapaxes, axis1=2, axis2=3)
    return jax.lax.platform_dependent(
        x_BNTS, cpu=lambda x: jax.lax.optimization_barrier(transpose(x)), default=transpose
    )


_attend.defvjp(_attend_forward, _attend_backward)


class Attention(nn.Module):
    """Multi-head attention: projections to queries, keys and values, `dot_product_attention`, output projection.

    Attributes:
      width, heads: D and N.
      dropout: of the attention weights.
      kv_heads: heads of keys and values, G (Ainslie et al. 2023); None: N.
      head_dim: H; None: D / N.
      qkv_bias, out_bias: whether these projections have a bias.
      scale_scores: divide scores by sqrt(H).
      qk_norm: epsilon of an RMS norm of each query and key head (Dehghani et al. 2023); None: no norm.
      init_std, out_init_std: of the normal initialization of the projections; None: Xavier-uniform.
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
        head_dim, kv_heads = resolve_heads(self.width, self.heads, self.kv_heads, self.head_dim)
        linear = functools.partial(Linear, bias=self.qkv_bias, dtype=self.dtype, init_std=self.init_std)
        self.query = linear(self.heads * head_dim)
        self.key, self.value = (linear(kv_heads * head_dim) for _ in range(2))
        self.out = Linear(self.width, bias=self.out_bias, dtype=self.dtype, init_std=self.out_init_std)
        self.scale = head_dim**-0.5 if self.scale_scores else 1.0
        if self.qk_norm is not None:
            self.query_norm, self.key_norm = (nn.RMSNorm(self.qk_norm, jnp.dtype(self.dtype)) for _ in range(2))

    def project_qkv(self, x_BTD: Array, rotation: Rotation | None = None) -> tuple[Array, Array, Array]:
        """Return queries (B, T, N, H), keys and values (B, T, G, H) of x, for self-attention."""
        query, key, value = (self._split_heads(y) for y in fused_projection(x_BTD, self.query, self.key, self.value))
        if self.qk_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        return query, key, value

    def project_kv(self, x_BSD: Array) -> tuple[Array, Array]:
        """Return keys and values of a source, each (B, S, G, H)."""
        key, value = fused_projection(x_BSD, self.key, self.value)
        return self._split_heads(key), self._split_heads(value)

    def __call__(self, x_BTD: Array, key_BSGH: Array, value_BSGH: Array, mask_BTS: Array) -> Array:
        """Attend from x to given keys and values -> (B, T, D)."""
        return self._attend_and_project(self._split_heads(self.query(x_BTD)), key_BSGH, value_BSGH, mask_BTS)

    def self_attend(
        self, x_BTD: Array, mask_BTT: Array, rotation: Rotation | None = None, bias_BNTT: Array | None = None
    ) -> Array:
        """Attend from x to x -> (B, T, D)."""
        return self._attend_and_project(*self.project_qkv(x_BTD, rotation), mask_BTT, bias_BNTT)

    def _attend_and_project(self, query_BTNH, key_BSGH, value_BSGH, mask_BTS, bias_BNTS=None) -> Array:
        dropout = None
        if self.dropout > 0.0 and self.has_rng("dropout"):
            dropout = self.make_rng("dropout"), self.dropout
        mixed_BTNH = dot_product_attention(query_BTNH, key_BSGH, value_BSGH, mask_BTS, self.scale, bias_BNTS, dropout)
        return self._project_out(mixed_BTNH)

    def self_attend_cached(
        self, x_RTD: Array, cache: LayerCache, view: CacheView, rotation: Rotation | None = None
    ) -> tuple[Array, LayerCache]:
        """Write T more keys and values per beam and attend to the cache -> (R, T, D), the new cache."""
        mixed_RTNH, cache = update_cache_and_attend(*self.project_qkv(x_RTD, rotation), cache, view, self.scale)
        return self._project_out(mixed_RTNH), cache

    def cross_kv(self, x_BSD: Array) -> tuple[Array, Array]:
        """Return the keys (B, G, H, S) and values (B, G, S, H) of a source for `cross_attend_cached`."""
        key_BSGH, value_BSGH = self.project_kv(x_BSD)
        return jnp.transpose(key_BSGH, (0, 2, 3, 1)), jnp.swapaxes(value_BSGH, 1, 2)

    def cross_attend_cached(self, x_RTD: Array, key_BGHS: Array, value_BGSH: Array, mask_B1S: Array) -> Array:
        """Attend from x, K beams per row, to the source of the row -> (R, T, D)."""
        source = KeysValues(key_BGHS, value_BGSH, mask_BQS=mask_B1S)
        return self._project_out(cached_attention(self._split_heads(self.query(x_RTD)), [source], self.scale))

    def self_weights(self, x_BTD: Array, mask_BTT: Array, rotation: Rotation | None = None) -> Array:
        """Return the self-attention weights of every head, (B, N, T, T)."""
        query_BTNH, key_BTGH, _ = self.project_qkv(x_BTD, rotation)
        return self._weights(query_BTNH, jnp.swapaxes(key_BTGH, 1, 2), mask_BTT)

    def cross_weights(self, x_RTD: Array, key_BGHS: Array, value_BGSH: Array, mask_B1S: Array) -> Array:
        """Return the cross-attention weights, mean over heads, (R, T, S)."""
        query_RTNH = self._split_heads(self.query(x_RTD))
        query_BQNH = query_RTNH.reshape(key_BGHS.shape[0], -1, *query_RTNH.shape[2:])
        weight_BNQS = self._weights(query_BQNH, jnp.swapaxes(key_BGHS, 2, 3), mask_B1S)
        return weight_BNQS.mean(1).reshape(*x_RTD.shape[:2], -1)

    def _weights(self, query_BTNH: Array, key_BGSH: Array, mask_BTS: Array) -> Array:
        key_BNSH = jnp.repeat(key_BGSH, query_BTNH.shape[2] // key_BGSH.shape[1], axis=1)
        return _softmax_weights(jnp.swapaxes(query_BTNH, 1, 2), key_BNSH, mask_BTS, None, self.scale)

    def _project_out(self, mixed_BTNH: Array) -> Array:
        return self.out(mixed_BTNH.reshape(*mixed_BTNH.shape[:2], -1))

    def _split_heads(self, x_BTD: Array) -> Array:
        head_dim, _ = resolve_heads(self.width, self.heads, self.kv_heads, self.head_dim)
        return x_BTD.reshape(*x_BTD.shape[:2], -1, head_dim)


def resolve_heads(width: int, heads: int, kv_heads: int | None, head_dim: int | None) -> tuple[int, int]:
    """Return H and G. Raises UserError if the heads do not divide the width, or the key heads the query heads."""
    if head_dim is None and width % heads:
        raise UserError(f"a width of {width} does not divide into {heads} heads: choose a multiple of it")
    kv_heads = heads if kv_heads is None else kv_heads
    if heads % kv_heads:
        raise UserError(f"{heads} heads of queries cannot share {kv_heads} of keys evenly: choose a divisor of {heads}")
    return width // heads if head_dim is None else head_dim, kv_heads
