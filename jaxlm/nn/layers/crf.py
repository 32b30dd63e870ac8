"""Linear-chain conditional random field (Lafferty et al. 2001): a distribution over whole sequences of labels.

score(y) = start_{y_1} + sum_t emission_{t, y_t} + sum_t transition_{y_{t-1}, y_t} + end_{y_T},  p(y) = exp score(y) / Z

log Z by the forward algorithm, the best y by Viterbi's, both as one scan over S. Positions that are not `valid` are
skipped wherever they are, so that padding leaves no trace.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.types import Array

FORBIDDEN_SCORE = -1e4
"""Score of a forbidden transition: exp of it is 0 in float32, and a sum of many is finite."""


class CRF(nn.Module):
    """Transition scores between `labels` labels.

    forbidden: transitions (from, to) that never happen; -1 as `from` is the beginning.
    """

    labels: int
    forbidden: tuple[tuple[int, int], ...] = ()

    def setup(self) -> None:
        zeros = nn.initializers.zeros_init()
        self.transition_CC = self.param("transition", zeros, (self.labels, self.labels))
        self.start_C = self.param("start", zeros, (self.labels,))
        self.end_C = self.param("end", zeros, (self.labels,))

    def __call__(self, emission_BSC: Array, label_BS: Array, valid_BS: Array) -> Array:
        """-log p(labels) of each row, (B,). Where a label is -1 all are summed over; an empty row gives 0."""
        # Both sums, over what the labels allow and over everything, are one forward pass of 2 B rows.
        rows = emission_BSC.shape[0]
        choices_C = jnp.arange(self.labels)[None, None]
        allowed_BSC = (label_BS[..., None] == choices_C) | (label_BS < 0)[..., None]
        observed_BSC = jnp.where(allowed_BSC, emission_BSC, -1e9)
        log_z = self.log_partition(jnp.concatenate([observed_BSC, emission_BSC]), jnp.concatenate([valid_BS] * 2))
        return log_z[rows:] - log_z[:rows]

    def log_partition(self, emission_BSC: Array, valid_BS: Array) -> Array:
        """log of the sum of exp score(y) over all y, (B,); 0 where a row has no valid position."""
        start_C, transition_CC = self._transition_scores()
        begun_B = jnp.zeros(emission_BSC.shape[0], bool)

        def read(carry, column):
            alpha_BC, begun_B = carry
            emission_BC, valid_B = column
            arrived_BC = jax.nn.logsumexp(alpha_BC[:, :, None] + transition_CC[None], 1)
            new_BC = jnp.where(begun_B[:, None], arrived_BC, start_C[None]) + emission_BC
            return (jnp.where(valid_B[:, None], new_BC, alpha_BC), begun_B | valid_B), None

        columns = jnp.moveaxis(emission_BSC, 1, 0), valid_BS.T
        (alpha_BC, begun_B), _ = jax.lax.scan(read, (jnp.zeros_like(emission_BSC[:, 0]), begun_B), columns)
        return jnp.where(begun_B, jax.nn.logsumexp(alpha_BC + self.end_C[None], 1), 0.0)

    def viterbi(self, emission_BSC: Array, valid_BS: Array) -> Array:
        """The labels of the highest score, (B, S) int32; -1 where nothing is valid."""
        start_C, transition_CC = self._transition_scores()
        begun_B = jnp.zeros(emission_BSC.shape[0], bool)

        def read(carry, column):
            best_BC, begun_B = carry
            emission_BC, valid_B = column
            through_BCC = best_BC[:, :, None] + transition_CC[None]
            new_BC = jnp.where(begun_B[:, None], through_BCC.max(1), start_C[None]) + emission_BC
            # A position that is skipped, or the first one, hands every label on as it is.
            itself_C = jnp.arange(self.labels)[None]
            before_BC = jnp.where((begun_B & valid_B)[:, None], through_BCC.argmax(1), itself_C)
            return (jnp.where(valid_B[:, None], new_BC, best_BC), begun_B | valid_B), before_BC

        columns = jnp.moveaxis(emission_BSC, 1, 0), valid_BS.T
        (best_BC, _), before_SBC = jax.lax.scan(read, (jnp.zeros_like(emission_BSC[:, 0]), begun_B), columns)

        def follow(label_B, before_BC):
            return jnp.take_along_axis(before_BC, label_B[:, None], 1)[:, 0], label_B

        _, label_SB = jax.lax.scan(follow, (best_BC + self.end_C[None]).argmax(1), before_SBC, reverse=True)
        return jnp.where(valid_BS, label_SB.T, -1).astype(jnp.int32)

    def _transition_scores(self) -> tuple[Array, Array]:
        """Start and transition scores with the forbidden ones at NEVER."""
        allowed = jnp.zeros((self.labels + 1, self.labels), bool)
        scores = jnp.concatenate([self.transition_CC, self.start_C[None]])  # row -1 is the beginning
        if self.forbidden:
            before, after = zip(*self.forbidden, strict=True)
            scores = jnp.where(allowed.at[jnp.array(before), jnp.array(after)].set(True), FORBIDDEN_SCORE, scores)
        return scores[-1], scores[:-1]
