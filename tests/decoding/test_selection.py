"""Selection among the beams: by hand, its ends, and by a reward model that reads the request's events."""

import numpy as np

from onerec.decoding.selection import rerank
from onerec.evaluation.recommender import NO_ITEM, Ranking

RANKING = Ranking(
    np.array([[4, 2, 7], [5, 1, NO_ITEM]], dtype=np.int32),
    np.array([[-1.0, -2.0, -3.0], [-1.0, -5.0, -np.inf]], dtype=np.float32),
)
REWARDS = np.array([[0.1, 0.9, 0.5], [0.2, 0.7, 99.0]])


def test_by_the_reward_alone() -> None:
    found = rerank(RANKING, REWARDS)
    assert found.items_BK.tolist() == [[2, 7, 4], [1, 5, NO_ITEM]]
    assert found.scores_BK[1, 2] == -np.inf
    assert (np.diff(found.scores_BK, axis=1) <= 0).all()


def test_with_no_share_the_order_stays() -> None:
    assert rerank(RANKING, REWARDS, share=0.0).items_BK.tolist() == RANKING.items_BK.tolist()


def test_a_mixture_by_hand() -> None:
    """Standardised scores 1.22, 0, -1.22 and rewards -1.22, 1.22, 0: even shares give 0, .61, -.61."""
    found = rerank(RANKING, REWARDS, share=0.5)
    assert found.items_BK[0].tolist() == [2, 4, 7]
    np.testing.assert_allclose(found.scores_BK[0], np.array([0.5, 0, -0.5]) * np.sqrt(1.5), atol=1e-6)


def test_rewards_that_do_not_differ_leave_the_order() -> None:
    assert rerank(RANKING, np.full((2, 3), 0.1)).items_BK.tolist() == RANKING.items_BK.tolist()


def test_neither_unit_nor_zero_of_the_reward_matters() -> None:
    found, other = rerank(RANKING, REWARDS, 0.6), rerank(RANKING, 1000 * REWARDS - 3, 0.6)
    assert found.items_BK.tolist() == other.items_BK.tolist()
    np.testing.assert_allclose(found.scores_BK, other.scores_BK, atol=1e-5)
