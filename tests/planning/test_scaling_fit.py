"""The fit of a scaling law recovers planted constants, and its intervals hold what they promise."""

import numpy as np
import pytest

from pretrain.errors import ConfigError
from pretrain.planning.scaling import HOFFMANN, ScalingLaw
from pretrain.planning.scaling_fit import Point, fit_law

PLANTED = ScalingLaw("planted", 1.8, 60.0, 300.0, 0.32, 0.36)
SIZES = (1e5, 2e5, 4e5, 8e5, 1.6e6)
TOKENS = (1e6, 3e6, 1e7, 3e7)


def ladder(noise: float, seed: int, law: ScalingLaw = PLANTED) -> list[Point]:
    draw = np.random.default_rng(seed)
    return [Point(n, d, law.loss(n, d) * float(np.exp(draw.normal(0, noise)))) for n in SIZES for d in TOKENS]


def test_without_noise_the_constants_are_the_planted_ones() -> None:
    law = fit_law(ladder(0.0, 0), samples=10).law
    assert (law.floor, law.alpha, law.beta) == pytest.approx((1.8, 0.32, 0.36), rel=2e-3)
    assert (law.of_parameters, law.of_tokens) == pytest.approx((60.0, 300.0), rel=2e-2)


@pytest.mark.slow
def test_planted_constants_and_a_larger_run_lie_in_the_intervals() -> None:
    """Of 12 noisy ladders nine in ten intervals are to hold the truth; a fit that knows nothing would be wider."""
    held, predicted, widths = [], [], []
    truth = {"E": 1.8, "A": 60.0, "B": 300.0, "alpha": 0.32, "beta": 0.36}
    for seed in range(12):
        fit = fit_law(ladder(0.003, seed), samples=200)
        found = fit.constants()
        held += [found[name].low <= value <= found[name].high for name, value in truth.items()]
        predicted.append(fit.predict(6.4e6, 1e8))
        assert found["alpha"].low < found["alpha"].value < found["alpha"].high
        widths.append(predicted[-1].high - predicted[-1].low)
    assert np.mean(held) > 0.7
    larger = PLANTED.loss(6.4e6, 1e8)
    assert sum(each.low <= larger <= each.high for each in predicted) >= 9
    assert np.median(widths) < 0.1 * larger


def test_an_outlier_counts_little() -> None:
    points = ladder(0.001, 3)
    points[7] = Point(points[7].parameters, points[7].tokens, points[7].loss * 2.0)  # a run that spiked
    assert fit_law(points, samples=10).law.loss(6.4e6, 1e8) == pytest.approx(PLANTED.loss(6.4e6, 1e8), rel=0.003)


@pytest.mark.slow
def test_residuals_are_as_large_as_the_noise_of_a_run() -> None:
    """Nine runs give five constants, so what is left is 2 / 3 of the noise until it is scaled for that."""
    noise, squares, held = 3e-4, [], []
    for seed in range(30):
        points = ladder(noise, seed)
        few = [point for point in points if point.parameters in SIZES[::2] and point.tokens != 1e7]
        squares.append(float((fit_law(few, samples=2).residuals ** 2).mean()))
        again = PLANTED.loss(4e5, 3e6) * np.exp(np.random.default_rng(seed).normal(0, noise, 20))  # other runs
        inside = fit_law(points, samples=100).predict(4e5, 3e6)
        held += ((inside.low <= again) & (again <= inside.high)).tolist()
    assert np.sqrt(np.mean(squares)) == pytest.approx(noise, rel=0.15)
    assert 0.8 < np.mean(held) < 0.97  # 9 in 10; without the noise of the run itself about half


def test_few_runs_take_the_exponents_of_hoffmann() -> None:
    points = [point for point in ladder(0.0, 0) if point.parameters < 3e5 and point.tokens < 5e6]
    fit = fit_law(points, samples=20)
    assert (fit.law.alpha, fit.law.beta) == pytest.approx((HOFFMANN.alpha, HOFFMANN.beta))
    for point in points:
        assert fit.law.loss(point.parameters, point.tokens) == pytest.approx(point.loss, rel=0.01)
    for some in (points[:3], points[:1] * 4):
        with pytest.raises(
            ConfigError, match=r"ladder: \d runs of \d sizes? and \d lengths do not give a law\. Try lad"
        ):
            fit_law(some)


def test_the_optimum_of_a_budget_has_an_interval() -> None:
    fit = fit_law(ladder(0.003, 1), samples=100)
    found = fit.optimal_parameters(1e16)
    assert found.low < found.value < found.high
    best = fit.law.optimum(1e16)
    assert 6 * best.parameters * best.tokens == pytest.approx(1e16)
    for factor in (0.8, 1.25):
        assert fit.law.loss(best.parameters * factor, best.tokens / factor) > best.loss
