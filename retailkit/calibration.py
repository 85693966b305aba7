"""Answers to rely on: calibrated probabilities, sets of answers with a stated coverage, and no answer at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from retailkit.config import UsageError
from retailkit.metrics import Evaluation

LEAST = 1e-12  # of a probability, where its logarithm is taken


def temperature(calibration: Evaluation) -> float:
    """Return the number T whose division of all logits gives the lowest cross entropy (Guo et al. 2017, section 4.2).

    T is between 0.05 and 20, chosen on photos that trained nothing; above 1 the model was overconfident. The order of
    the classes stays the same.
    """
    best = minimize_scalar(lambda log_t: scaled(calibration, np.exp(log_t)).loss, bounds=np.log([0.05, 20]))
    return float(np.exp(best.x))


def scaled(evaluation: Evaluation, temperature: float) -> Evaluation:
    """Return an evaluation whose logits are divided by a temperature."""
    logits = np.log(evaluation.probs.clip(LEAST)) / temperature
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return replace(evaluation, probs=powers / powers.sum(1, keepdims=True))


def conformal_threshold(calibration: Evaluation, alpha: float = 0.1) -> float:
    """Return the least probability of a class in an answer set (split conformal prediction; Sadinle et al. 2019).

    Of n photos that trained nothing, take the probabilities of their true classes. The threshold is the k-th smallest
    of them, with k = floor((n + 1) alpha). For a new photo from the same source, the set of all classes that are at
    least so probable then holds the true one with a probability of at least 1 - alpha. With k = 0 (too few photos for
    so small an alpha) it is 0, and sets hold every class.

    Raises:
        UsageError: `alpha` is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise UsageError(f"alpha={alpha}, the share of sets that may miss the true class, must lie between 0 and 1")
    true = np.sort(calibration.probs[np.arange(calibration.n), calibration.labels])
    k = int(np.floor((calibration.n + 1) * alpha + 1e-9))
    return float(true[k - 1]) if k else 0.0


def answer_sets(evaluation: Evaluation, threshold: float) -> np.ndarray:
    """Return which classes each answer set holds, (N,K) bool: those at least as probable as the threshold."""
    return evaluation.probs >= threshold


def covered(evaluation: Evaluation, sets: np.ndarray) -> np.ndarray:
    """Return which sets (N,K) hold the true class, (N,) bool."""
    return sets[np.arange(evaluation.n), evaluation.labels]


def coverage_error(alpha: float, calibrated: int, judged: int) -> float:
    """Return the standard error of a measured coverage of 1 - alpha, for the numbers of photos behind it.

    The coverage that one calibration gives follows a beta distribution, and the photos that judge it are drawn, too.
    """
    return float(np.sqrt(alpha * (1 - alpha) * (1 / (calibrated + 2) + 1 / judged)))


def risk_coverage(evaluation: Evaluation) -> pd.DataFrame:
    """Return the share of wrong answers (`risk`) if only the most confident share of photos (`coverage`) is answered.

    One row per photo, from the most confident one to all (El-Yaniv and Wiener 2010); `threshold` is the confidence of
    its last photo. The mean of `risk` is the area under the curve.
    """
    confidence = np.where(evaluation.answered, evaluation.probs.max(1), -1.0)
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, evaluation.n + 1)
    wrong = np.cumsum(~evaluation.correct[order])
    return pd.DataFrame(
        {"coverage": answered / evaluation.n, "risk": wrong / answered, "threshold": confidence[order].clip(0)}
    )
