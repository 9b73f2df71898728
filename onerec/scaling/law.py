"""A scaling law fitted to losses: L = E + sum_i A_i / x_i^alpha_i, as Hoffmann et al. 2022 (arXiv 2203.15556).

Their approach 3 (section 3.3) minimises the Huber loss of log L by L-BFGS, the law written as a log-sum-exp of
e = log E and a_i - alpha_i log x_i, which keeps every part positive. Their approach 2 (section 3.2) takes the minimum
of a parabola in log N through the runs of one budget.

Departures:
1. The search starts at non-negative least squares solutions for a grid of exponents, not at a grid of all constants.
2. Sizes are divided by their geometric mean while fitting, so that constants are of like magnitude.

Shapes: R runs, V variables, P constants of the law (1 + 2 V).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, nnls
from scipy.special import logsumexp, softmax

from onerec.errors import DataError

_EXPONENTS = np.linspace(0.05, 1.5, 12)  # of the starts
_NUM_STARTS = 5
_SMALLEST = 1e-12  # of a part that least squares sets to zero, so that it has a logarithm


@dataclass(frozen=True)
class Law:
    """E + sum_i A_i / x_i^alpha_i, variables in the order they were given."""

    names: tuple[str, ...]
    floor: float
    """E, the loss that no size removes."""
    scales: tuple[float, ...]
    """A_i."""
    exponents: tuple[float, ...]
    """alpha_i."""

    def predict(self, sizes_RV: np.ndarray) -> np.ndarray:
        """Losses (R,)."""
        return self.floor + (np.array(self.scales) * sizes_RV ** -np.array(self.exponents)).sum(axis=1)

    def constants(self) -> dict[str, float]:
        """Each constant by its name: E, A_N, alpha_N, ..."""
        parts = zip(self.names, self.scales, self.exponents, strict=True)
        return {"E": self.floor} | {
            key: value
            for name, scale, power in parts
            for key, value in ((f"A_{name}", scale), (f"alpha_{name}", power))
        }


def fit_law(names: Sequence[str], sizes_RV: np.ndarray, losses_R: np.ndarray, delta: float) -> Law:
    """The law of least Huber loss in log space.

    Args:
        delta: residual of log L from which on the loss grows linearly.

    Raises:
        DataError: fewer distinct runs than constants, or a size or loss that is not positive.
    """
    _require_enough(names, sizes_RV, losses_R)
    centres_V = np.exp(np.log(sizes_RV).mean(axis=0))
    logs_RV, targets_R = np.log(sizes_RV / centres_V), np.log(losses_R)
    starts = sorted(_starts(logs_RV, losses_R), key=lambda start: _huber(start, logs_RV, targets_R, delta)[0])
    fits = [
        minimize(_huber, start, (logs_RV, targets_R, delta), "L-BFGS-B", jac=True, options=_PATIENCE)
        for start in starts[:_NUM_STARTS]
    ]
    best_P = min(fits, key=lambda fit: fit.fun).x
    exponents_V = best_P[2::2]
    scales_V = np.exp(best_P[1::2]) * centres_V**exponents_V
    return Law(tuple(names), float(np.exp(best_P[0])), tuple(scales_V.tolist()), tuple(exponents_V.tolist()))


def bootstrap_laws(
    names: Sequence[str], sizes_RV: np.ndarray, losses_R: np.ndarray, delta: float, num_samples: int, seed: int = 0
) -> list[Law]:
    """Laws fitted to resamplings of the runs; a resampling of fewer distinct runs than constants is left out."""
    rng, laws = np.random.default_rng(seed), []
    for _ in range(num_samples):
        rows = rng.integers(len(losses_R), size=len(losses_R))
        if len(np.unique(rows)) > 2 * len(names) + 1:
            laws.append(fit_law(names, sizes_RV[rows], losses_R[rows], delta))
    return laws


def intervals(laws: Sequence[Law], confidence: float) -> dict[str, tuple[float, float]]:
    """Percentile interval of each constant; empty where no resampling could be fitted."""
    if not laws:
        return {}
    values = {name: [law.constants()[name] for law in laws] for name in laws[0].constants()}
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    return {name: tuple(np.quantile(found, ends).tolist()) for name, found in values.items()}


def best_size(parameters_R: np.ndarray, losses_R: np.ndarray) -> float | None:
    """Parameters at the minimum of a parabola in log N through the runs of one budget.

    None where there are fewer than three sizes, or where the minimum does not lie between the smallest and the largest.
    """
    logs_R = np.log(parameters_R)
    if len(np.unique(logs_R)) < 3:
        return None
    square, linear, _ = np.polyfit(logs_R, losses_R, 2)
    lowest = -linear / (2 * square) if square > 0 else np.inf
    return float(np.exp(lowest)) if logs_R.min() <= lowest <= logs_R.max() else None


def power_of(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Exponent of y ~ x^p by least squares in logarithms; None for fewer than two distinct x."""
    if len(set(x)) < 2:
        return None
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


_PATIENCE = {"maxiter": 5_000, "ftol": 1e-15, "gtol": 1e-12}


def _huber(
    constants_P: np.ndarray, logs_RV: np.ndarray, targets_R: np.ndarray, delta: float
) -> tuple[float, np.ndarray]:
    """Mean Huber loss over delta squared, and its gradient; constants are e, then a_i and alpha_i of each variable."""
    parts_RV = constants_P[1::2] - constants_P[2::2] * logs_RV
    terms = np.concatenate([np.full((len(targets_R), 1), constants_P[0]), parts_RV], axis=1)
    residuals_R = (logsumexp(terms, axis=1) - targets_R) / delta
    small_R = np.abs(residuals_R) <= 1
    loss_R = np.where(small_R, residuals_R**2 / 2, np.abs(residuals_R) - 0.5)
    shares = softmax(terms, axis=1) * (np.clip(residuals_R, -1, 1) / delta / len(targets_R))[:, None]
    gradient_P = np.empty_like(constants_P)
    gradient_P[0], gradient_P[1::2] = shares[:, 0].sum(), shares[:, 1:].sum(axis=0)
    gradient_P[2::2] = -(shares[:, 1:] * logs_RV).sum(axis=0)
    return float(loss_R.mean()), gradient_P


def _starts(logs_RV: np.ndarray, losses_R: np.ndarray) -> list[np.ndarray]:
    """Constants (P,) for each choice of exponents: the others by non-negative least squares of the relative error."""
    starts = []
    for exponents in itertools.product(_EXPONENTS, repeat=logs_RV.shape[1]):
        columns = np.column_stack([np.ones(len(losses_R)), np.exp(-np.array(exponents) * logs_RV)])
        weights, _ = nnls(columns / losses_R[:, None], np.ones(len(losses_R)))
        start_P = np.empty(1 + 2 * len(exponents))
        start_P[[0, *range(1, len(start_P), 2)]] = np.log(np.maximum(weights, _SMALLEST))
        start_P[2::2] = exponents
        starts.append(start_P)
    return starts


def _require_enough(names: Sequence[str], sizes_RV: np.ndarray, losses_R: np.ndarray) -> None:
    num_constants, num_runs = 1 + 2 * len(names), len(np.unique(sizes_RV, axis=0))
    if num_runs < num_constants:
        raise DataError(
            f"scaling law of {', '.join(names)}: found {num_runs} distinct runs for {num_constants} constants, "
            "expected as many at least. Add scaling.sizes or scaling.budgets."
        )
    if not ((sizes_RV > 0).all() and (losses_R > 0).all()):
        raise DataError("scaling law: found a size or loss that is not positive; its logarithm is what is fitted.")
