"""Absolute positions: the sinusoids of Vaswani et al. 2017 (section 3.5) or a learned table.

Rotary positions (Su et al. 2021, RoFormer) and the published rules that stretch them over longer texts.

A head's channels h and h + H/2 are turned together, as a point in the plane, by the angle position * rate_h:

    rate_h = theta^(-2h / H),  h = 0 .. H/2 - 1        so q_t . k_s depends on t - s alone

The scaling rules change the rates once and for all, so that a cached key stays what it is. "Dynamic" NTK scaling,
whose rates change with the length read so far, is left out: a model that has it says other things with a cache.

Relative position as a learned number that is added to attention scores (Raffel et al. 2020, T5, section 2.1).

Each head has one number a bucket of distances: small distances have a bucket each, larger ones share buckets that grow
with the logarithm, and all from `max_distance` on share the last. All layers of a stack use the same numbers.
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
    """All rates divided by `factor`: positions are squeezed into the known range (Chen et al. 2023)."""

    factor: float

    def scale_frequencies(self, rate_H: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """The new rates, and what cos and sin are multiplied by."""
        return rate_H / self.factor, 1.0


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow channels are interpolated, fast ones kept, those between blended (Llama 3.1).

    A channel is slow if its wave is longer than original_max_positions / low_freq_factor and fast if it is
    shorter than original_max_positions / high_freq_factor.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def scale_frequencies(self, rate_H: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """The new rates, and what cos and sin are multiplied by."""
        turns_H = self.original_max_positions * rate_H / (2 * math.pi)
        kept_H = np.clip((turns_H - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0.0, 1.0)
        return kept_H * rate_H + (1 - kept_H) * rate_H / self.factor, 1.0


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023): as above with a ramp over channels, and attention made sharper.

    Attributes:
      factor: how much longer texts become.
      original_max_positions: the length that was trained.
      beta_fast, beta_slow: full turns over `original_max_positions` positions from which a channel is kept,
        and below which it is interpolated.
      attention_factor: what cos and sin are multiplied by; None: 0.1 ln(factor) + 1.
      truncate: round the ends of the ramp to whole channels.
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def scale_frequencies(self, rate_H: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """The new rates, and what cos and sin are multiplied by."""
        half = len(rate_H)

        def channel(turns: float) -> float:
            return half * math.log(self.original_max_positions / (turns * 2 * math.pi)) / math.log(theta)

        first, last = channel(self.beta_fast), channel(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * half - 1)
        slow_H = np.clip((np.arange(half) - first) / max(last - first, 0.001), 0.0, 1.0)
        sharpness = (
            0.1 * math.log(max(self.factor, 1.0)) + 1 if self.attention_factor is None else self.attention_factor
        )
        return slow_H * rate_H / self.factor + (1 - slow_H) * rate_H, sharpness


@dataclass(frozen=True)
class Rotary:
    """The angles: base `theta` and, where texts are longer than those first trained on, a scaling rule."""

    theta: float = 10000.0
    scaling: LinearScaling | Llama3Scaling | Yarn | None = None

    def rotation(self, position_BT: Array, head_dim: int) -> Rotation:
        """Positions (B, T) -> cos and sin (B, T, H / 2). Raises UserError if H is odd."""
        if head_dim % 2:
            raise UserError(f"rotary positions turn channels in pairs, but a head has {head_dim}: make it even")
        rate_H, sharpness = self.theta ** (-np.arange(0, head_dim, 2) / head_dim), 1.0
        if self.scaling is not None:
            rate_H, sharpness = self.scaling.scale_frequencies(rate_H, self.theta)
        angle_BTH = position_BT[..., None].astype(jnp.float32) * jnp.asarray(rate_H, jnp.float32)[None, None]
        return jnp.cos(angle_BTH) * sharpness, jnp.sin(angle_BTH) * sharpness


def rotate(x_BTNH: Array, rotation: Rotation) -> Array:
    """Turn every head's channel pairs (h, h + H/2): (B, T, N, H) -> the same shape and dtype."""
    cos, sin = (part[:, :, None] for part in rotation)
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def sinusoids(position: Array, width: int, halves: bool = False) -> Array:
    """PE(pos, 2i) = sin(pos / 10000^(2i/D)), PE(pos, 2i+1) = cos of the same: (...,) -> (..., D) float32.

    With `halves` all sines come first, then all cosines.
    """
    rate_H = jnp.asarray(np.exp(-np.log(10000.0) * np.arange(0, width, 2) / width), jnp.float32)
    angle = position[..., None].astype(jnp.float32) * rate_H.reshape((1,) * position.ndim + (-1,))
    if halves:
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)[..., : width // 2]], axis=-1)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*position.shape, -1)[..., :width]


def check_capacity(kind: str, capacity: int, max_length: int) -> None:
    """Raises UserError if room is asked for more tokens than learned positions reach."""
    if kind == "learned" and capacity > max_length:
        raise UserError(
            f"room for {capacity} target tokens, but learned positions reach {max_length}: lower the length limit "
            "(of `generate`, --max-tokens), shorten the prompt, or train with a larger model.max_length"
        )


class PositionalEncoding(nn.Module):
    """Position encodings of kind "sinusoidal", "sinusoidal_halves", "learned" (at most `max_length`) or "none".

    The sinusoids lie interleaved as in the paper, or all sines before all cosines (Marian, Tensor2Tensor). A learned
    table starts from a normal with standard deviation `init_std`; None: D^-1/2.
    """

    width: int
    kind: str = "sinusoidal"
    max_length: int = 1024
    init_std: float | None = None

    @nn.compact
    def __call__(self, position_BT: Array, bound: int | None = None) -> Array:
        """Positions (B, T), counted from 0 and below `bound` where one is given -> encodings (B, T, D).

        With a bound each sinusoid is computed once and then looked up.
        """
        halves = self.kind == "sinusoidal_halves"
        if self.kind == "none":
            return jnp.zeros((*position_BT.shape, self.width), jnp.float32)
        if self.kind != "learned" and bound is not None:
            return jnp.take(sinusoids(jnp.arange(bound), self.width, halves), position_BT, axis=0, mode="clip")
        if self.kind != "learned":
            return sinusoids(position_BT, self.width, halves)
        if position_BT.shape[1] > self.max_length:
            raise UserError(
                f"a sequence of {position_BT.shape[1]} tokens, but learned positions reach {self.max_length}: "
                "shorten the input or train with a larger model.max_length"
            )
        deviation = self.width**-0.5 if self.init_std is None else self.init_std
        table = self.param("table", nn.initializers.normal(deviation), (self.max_length, self.width))
        return table[jnp.clip(position_BT, 0, self.max_length - 1)]


def relative_position_buckets(num_buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of every distance 0 .. `max_distance`, of `count` in all: half for one distance each, half
    logarithmic.
    """
    exact, far = num_buckets // 2, np.arange(max_distance + 1, dtype=np.float32)
    fraction = np.log(np.maximum(far, 1) / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    logarithmic = exact + (fraction * np.float32(num_buckets - exact)).astype(np.int32)
    return np.where(far < exact, far.astype(np.int32), np.minimum(logarithmic, num_buckets - 1))


class RelativePositionBias(nn.Module):
    """What each head adds to the score of a key that lies so many tokens before the query.

    Attributes:
      heads: N.
      num_buckets, max_distance: see the module. With `bidirectional` half of the buckets are for keys after
        the query; otherwise such a key counts as being at the query.
    """

    heads: int
    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = False

    @nn.compact
    def __call__(self, distance_BTS: Array) -> Array:
        """Position of the query less that of the key (B, T, S) -> what is added (B, N, T, S), float32."""
        table = self.param("table", nn.initializers.normal(0.02), (self.num_buckets, self.heads))
        sided = self.num_buckets // 2 if self.bidirectional else self.num_buckets
        far_BTS = jnp.abs(distance_BTS) if self.bidirectional else jnp.maximum(distance_BTS, 0)
        bucket_BTS = jnp.asarray(relative_position_buckets(sided, self.max_distance))[
            jnp.minimum(far_BTS, self.max_distance)
        ]
        if self.bidirectional:
            bucket_BTS = jnp.where(distance_BTS < 0, bucket_BTS + sided, bucket_BTS)
        return jnp.moveaxis(table[bucket_BTS], -1, 1)
