"""Calibration of the choices of a prompted model, and the errors of its figures (NumPy)."""

import numpy as np


def by_context(logprob_NC: np.ndarray, empty_NEC: np.ndarray) -> np.ndarray:
    """log p(choice) minus the log of its mean probability after E inputs without content (Zhao et al. 2021)."""
    return logprob_NC - np.log(softmax(empty_NEC).mean(axis=1))


def by_batch(logprob_NC: np.ndarray) -> np.ndarray:
    """log p(choice) among the choices, minus its mean over all rows (Zhou et al. 2024)."""
    normalized_NC = np.log(softmax(logprob_NC))
    return normalized_NC - normalized_NC.mean(axis=0)


def softmax(logprob_NC: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    x_NC = np.exp(logprob_NC - logprob_NC.max(axis=-1, keepdims=True))
    return x_NC / x_NC.sum(axis=-1, keepdims=True)


def choice_figures(prob_NC: np.ndarray, gold_N: np.ndarray) -> dict[str, float]:
    """ "ece": |accuracy - confidence|, the mean over 15 bins of confidence by rows (Guo et al. 2017); "brier": mean
    squared distance from the true choice, 0 to 2; "most_chosen": the share of the choice that is taken most often.
    """
    chosen_N, confidence_N = prob_NC.argmax(axis=1), prob_NC.max(axis=1)
    bin_N = np.ceil(confidence_N * 15).astype(int)
    ece = np.abs(np.bincount(bin_N, (chosen_N == gold_N) - confidence_N)).sum() / len(gold_N)
    brier = ((prob_NC - np.eye(prob_NC.shape[1])[gold_N]) ** 2).sum(axis=1).mean()
    return {"ece": ece, "brier": brier, "most_chosen": np.bincount(chosen_N).max() / len(gold_N)}
