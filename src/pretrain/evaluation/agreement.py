"""How well predictions agree with the truth: F1 and correlations."""

import math

import numpy as np


def matthews(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the correlation of two bool arrays, -1 to 1; 0 where one of them is constant.

    Source: Matthews 1975, https://doi.org/10.1016/0005-2795(75)90109-9.
    """
    hits, rejects = float((predicted & truth).sum()), float((~predicted & ~truth).sum())
    alarms, misses = float((predicted & ~truth).sum()), float((~predicted & truth).sum())
    scale = math.sqrt((hits + alarms) * (hits + misses) * (rejects + alarms) * (rejects + misses))
    return (hits * rejects - alarms * misses) / scale if scale else 0.0


def binary_f1(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the harmonic mean of precision and recall of two bool arrays; 0 where both have no true value."""
    total = int(predicted.sum() + truth.sum())
    return 2 * float((predicted & truth).sum()) / total if total else 0.0


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Return the linear correlation of two arrays of numbers, -1 to 1; 0 where one of them does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first.astype(np.float64), second.astype(np.float64))[0, 1])


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Return the rank correlation of two arrays of numbers, -1 to 1; equal numbers share the mean of their ranks."""
    return pearson(_ranks(first), _ranks(second))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: np.ndarray = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return means
