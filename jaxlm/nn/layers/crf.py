"""Linear-chain conditional random field (Lafferty et al. 2001): a distribution over whole label sequences.

score(y) = start_{y_1} + sum_t emission_{t, y_t} + sum_t transition_{y_{t-1}, y_t} + end_{y_T},  p(y) = exp score(y) / Z

log Z is computed by the forward algorithm and the best y by the Viterbi algorithm, both as one scan over S. Positions
that are not `valid` are skipped anywhere in a row, so that padding leaves no trace.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.types import Array

FORBIDDEN_SCORE = -1e4
"""Score of a forbidden transition: its exp is 0 in float32, and sums of many are finite."""


class CRF(nn.Module):
    """The transition scores of `labels` labels.

    forbidden: transitions (from, to) that never happen; `from` -1 is the start.
    """

    labels: int
    forbidden: tuple[tuple[int, int], ...] = ()

    def setup(self) -> None:
        zeros = nn.initializers.zeros_init()
        self.transition_CC = self.param("transition", zeros, (self.labels, self.labels))
        self.start_C = self.param("start", zeros, (self.labels,))
        self.end_C = self.param("end", zeros, (self.labels,))

    def __call__(self, emission_BSC: Array, label_BS: Array, valid_BS: Array) -> Array:
        """Return -log p(labels) of each row, (B,), summed over all labels where a label is -1; 0 for an empty row."""
        # Both sums, over the sequences that match the labels and over all, are one forward pass of 2 B rows.
        rows = emission_BSC.shape[0]
        allowed_BSC = (label_BS[..., None] == jnp.arange(self.labels)[None, None]) | (label_BS < 0)[..., None]
        observed_BSC = jnp.where(allowed_BSC, emission_BSC, -1e9)
        log_z = self.log_partition(jnp.concatenate([observed_BSC, emission_BSC]), jnp.concatenate([valid_BS] * 2))
        return log_z[rows:] - log_z[:rows]

    def log_partition(self, emission_BSC: Array, valid_BS: Array) -> Array:
        """Return log of the sum of exp score(y) over all y, (B,); 0 for a row without valid positions."""
        start_C, transition_CC = self._transition_scores()

        def forward(carry, inputs):
            alpha_BC, started_B = carry
            emission_BC, valid_B = inputs
            extended_BC = jax.nn.logsumexp(alpha_BC[:, :, None] + transition_CC[None], 1)
            new_BC = jnp.where(started_B[:, None], extended_BC, start_C[None]) + emission_BC
            return (jnp.where(valid_B[:, None], new_BC, alpha_BC), started_B | valid_B), None

        (alpha_BC, started_B), _ = _scan_positions(forward, emission_BSC, valid_BS)
        return jnp.where(started_B, jax.nn.logsumexp(alpha_BC + self.end_C[None], 1), 0.0)

    def viterbi(self, emission_BSC: Array, valid_BS: Array) -> Array:
        """Return the label sequence of the highest score, (B, S) int32; -1 at invalid positions."""
        start_C, transition_CC = self._transition_scores()

        def forward(carry, inputs):
            best_BC, started_B = carry
            emission_BC, valid_B = inputs
            extended_BCC = best_BC[:, :, None] + transition_CC[None]
            new_BC = jnp.where(started_B[:, None], extended_BCC.max(1), start_C[None]) + emission_BC
            # The backpointers of a skipped position, and of the first one, keep the label.
            same_C = jnp.arange(self.labels)[None]
            previous_BC = jnp.where((started_B & valid_B)[:, None], extended_BCC.argmax(1), same_C)
            return (jnp.where(valid_B[:, None], new_BC, best_BC), started_B | valid_B), previous_BC

        (best_BC, _), previous_SBC = _scan_positions(forward, emission_BSC, valid_BS)

        def follow(label_B, previous_BC):
            return jnp.take_along_axis(previous_BC, label_B[:, None], 1)[:, 0], label_B

        _, label_SB = jax.lax.scan(follow, (best_BC + self.end_C[None]).argmax(1), previous_SBC, reverse=True)
        return jnp.where(valid_BS, label_SB.T, -1).astype(jnp.int32)

    def _transition_scores(self) -> tuple[Array, Array]:
        """Start and transition scores, FORBIDDEN_SCORE at the forbidden ones."""
        scores = jnp.concatenate([self.transition_CC, self.start_C[None]])  # row -1 is the start
        if self.forbidden:
            before, after = np.array(self.forbidden).T
            scores = scores.at[before, after].set(FORBIDDEN_SCORE)
        return scores[-1], scores[:-1]


def _scan_positions(step, emission_BSC: Array, valid_BS: Array):
    """Scan over S; the carry is a score (B, C) and whether a row has started (B,)."""
    carry = jnp.zeros_like(emission_BSC[:, 0]), jnp.zeros(emission_BSC.shape[0], bool)
    return jax.lax.scan(step, carry, (jnp.moveaxis(emission_BSC, 1, 0), valid_BS.T))
