"""Scaling laws: constants recovered from exact losses, gradients by differences, optima of parabolas by hand."""

import numpy as np
import pytest
from scipy.optimize import check_grad

from onerec.errors import DataError
from onerec.scaling.law import Law, _huber, best_size, bootstrap_laws, fit_law, intervals, power_of
from onerec.scaling.published import ONEREC_V2

DELTA = 1e-3


def test_exact_losses_of_size_alone_give_the_constants_back() -> None:
    """Of OneRec-V2's own fit, at its own sizes."""
    sizes = np.array([[size] for size, _ in ONEREC_V2.points])
    law = fit_law(["N"], sizes, ONEREC_V2.law.predict(sizes), DELTA)
    assert law.floor == pytest.approx(3.13, rel=1e-4)
    assert law.exponents == pytest.approx((0.489,), rel=1e-3)
    assert law.scales == pytest.approx((3660,), rel=1e-2)


def test_the_fit_to_the_reported_losses_is_near_the_reported_fit() -> None:
    sizes, losses = np.array(ONEREC_V2.points).T
    law = fit_law(["N"], sizes[:, None], losses, DELTA)
    np.testing.assert_allclose(law.predict(sizes[:, None]), losses, atol=0.02)
    np.testing.assert_allclose(ONEREC_V2.law.predict(sizes[:, None]), losses, atol=0.02)


def grid_of(law: Law) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.array([[n, d] for n in np.geomspace(1e4, 1e7, 5) for d in np.geomspace(1e5, 1e8, 4)])
    return sizes, law.predict(sizes)


TRUE = Law(("N", "D"), 1.7, (400.0, 90.0), (0.5, 0.3))


def test_exact_losses_of_size_and_data_give_the_constants_back() -> None:
    sizes, losses = grid_of(TRUE)
    law = fit_law(["N", "D"], sizes, losses, DELTA)
    assert law.constants() == pytest.approx(TRUE.constants(), rel=1e-2)
    assert law.predict(np.array([[1e8, 1e9]])) == pytest.approx(TRUE.predict(np.array([[1e8, 1e9]])), rel=1e-4)
    # By hand: 1.7 + 400 / 1e8^0.5 + 90 / 1e9^0.3 = 1.7 + 0.04 + 90 / 501.187
    assert TRUE.predict(np.array([[1e8, 1e9]]))[0] == pytest.approx(1.7 + 0.04 + 90 / 501.18723)


def test_one_run_gone_wrong_hardly_moves_the_fit() -> None:
    sizes, losses = grid_of(TRUE)
    losses[7] *= 1.5
    law = fit_law(["N", "D"], sizes, losses, DELTA)
    assert law.exponents == pytest.approx(TRUE.exponents, abs=0.05)
    assert law.floor == pytest.approx(TRUE.floor, rel=0.02)


def test_the_gradient_is_that_of_differences() -> None:
    rng = np.random.default_rng(0)
    logs, targets = rng.normal(size=(6, 2)), rng.normal(size=6)
    for delta in (0.1, 10.0):
        error = check_grad(
            lambda x, delta=delta: _huber(x, logs, targets, delta)[0],
            lambda x, delta=delta: _huber(x, logs, targets, delta)[1],
            rng.normal(size=5),
        )
        assert error < 1e-3 / delta**2


def test_intervals_hold_the_truth_and_narrow_with_the_noise() -> None:
    sizes = np.geomspace(1e4, 1e8, 12)[:, None]
    losses = Law(("N",), 2.0, (300.0,), (0.4,)).predict(sizes)
    widths = []
    for noise in (1e-3, 1e-2):
        noisy = losses * np.exp(noise * np.random.default_rng(1).normal(size=12))
        bounds = intervals(bootstrap_laws(["N"], sizes, noisy, DELTA, 20), 0.9)
        assert bounds["alpha_N"][0] < 0.4 < bounds["alpha_N"][1]
        widths.append(bounds["alpha_N"][1] - bounds["alpha_N"][0])
    assert widths[0] < widths[1]
    assert intervals([], 0.9) == {}


def test_the_best_size_is_the_vertex_by_hand() -> None:
    sizes = np.exp([1.0, 2.0, 4.0])
    assert best_size(sizes, (np.log(sizes) - 2.5) ** 2 + 7) == pytest.approx(np.exp(2.5))
    assert best_size(sizes, (np.log(sizes) - 9) ** 2) is None  # beyond the largest
    assert best_size(sizes, -((np.log(sizes) - 2.5) ** 2)) is None  # a maximum
    assert best_size(sizes[:2], np.array([1.0, 2.0])) is None


def test_a_power_by_hand() -> None:
    assert power_of([1, 10, 100], [3, 30 * 10**-0.5, 30]) == pytest.approx(0.5)
    assert power_of([10, 10], [1, 2]) is None


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(DataError, match="found 2 distinct runs for 3 constants"):
        fit_law(["N"], np.array([[1.0], [2.0], [2.0]]), np.array([1.0, 2.0, 2.0]), DELTA)
