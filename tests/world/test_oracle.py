"""True values and best slates: against brute force, and against what is clicked in the closed loop."""

from collections.abc import Callable

import numpy as np
import pytest

from onerec.errors import DataError
from onerec.world import oracle
from onerec.world.oracle import Objective
from onerec.world.settings import WorldSettings
from onerec.world.users import UserState
from onerec.world.world import World

WORLD = World(WorldSettings(num_users=400, num_items=150, num_events=4_000, seed=9))


@pytest.mark.parametrize("objective", list(Objective))
def test_ranking_is_the_order_of_true_values(objective: Objective) -> None:
    state = WORLD.users_at(np.array([4, 8, 15]))
    every_item = np.tile(np.arange(150), (3, 1))
    values = oracle.slate_values(WORLD, state, every_item, objective)
    ranking = oracle.rank(WORLD, state, 150, objective)
    np.testing.assert_allclose(ranking.values_BK, -np.sort(-values, axis=1), rtol=1e-12)
    np.testing.assert_array_equal(np.sort(ranking.items_BK, axis=1), every_item)


def test_blocks_of_users_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    state = WORLD.users_at(np.arange(20))
    whole = oracle.rank(WORLD, state, 5, Objective.CLICK)
    monkeypatch.setattr(oracle, "_SCORES_AT_ONCE", 3 * 150)
    cut = oracle.rank(WORLD, state, 5, Objective.CLICK)
    np.testing.assert_array_equal(cut.items_BK, whole.items_BK)


def test_regret_is_zero_for_the_best_slate_alone() -> None:
    state = WORLD.users_at(np.arange(50))
    best = oracle.rank(WORLD, state, 3, Objective.WATCH_SECONDS).items_BK
    np.testing.assert_allclose(oracle.regret(WORLD, state, best, Objective.WATCH_SECONDS), 0, atol=1e-9)
    worse = best.copy()
    worse[:, 0] = oracle.rank(WORLD, state, 150, Objective.WATCH_SECONDS).items_BK[:, -1]
    assert np.all(oracle.regret(WORLD, state, worse, Objective.WATCH_SECONDS) > 0)
    with_a_gap = best.copy()
    with_a_gap[:, 2] = -1
    lost = oracle.slate_values(WORLD, state, best, Objective.WATCH_SECONDS)[:, 2]
    np.testing.assert_allclose(oracle.regret(WORLD, state, with_a_gap, Objective.WATCH_SECONDS), lost)


def test_the_oracle_beats_popularity_and_the_logging_policy_in_simulated_clicks() -> None:
    users = np.arange(400)
    policies: dict[str, Callable[[UserState], np.ndarray]] = {
        "oracle": lambda state: oracle.rank(WORLD, state, 5, Objective.CLICK).items_BK,
        "popularity": lambda state: np.tile(np.argsort(-WORLD.catalogue.popularity_N)[:5], (400, 1)),
        "logging": lambda state: WORLD.policy.draw_slates(state, np.arange(2_000, dtype=np.uint64).reshape(400, 5)),
    }

    def clicks(policy: str) -> np.ndarray:
        state, total = WORLD.users_at(users), np.zeros(len(users))
        for request in range(5):
            outcomes, state = WORLD.step(state, policies[policy](state))
            np.testing.assert_array_equal(state.requests_B, WORLD.num_requests_U + request + 1)
            total += outcomes.click.sum(axis=1)
        return total

    by_oracle = clicks("oracle")
    for other in ("popularity", "logging"):
        difference = by_oracle - clicks(other)
        assert difference.mean() > 5 * difference.std() / np.sqrt(len(users))


def test_the_oracle_of_a_moment_is_not_the_oracle_of_another() -> None:
    users = np.arange(200)
    now, later = WORLD.users_at(users, np.zeros(200, np.int64)), WORLD.users_at(users, np.full(200, 60))
    stale = oracle.rank(WORLD, now, 5, Objective.CLICK).items_BK
    assert oracle.regret(WORLD, later, stale, Objective.CLICK).mean() > 0.05


def test_more_items_than_there_are_is_refused() -> None:
    with pytest.raises(DataError, match="at most the 150 items"):
        oracle.rank(WORLD, WORLD.users_at(np.array([0])), 151, Objective.CLICK)


def test_what_is_excluded_is_left_out_and_the_rest_keeps_its_order() -> None:
    state = WORLD.users_at(np.array([4, 8, 15]))
    whole = oracle.rank(WORLD, state, 150, Objective.WATCH_SECONDS).items_BK
    excluded = [whole[0, :3], np.array([], dtype=np.int64), whole[2, 2:]]
    found = oracle.rank(WORLD, state, 4, Objective.WATCH_SECONDS, excluded)
    np.testing.assert_array_equal(found.items_BK, [whole[0, 3:7], whole[1, :4], [*whole[2, :2], -1, -1]])
    np.testing.assert_array_equal(found.values_BK[2, 2:], 0)
    with pytest.raises(DataError, match="expected one for each of 3 users"):
        oracle.rank(WORLD, state, 4, Objective.CLICK, excluded[:2])
