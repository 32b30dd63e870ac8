"""Scaling laws: the loss as a function of parameters N, training tokens D and compute C = 6 N D.

    chinchilla   L = E + A N^-a + B D^-b            Hoffmann et al. 2022, approach 3
    overtrained  L = E + A N^-2h + B D^-2h          Gadre et al. 2024: A = s 6^-h, B = t 6^-h for (s M^h + t M^-h) C^-h
    compute      L = E + k C^-c
    kaplan       L = ((Nc / N)^p + Dc / D)^aD       Kaplan et al. 2020, equation 1.5, p = aN / aD
    kaplan-N     L = (Nc / N)^aN                    equation 1.1; kaplan-D and kaplan-C in the same way

Laws of one variable are fitted to the runs that no run with less of it matches.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.errors import UserError


@dataclass(frozen=True)
class ScalingLaw:
    """log L = g log sum_j exp(t_j - r_j x_j), r = weights e + fixed. Theta (P,) holds t, the exponents e, if outer g.

    Attributes:
      names: of exp(t), e and g.
      variables: for each term the row of x, the logarithms (3, R) of N, D and C of R runs.
      grids: where a fit starts, for each of e and g.
      squared: whether a fit minimizes squared errors of L, not a Huber loss of its logarithm.
      min_rows: the runs that a fit needs.
      frontier: the field of which only runs are fitted that no run with less of it matches.
    """

    names: tuple[str, ...]
    variables: tuple[int, ...]
    weights: tuple[tuple[int, ...], ...]
    fixed: tuple[int, ...] = (0,)
    outer: bool = False
    grids: tuple[tuple[float, float], ...] = ((0.05, 0.95), (0.05, 0.95))
    squared: bool = False
    min_rows: int = 8
    frontier: str = ""

    def parts(self, theta: Any) -> tuple[np.ndarray, np.ndarray, float]:
        """(t, r, g)."""
        theta, count = np.asarray(theta), len(self.variables)
        rates = np.array(self.weights) @ theta[count : len(theta) - self.outer] + self.fixed
        return theta[:count], rates, theta[-1] if self.outer else 1.0

    def log_loss(self, theta: Any, logs_3R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log L (R,) and its derivatives by theta (P, R)."""
        logs_JR, (coefficients_J, rates_J, outer) = logs_3R[list(self.variables)], self.parts(theta)
        terms_JR = coefficients_J[:, None] - rates_J[:, None] * logs_JR
        total_R = np.logaddexp.reduce(terms_JR)
        share_JR = outer * np.exp(terms_JR - total_R)
        by_exponent = -np.array(self.weights).T @ (share_JR * logs_JR)
        return outer * total_R, np.stack([*share_JR, *by_exponent, *[total_R] * self.outer])

    def shift(self, theta: Any, offsets: np.ndarray) -> np.ndarray:
        """Theta of the same law if `offsets` (3,) are added to the logarithms of N, D and C."""
        coefficients, rates, _ = self.parts(theta)
        return np.r_[coefficients + rates * offsets[list(self.variables)], theta[len(coefficients) :]]

    def starts(self, logs_3R: np.ndarray, loss_R: np.ndarray, num: int) -> list[np.ndarray]:
        """Theta with the best coefficients for `num` values of each exponent, best first: non-negative least squares of
        relative errors (variable projection, Czech et al. 2026)."""
        from scipy.optimize import nnls

        starts, count = [], len(self.variables)
        ranges = [np.linspace(*limits, num) for limits, _ in zip(self.grids, self.names[count:], strict=False)]
        for exponents in itertools.product(*ranges):
            _, rates, outer = self.parts(np.r_[np.zeros(count), exponents])
            columns_JR = np.exp(-rates[:, None] * logs_3R[list(self.variables)]) / loss_R ** (1 / outer)
            coefficients, residual = nnls(columns_JR.T, np.ones(len(loss_R)))
            starts.append((outer * residual, np.r_[np.log(np.maximum(coefficients, 1e-9)), exponents]))
        return [theta for _, theta in sorted(starts, key=lambda start: start[0])]


LAWS = {
    "chinchilla": ScalingLaw(("A", "B", "E", "a", "b"), (0, 1, 0), ((1, 0), (0, 1), (0, 0))),
    "kaplan": ScalingLaw(("Nc", "Dc", "aN", "aD"), (0, 1), ((1,), (0,)), (0, 1), True, ((0.1, 2.0), (0.02, 0.5))),
    "overtrained": ScalingLaw(("A", "B", "E", "2h"), (0, 1, 0), ((1,), (1,), (0,)), squared=True, min_rows=5),
    "compute": ScalingLaw(("k", "E", "c"), (2, 2), ((1,), (0,)), min_rows=4, frontier="flops"),
    "kaplan-N": ScalingLaw(("Nc", "aN"), (0,), ((1,),), min_rows=3, frontier="params"),
    "kaplan-D": ScalingLaw(("Dc", "aD"), (1,), ((1,),), min_rows=3, frontier="tokens"),
    "kaplan-C": ScalingLaw(("Cc", "aC"), (2,), ((1,),), min_rows=3, frontier="flops"),
}


def constants(law: str, theta: Sequence[float]) -> dict[str, float]:
    """The parameters as the paper of the law names them, and a_opt of N ~ C^a_opt at the lowest loss for C."""
    logs, rates, outer = LAWS[law].parts(theta)
    scales = np.exp(logs / rates if law.startswith("kaplan") else logs)
    exponents = rates * outer if law == "kaplan" else theta[len(logs) :]
    values = dict(zip(LAWS[law].names, [*scales, *exponents], strict=True))
    return values if LAWS[law].frontier else values | {"a_opt": rates[1] / (rates[0] + rates[1])}


def optimal_size(law: str, theta: Sequence[float], flops: float, serve: float = 0.0) -> tuple[float, float]:
    """(N, D) of the lowest loss for C = 6 N D = `flops`; with `serve` tokens to be generated, those of the same loss
    that minimize 6 N D + 2 N `serve` (Sardana et al. 2024)."""
    if LAWS[law].frontier:
        raise UserError(f"the law {law} has one variable, expected N and D: fit --law chinchilla or kaplan")
    (log_u, log_v, *_), (p, q, *_), _ = LAWS[law].parts(theta)
    params = np.exp((log_u - log_v + np.log(p / q) + q * np.log(flops / 6)) / (p + q))
    tokens = flops / 6 / params
    if serve:
        reached = np.exp(log_u) * params**-p + np.exp(log_v) * tokens**-q
        smallest = (log_u - np.log(reached)) / p  # with this log N no number of tokens reaches the loss
        sizes = np.exp(np.linspace(smallest, np.log(params), 20_001)[1:])
        needed = ((reached - np.exp(log_u) * sizes**-p) / np.exp(log_v)) ** (-1 / q)
        best = np.argmin(sizes * (6 * needed + 2 * serve))
        params, tokens = sizes[best], needed[best]
    return float(params), float(tokens)
