"""Metrics by hand and against scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from rl.preference.metrics import auc, expected_calibration_error, grouped_auc, log_loss, time_errors

LABELS = np.array([1.0, 0, 1, 0])
SCORES = np.array([0.9, 0.5, 0.5, 0.1])


def test_auc_counts_ties_half() -> None:
    assert auc(LABELS, SCORES) == 3.5 / 4


def test_without_both_answers_there_is_no_auc() -> None:
    assert auc(np.ones(3), np.arange(3)) is None
    assert auc(np.zeros(0), np.zeros(0)) is None
    assert grouped_auc(np.array([1.0, 0]), np.array([0.5, 0.2]), np.array([0, 1])) == (None, 0)


def test_users_count_by_their_examples_and_only_with_both_answers() -> None:
    """User 7: 3.5 of 4 pairs, 4 examples; user 3: 0 of 1 pair, 2 examples; user 9 never says no."""
    labels, scores = np.concatenate([LABELS, [1, 0, 1, 1]]), np.concatenate([SCORES, [0.1, 0.2, 0.9, 0.8]])
    users = np.array([7, 7, 7, 7, 3, 3, 9, 9])
    order = np.random.default_rng(0).permutation(8)
    found, num_users = grouped_auc(labels[order], scores[order], users[order])
    assert found == pytest.approx((4 * 3.5 / 4 + 2 * 0) / 6)
    assert num_users == 2


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 5))
def test_aucs_are_scikit_learns(seed: int, num_examples: int, num_users: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num_examples).astype(np.float64)
    scores, users = rng.integers(0, 6, num_examples) / 5, rng.integers(0, num_users, num_examples)
    weights, values = [], []
    for user in np.unique(users):
        own = users == user
        if 0 < labels[own].mean() < 1:
            weights.append(own.sum())
            values.append(roc_auc_score(labels[own], scores[own]))
    expected = (np.average(values, weights=weights), len(values)) if values else (None, 0)
    assert grouped_auc(labels, scores, users) == pytest.approx(expected)
    if 0 < labels.mean() < 1:
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


def test_calibration_error_by_hand() -> None:
    """Of two bins the lower holds .2 and .4 with one yes (gap .3 - .5), the upper .9 with none (gap .9)."""
    labels, probabilities = np.array([1.0, 0, 0]), np.array([0.2, 0.4, 0.9])
    assert expected_calibration_error(labels, probabilities, num_bins=2) == pytest.approx(2 / 3 * 0.2 + 1 / 3 * 0.9)
    assert expected_calibration_error(np.array([1.0, 0]), np.array([1.0, 0.0])) == 0


def test_log_loss_is_scikit_learns() -> None:
    assert log_loss(LABELS, SCORES) == pytest.approx(sklearn_log_loss(LABELS, SCORES))


def test_time_errors_by_hand() -> None:
    found = time_errors(np.array([1.0, 5.0]), np.array([4.0, 1.0]))
    assert found == {"mae": 3.5, "rmse": pytest.approx(np.sqrt(12.5))}
