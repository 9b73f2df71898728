"""How good a predictor of feedback is: AUC, AUC within users, calibration, and errors of watch time.

Worked example: labels 1, 0, 1, 0 with scores .9, .5, .5, .1. Of the four pairs of a yes and a no three are in order and
one is a tie, so AUC = 3.5 / 4.

Shapes: N examples, U users.
"""

import numpy as np

ECE_BINS = 15


def auc(labels_N: np.ndarray, scores_N: np.ndarray) -> float | None:
    """Probability that a yes scores above a no, ties half; None where there are not both."""
    return grouped_auc(labels_N, scores_N, np.zeros(len(labels_N), dtype=np.int64))[0]


def grouped_auc(labels_N: np.ndarray, scores_N: np.ndarray, users_N: np.ndarray) -> tuple[float | None, int]:
    """GAUC (Zhu et al. 2017; arXiv 1706.06978, eq. 7): mean AUC within users, weighted by their examples.

    Only users with both a yes and a no have an AUC.

    Returns:
        GAUC, None where there is no such user, and how many there are.
    """
    _, user_N = np.unique(users_N, return_inverse=True)
    num_users = int(user_N.max(initial=-1)) + 1
    positives_U = np.bincount(user_N, weights=labels_N, minlength=num_users)
    examples_U = np.bincount(user_N, minlength=num_users)
    negatives_U = examples_U - positives_U
    rank_sums_U = np.bincount(user_N, weights=labels_N * ranks_within(user_N, scores_N), minlength=num_users)
    both_U = (positives_U > 0) & (negatives_U > 0)
    if not both_U.any():
        return None, 0
    ordered_U = (rank_sums_U - positives_U * (positives_U + 1) / 2)[both_U]
    aucs_U = ordered_U / (positives_U * negatives_U)[both_U]
    return float(np.average(aucs_U, weights=examples_U[both_U])), int(both_U.sum())


def ranks_within(groups_N: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
    """Place of each score in its group, the lowest first, from 1; equal scores share the mean of their places."""
    order_N = np.lexsort((scores_N, groups_N))
    groups, scores = groups_N[order_N], scores_N[order_N]
    new_group = np.append(True, groups[1:] != groups[:-1])[: len(groups)]
    new_run = new_group | np.append(True, scores[1:] != scores[:-1])[: len(groups)]
    run_N, first_of_run = np.cumsum(new_run) - 1, np.flatnonzero(new_run)
    last_of_run = np.append(first_of_run[1:], len(groups)) - 1
    first_of_group = np.flatnonzero(new_group)[np.cumsum(new_group) - 1]
    ranks_N = np.empty(len(groups))
    ranks_N[order_N] = ((first_of_run + last_of_run) / 2)[run_N] - first_of_group + 1
    return ranks_N


def expected_calibration_error(labels_N: np.ndarray, probabilities_N: np.ndarray, num_bins: int = ECE_BINS) -> float:
    """Mean distance between predicted probability and share of yes over bins of equal width (arXiv 1706.04599)."""
    bin_N = np.minimum((probabilities_N * num_bins).astype(np.int64), num_bins - 1)
    gaps_b = np.bincount(bin_N, weights=probabilities_N - labels_N, minlength=num_bins)
    return float(np.abs(gaps_b).sum() / len(labels_N))


def log_loss(labels_N: np.ndarray, probabilities_N: np.ndarray) -> float:
    """Mean cross-entropy in nats."""
    of_label = np.where(labels_N > 0, probabilities_N, 1 - probabilities_N)
    return float(-np.log(np.maximum(of_label, np.finfo(np.float64).tiny)).mean())


def time_errors(seconds_N: np.ndarray, predicted_N: np.ndarray) -> dict[str, float]:
    """Mean absolute and root mean squared error, in seconds."""
    errors_N = predicted_N.astype(np.float64) - seconds_N
    return {"mae": float(np.abs(errors_N).mean()), "rmse": float(np.sqrt(np.square(errors_N).mean()))}
