"""Rotary positions (Su et al. 2021, RoFormer) and the published rules that stretch them over longer texts.

A head's channels h and h + H/2 are turned together, as a point in the plane, by the angle position * rate_h:

    rate_h = theta^(-2h / H),  h = 0 .. H/2 - 1        so q_t . k_s depends on t - s alone

The scaling rules change the rates once and for all, so that a cached key stays what it is. "Dynamic" NTK scaling,
whose rates change with the length read so far, is left out: a model that has it says other things with a cache.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxlm.errors import UserError
from jaxlm.types import Array

Rotation = tuple[Array, Array]
"""cos and sin of the angles, each (B, T, H / 2), float32."""


@dataclass(frozen=True)
class Interpolation:
    """All rates divided by `factor`: positions are squeezed into the known range (Chen et al. 2023)."""

    factor: float

    def scaled(self, rate_H: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """The new rates, and what cos and sin are multiplied by."""
        return rate_H / self.factor, 1.0


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow channels are interpolated, fast ones kept, those between blended (Llama 3.1).

    A channel is slow if its wave is longer than original / low and fast if it is shorter than original / high.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def scaled(self, rate_H: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """The new rates, and what cos and sin are multiplied by."""
        turns_H = self.original * rate_H / (2 * math.pi)
        kept_H = np.clip((turns_H - self.low) / (self.high - self.low), 0.0, 1.0)
        return kept_H * rate_H + (1 - kept_H) * rate_H / self.factor, 1.0


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023): as above with a ramp over channels, and attention made sharper.

    Attributes:
      factor: how much longer texts become.
      original: the length that was trained.
      fast, slow: full turns over `original` positions from which a channel is kept, and below which it is interpolated.
      sharpness: what cos and sin are multiplied by; None: 0.1 ln(factor) + 1.
      whole: round the ends of the ramp to whole channels.
    """

    factor: float
    original: int
    fast: float = 32.0
    slow: float = 1.0
    sharpness: float | None = None
    whole: bool = True

    def scaled(self, rate_H: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """The new rates, and what cos and sin are multiplied by."""
        half = len(rate_H)

        def channel(turns: float) -> float:
            return half * math.log(self.original / (turns * 2 * math.pi)) / math.log(theta)

        first, last = channel(self.fast), channel(self.slow)
        if self.whole:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * half - 1)
        slow_H = np.clip((np.arange(half) - first) / max(last - first, 0.001), 0.0, 1.0)
        sharpness = 0.1 * math.log(max(self.factor, 1.0)) + 1 if self.sharpness is None else self.sharpness
        return slow_H * rate_H / self.factor + (1 - slow_H) * rate_H, sharpness


@dataclass(frozen=True)
class Rotary:
    """The angles: base `theta` and, where texts are longer than those first trained on, a scaling rule."""

    theta: float = 10000.0
    scaling: Interpolation | Llama3Scaling | Yarn | None = None

    def rotation(self, position_BT: Array, head_width: int) -> Rotation:
        """Positions (B, T) -> cos and sin (B, T, H / 2). Raises UserError if H is odd."""
        if head_width % 2:
            raise UserError(f"rotary positions turn channels in pairs, but a head has {head_width}: make it even")
        rate_H, sharpness = self.theta ** (-np.arange(0, head_width, 2) / head_width), 1.0
        if self.scaling is not None:
            rate_H, sharpness = self.scaling.scaled(rate_H, self.theta)
        angle_BTH = position_BT[..., None].astype(jnp.float32) * jnp.asarray(rate_H, jnp.float32)[None, None]
        return jnp.cos(angle_BTH) * sharpness, jnp.sin(angle_BTH) * sharpness


def rotate(x_BTNH: Array, rotation: Rotation) -> Array:
    """Turn every head's channel pairs (h, h + H/2): (B, T, N, H) -> the same shape and dtype."""
    cos, sin = (part[:, :, None] for part in rotation)
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
