"""Fit L(N, D) = E + A / N^alpha + B / D^beta to runs of a ladder, with intervals, and predict other runs.

Source: Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, section 3.3 and appendix D.3: the Huber loss of the
difference of logarithms, from a grid of starts. Its minimum is found by damped Gauss-Newton steps with Huber's weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import ConfigError
from pretrain.planning.scaling import HOFFMANN, ScalingLaw

Floats = NDArray[np.float64]
HUBER = 1e-3  # of the logarithm of a loss: a larger residual counts linearly
MIN_RUNS = 7  # from which the exponents are fitted, in three sizes and three lengths
_ITERATIONS = 150
_LIMITS = np.array([[-40.0, 40.0]] * 3 + [[math.log(0.02), math.log(4.0)]] * 2)
NAMES = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True)
class Point:
    """A run of the ladder."""

    parameters: float
    tokens: float
    loss: float  # nats per target


@dataclass(frozen=True)
class Range:
    """An interval of the bootstrap around a value."""

    value: float
    low: float
    high: float


class Fit:
    """A fitted law with resampled ones, which show how far it is known."""

    def __init__(self, law: ScalingLaw, resampled: Sequence[ScalingLaw], residuals: Floats, confidence: float) -> None:
        """`residuals` are those of the logarithms of the losses, scaled for the constants that were fitted."""
        self.law = law
        self.resampled = resampled
        self.residuals = residuals
        self.confidence = confidence

    def constants(self) -> dict[str, Range]:
        """Return E, A, B, alpha and beta with their intervals."""
        values = np.array([_constants(law) for law in self.resampled])
        low, high = np.quantile(values, self._ends, axis=0)
        return {
            name: Range(value, float(low[at]), float(high[at]))
            for at, (name, value) in enumerate(zip(NAMES, _constants(self.law), strict=True))
        }

    def predict(self, parameters: float, tokens: float, seed: int = 0) -> Range:
        """Return the loss of a run and the interval that a new run lies in, its own noise included."""
        draws = np.random.default_rng(seed).choice(self.residuals, len(self.resampled))
        losses = np.array([law.loss(parameters, tokens) for law in self.resampled]) * np.exp(draws)
        low, high = np.quantile(losses, self._ends)
        return Range(self.law.loss(parameters, tokens), float(low), float(high))

    def optimal_parameters(self, flops: float) -> Range:
        """Return the parameters that minimize the loss at 6 N D = `flops`, with their interval."""
        found = [max(1.0, law.optimum(flops).parameters) for law in self.resampled]
        low, high = np.quantile(found, self._ends)
        return Range(max(1.0, self.law.optimum(flops).parameters), float(low), float(high))

    @property
    def _ends(self) -> tuple[float, float]:
        return (1 - self.confidence) / 2, (1 + self.confidence) / 2


def fit_law(points: Sequence[Point], confidence: float = 0.9, samples: int = 500, seed: int = 0) -> Fit:
    """Return the law of these runs; `samples` laws are fitted again, to losses with resampled residuals.

    Of fewer than 7 runs, 3 sizes or 3 lengths the exponents cannot be fitted: they are those of Hoffmann et al.
    Raises ConfigError for fewer than 4 runs, or 2 sizes and 2 lengths.
    """
    sizes, lengths = ({getattr(point, name) for point in points} for name in ("parameters", "tokens"))
    if len(points) < 4 or min(len(sizes), len(lengths)) < 2:
        raise ConfigError(
            f"ladder: {len(points)} runs of {len(sizes)} sizes and {len(lengths)} lengths do not give a law. Try "
            "ladder.sizes=[2x64,3x96,4x128] ladder.tokens=[500000,1000000,2000000]."
        )
    design = _Design(points, fits_exponents=len(points) >= MIN_RUNS and min(len(sizes), len(lengths)) >= 3)
    losses = np.log([point.loss for point in points])
    starts = design.starts(float(min(point.loss for point in points)))
    found, costs = design.minimize(np.broadcast_to(losses, (len(starts), len(points))), starts)
    best = found[int(np.argmin(costs))]
    fitted = design.log_losses(best[None])[0]
    spare = len(points) - int(design.free.sum())
    residuals = (losses - fitted) * math.sqrt(len(points) / max(1, spare))
    draws = np.random.default_rng(seed).choice(residuals - residuals.mean(), (samples, len(points)))
    again, _ = design.minimize(fitted + draws, np.broadcast_to(best, (samples, 5)))
    return Fit(design.law(best), [design.law(each) for each in again], residuals, confidence)


def _constants(law: ScalingLaw) -> tuple[float, ...]:
    return law.floor, law.of_parameters, law.of_tokens, law.alpha, law.beta


class _Design:
    """The sizes and lengths of a ladder; its unknowns are log E, log of both terms at the mean run, log exponents."""

    def __init__(self, points: Sequence[Point], *, fits_exponents: bool) -> None:
        x, y = (np.log([getattr(point, name) for point in points]) for name in ("parameters", "tokens"))
        self.mean_x, self.mean_y = float(x.mean()), float(y.mean())
        self.x, self.y = x - self.mean_x, y - self.mean_y
        self.free = np.array([True, True, True, fits_exponents, fits_exponents])

    def starts(self, lowest: float) -> Floats:
        """Return a grid of starts, (S, 5)."""
        exponents = (0.1, 0.3, 0.6, 1.2) if self.free[3] else (0.0,)
        rows = []
        for share, alpha, beta in itertools.product((0.2, 0.6, 0.95), exponents, exponents):
            term = math.log(max(1e-9, lowest * (1.05 - share) / 2))
            known = (alpha, beta) if self.free[3] else (HOFFMANN.alpha, HOFFMANN.beta)
            rows.append([math.log(lowest * share), term, term, *map(math.log, known)])
        return np.array(rows)

    def law(self, unknowns: Floats) -> ScalingLaw:
        """Return the law of one row of unknowns."""
        e, a, b, log_alpha, log_beta = unknowns.tolist()
        alpha, beta = math.exp(log_alpha), math.exp(log_beta)
        return ScalingLaw(
            "this ladder", math.exp(e), math.exp(a + alpha * self.mean_x), math.exp(b + beta * self.mean_y), alpha, beta
        )

    def log_losses(self, unknowns: Floats) -> Floats:
        """Return the logarithm of the predicted losses (S, n)."""
        return np.logaddexp.reduce(self._terms(unknowns), axis=0)

    def _terms(self, unknowns: Floats) -> Floats:
        """Return the logarithm of the three terms (3, S, n)."""
        e, a, b, alpha, beta = (unknowns[:, at, None] for at in range(5))
        of_size, of_tokens = a - np.exp(alpha) * self.x, b - np.exp(beta) * self.y
        return np.stack([np.broadcast_to(e, of_size.shape), of_size, of_tokens])

    def minimize(self, losses: Floats, starts: Floats) -> tuple[Floats, Floats]:
        """Return the unknowns (S, 5) that fit each row of logarithms (S, n) best, and their Huber loss (S,)."""
        at = starts.copy()
        damping = np.full(len(at), 1e-2)
        cost = self._cost(losses, at)
        for _ in range(_ITERATIONS):
            step = self._step(losses, at, damping)
            tried = np.clip(at - step, _LIMITS[:, 0], _LIMITS[:, 1])
            new = self._cost(losses, tried)
            better = new < cost
            at, cost = np.where(better[:, None], tried, at), np.where(better, new, cost)
            damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e8)
        return at, cost

    def _step(self, losses: Floats, at: Floats, damping: Floats) -> Floats:
        terms = self._terms(at)
        log_losses = np.logaddexp.reduce(terms, axis=0)
        residuals = log_losses - losses
        shares = np.exp(terms - log_losses)  # (3, S, n)
        slopes = -np.exp(at[:, 3:5])
        jacobian: Any = (
            np.stack([*shares, shares[1] * slopes[:, :1] * self.x, shares[2] * slopes[:, 1:] * self.y], axis=-1)
            * self.free
        )  # (S, n, 5)
        weights = np.minimum(1.0, HUBER / np.maximum(np.abs(residuals), 1e-30))[..., None]
        gradient = (jacobian * weights * residuals[..., None]).sum(1)
        normal = np.swapaxes(jacobian, 1, 2) @ (jacobian * weights)
        diagonal = np.einsum("sii->si", normal)
        diagonal += damping[:, None] * np.maximum(diagonal, 1e-9) + ~self.free
        return np.linalg.solve(normal, gradient[..., None])[..., 0]

    def _cost(self, losses: Floats, at: Floats) -> Floats:
        size = np.abs(self.log_losses(at) - losses)
        return np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2)).sum(1)
