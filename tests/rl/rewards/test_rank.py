"""The ranking reward by hand-worked values."""

import numpy as np
import pytest

from rl.rewards.rank import matching_prefix, ranking_rewards, ranks_of

CODES_NL = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])


def rewards(items: list[int], target: int, prefix_credit: float = 0.0, ranks: list[int] | None = None) -> np.ndarray:
    ranks_BG = np.array([ranks or list(range(len(items)))])
    return ranking_rewards(np.array([items]), ranks_BG, np.array([target]), CODES_NL, prefix_credit)[0]


def test_a_hit_earns_one_and_the_wrong_ones_pay_by_rank() -> None:
    discounts = np.array([1, 1 / np.log2(3), 1 / 2])
    penalties = -discounts / discounts.sum()
    np.testing.assert_allclose(rewards([1, 0, 2], target=0), [penalties[0], 1, penalties[2]], rtol=1e-6)
    np.testing.assert_allclose(rewards([1, 0, 2], target=0)[[0, 2]], [-0.46928, -0.23464], rtol=1e-4)
    assert penalties.sum() == pytest.approx(-1)


def test_ranks_need_not_follow_the_order_of_the_samples() -> None:
    np.testing.assert_allclose(rewards([1, 0, 2], 0, ranks=[2, 0, 1]), rewards([0, 2, 1], 0)[[2, 0, 1]], rtol=1e-6)
    assert ranks_of(np.array([[0.1, 0.5, 0.1], [3.0, 2.0, 1.0]])).tolist() == [[1, 0, 2], [0, 1, 2]]


def test_a_group_without_a_hit_earns_nothing() -> None:
    assert rewards([1, 2, 3], target=0).tolist() == [0, 0, 0]


def test_prefix_credit_grades_the_wrong_ones() -> None:
    np.testing.assert_allclose(rewards([1, 2, 3], 0, prefix_credit=0.6), [0.4, 0.2, 0.0], atol=1e-6)
    with_hit = rewards([0, 1, 3], 0, prefix_credit=0.6) - rewards([0, 1, 3], 0)
    np.testing.assert_allclose(with_hit, [0, 0.4, 0], atol=1e-6)


def test_a_code_after_a_wrong_one_counts_for_nothing() -> None:
    assert matching_prefix(np.array([[0, 1, 2, 3]]), np.array([0]), CODES_NL).tolist() == [[3, 2, 1, 0]]


def test_places_without_an_item_earn_nothing() -> None:
    assert rewards([0, -1, -1], 3, prefix_credit=1.0)[1:].tolist() == [0, 0]
    assert rewards([3, -1], 3)[1] == 0
