"""Position encodings: absolute (sinusoidal or learned), rotary, and relative biases of attention scores.

Absolute: the sinusoids of Vaswani et al. 2017 (section 3.5) or a learned table, added to the embeddings.

Rotary (Su et al. 2021, RoFormer): channels h and h + H/2 of a head are rotated, as a point in the plane, by the angle
position * rate_h:

    rate_h = theta^(-2h / H),  h = 0 .. H/2 - 1        so q_t . k_s depends on t - s alone

Scaling rules for longer texts change the rates once, so that cached keys stay valid. "Dynamic" NTK scaling, whose
rates depend on the length read so far, is left out: its outputs would differ with and without a cache.

Relative (Raffel et al. 2020, T5, section 2.1): a learned number per head and bucket of distances is added to attention
scores. Small distances have a bucket each, larger ones share buckets of logarithmic size, and all from `max_distance`
share the last one. All layers of a stack share the numbers.
"""

import math
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import UserError
from jaxlm.types import Array

Rotation = tuple[Array, Array]
"""cos and sin of the angles, each (B, T, H / 2), float32."""


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: all rates divided by `factor` (Chen et al. 2023)."""

    factor: float

    def scale_frequencies(self, rate_H: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """Return the new rates and a factor of cos and sin."""
        return rate_H / self.factor, 1.0


@dataclass(frozen=True)
class Llama3Scaling:
    """Interpolation of slow channels, blended into fast ones, which are kept (Llama 3.1).

    Slow: of a wavelength above original_max_positions / low_freq_factor; fast: below that / high_freq_factor.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def scale_frequencies(self, rate_H: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        turns_H = self.original_max_positions * rate_H / (2 * math.pi)
        kept_H = np.clip((turns_H - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0.0, 1.0)
        return kept_H * rate_H + (1 - kept_H) * rate_H / self.factor, 1.0


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023): interpolation with a linear ramp over channels, and sharper attention.

    Attributes:
      factor: ratio of the new length to the trained one.
      original_max_positions: the trained length.
      beta_fast, beta_slow: rotations over the trained length above which a channel is kept, and below which it is
        interpolated.
      attention_factor: factor of cos and sin; None: 0.1 ln(factor) + 1.
      truncate: round the ends of the ramp to whole channels.
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def scale_frequencies(self, rate_H: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        half = len(rate_H)

        def channel(rotations: float) -> float:
            return half * math.log(self.original_max_positions / (rotations * 2 * math.pi)) / math.log(theta)

        first, last = channel(self.beta_fast), channel(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * half - 1)
        slow_H = np.clip((np.arange(half) - first) / max(last - first, 0.001), 0.0, 1.0)
        usual = 0.1 * math.log(max(self.factor, 1.0)) + 1
        sharpness = usual if self.attention_factor is None else self.attention_factor
        return slow_H * rate_H / self.factor + (1 - slow_H) * rate_H, sharpness


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: the base `theta` and, for texts longer than those first trained on, a scaling rule."""

    theta: float = 10000.0
    scaling: LinearScaling | Llama3Scaling | Yarn | None = None

    def rotation(self, position_BT: Array, head_dim: int) -> Rotation:
        """Return cos and sin (B, T, H / 2) of positions (B, T). Raises UserError if H is odd."""
        if head_dim % 2:
            raise UserError(f"rotary positions rotate pairs of channels, but a head has {head_dim}: make it even")
        rate_H, sharpness = self.theta ** (-np.arange(0, head_dim, 2) / head_dim), 1.0
        if self.scaling is not None:
            rate_H, sharpness = self.scaling.scale_frequencies(rate_H, self.theta)
        angle_BTH = position_BT[..., None].astype(jnp.float32) * jnp.asarray(rate_H, jnp.float32)[None, None]
        return jnp.cos(angle_BTH) * sharpness, jnp.sin(angle_BTH) * sharpness


def rotate(x_BTNH: Array, rotation: Rotation) -> Array:
    """Rotate the channel pairs (h, h + H/2) of every head: (B, T, N, H) -> the same shape and dtype."""
    cos, sin = (part[:, :, None] for part in rotation)
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def sinusoids(position: Array, width: int, halves: bool = False) -> Array:
    """Return sin(pos / 10000^(2i/D)) at 2i and its cos at 2i+1, with `halves` all sines first: (...,) -> (..., D)."""
    rate_H = jnp.asarray(np.exp(-np.log(10000.0) * np.arange(0, width, 2) / width), jnp.float32)
    angle = position[..., None].astype(jnp.float32) * rate_H.reshape((1,) * position.ndim + (-1,))
    if halves:
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)[..., : width // 2]], axis=-1)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*position.shape, -1)[..., :width]


class PositionalEncoding(nn.Module):
    """Absolute position encodings: "sinusoidal", "sinusoidal_halves" or "learned" (at most `max_length`), else zeros.

    Sinusoids are interleaved as in the paper, or in halves (Marian, Tensor2Tensor). A learned table is initialized
    from a normal with standard deviation `init_std`; None: D^-1/2. A valid token beyond its end has the encoding NaN,
    so that no result looks right: who makes batches counts the tokens first (`jaxlm.models.properties`).
    """

    width: int
    kind: str = "sinusoidal"
    max_length: int = 1024
    init_std: float | None = None

    @nn.compact
    def __call__(self, position_BT: Array, valid_BT: Array, bound: int | None = None) -> Array:
        """Return encodings (B, T, D) of positions (B, T); if all are below `bound`, each is computed only once."""
        halves = self.kind == "sinusoidal_halves"
        if self.kind in ("none", "rotary", "relative"):
            return jnp.zeros((*position_BT.shape, self.width), jnp.float32)
        if self.kind != "learned" and bound is not None:
            return jnp.take(sinusoids(jnp.arange(bound), self.width, halves), position_BT, axis=0, mode="clip")
        if self.kind != "learned":
            return sinusoids(position_BT, self.width, halves)
        init_std = self.width**-0.5 if self.init_std is None else self.init_std
        table = self.param("table", nn.initializers.normal(init_std), (self.max_length, self.width))
        encoding_BTD = table[jnp.clip(position_BT, 0, self.max_length - 1)]
        if bound is not None and bound <= self.max_length:
            return encoding_BTD
        return jnp.where((valid_BT & (position_BT >= self.max_length))[..., None], jnp.nan, encoding_BTD)


def relative_position_buckets(num_buckets: int, max_distance: int) -> np.ndarray:
    """Return the bucket of each distance 0 .. `max_distance`: half of the buckets exact, half logarithmic."""
    exact, distance = num_buckets // 2, np.arange(max_distance + 1, dtype=np.float32)
    # float32 as in the published implementation: float64 would move some distances to another bucket.
    fraction = np.log(np.maximum(distance, 1) / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    logarithmic = exact + (fraction * np.float32(num_buckets - exact)).astype(np.int32)
    return np.where(distance < exact, distance.astype(np.int32), np.minimum(logarithmic, num_buckets - 1))


class RelativePositionBias(nn.Module):
    """A bias of the attention scores by head and distance, see the module.

    bidirectional: half of the buckets are for keys after the query; otherwise these count as distance 0.
    """

    heads: int
    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = False

    @nn.compact
    def __call__(self, distance_BTS: Array) -> Array:
        """Return the float32 bias (B, N, T, S) of distances, query position minus key position, (B, T, S)."""
        table = self.param("table", nn.initializers.normal(0.02), (self.num_buckets, self.heads))
        per_side = self.num_buckets // 2 if self.bidirectional else self.num_buckets
        magnitude_BTS = jnp.abs(distance_BTS) if self.bidirectional else jnp.maximum(distance_BTS, 0)
        buckets = jnp.asarray(relative_position_buckets(per_side, self.max_distance))
        bucket_BTS = buckets[jnp.minimum(magnitude_BTS, self.max_distance)]
        if self.bidirectional:
            bucket_BTS = jnp.where(distance_BTS < 0, bucket_BTS + per_side, bucket_BTS)
        return jnp.moveaxis(table[bucket_BTS], -1, 1)
