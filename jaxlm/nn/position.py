"""Absolute positions: the sinusoids of Vaswani et al. 2017 (section 3.5) or a learned table."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import UserError
from jaxlm.types import Array


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


class Position(nn.Module):
    """Position encodings of kind "sinusoidal", "sinusoidal_halves", "learned" (at most `max_length`) or "none".

    The sinusoids lie interleaved as in the paper, or all sines before all cosines (Marian, Tensor2Tensor). A learned
    table starts from a normal with standard deviation `deviation`; None: D^-1/2.
    """

    width: int
    kind: str = "sinusoidal"
    max_length: int = 1024
    deviation: float | None = None

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
        deviation = self.width**-0.5 if self.deviation is None else self.deviation
        table = self.param("table", nn.initializers.normal(deviation), (self.max_length, self.width))
        return table[jnp.clip(position_BT, 0, self.max_length - 1)]
