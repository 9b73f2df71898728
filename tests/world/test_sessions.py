"""Sessions of the closed loop: contentment by hand, and stays and returns of the stated probability."""

import numpy as np
import pytest

from onerec.world.outcomes import Outcomes
from onerec.world.sessions import contentment, return_chance, returns, stay_chance, stays
from onerec.world.settings import WorldSettings
from onerec.world.users import take
from onerec.world.world import World

WORLD = World(WorldSettings(num_users=20_000, num_items=100, num_events=20_000, seed=6))


def watched(*seconds: float) -> Outcomes:
    nothing = np.zeros((1, len(seconds)), dtype=bool)
    return Outcomes(nothing, nothing, nothing, nothing, nothing, np.array([seconds]))


def test_contentment_is_the_mean_of_what_each_place_gave() -> None:
    one_minute = 1 - np.exp(-3)
    assert contentment(watched(60.0)) == pytest.approx([one_minute])
    assert contentment(watched(60.0, 0.0, 0.0, 60.0)) == pytest.approx([one_minute / 2])
    assert contentment(watched(0.0, 0.0)) == [0]


@pytest.mark.parametrize("level", [0.0, 0.3, 0.8])
def test_users_stay_and_come_back_with_the_stated_probability(level: float) -> None:
    state, content_B = WORLD.users_at(np.arange(20_000)), np.full(20_000, level)
    for happens, chance in ((stays, stay_chance), (returns, return_chance)):
        expected = float(chance(content_B)[0])
        bound = 4.5 * np.sqrt(expected * (1 - expected) / 20_000)
        assert abs(happens(WORLD, state, content_B).mean() - expected) < bound


def test_whoever_was_more_content_stays_wherever_a_less_content_self_would() -> None:
    state = WORLD.users_at(np.arange(2_000))
    little_B, much_B = np.full(2_000, 0.2), np.full(2_000, 0.6)
    for happens in (stays, returns):
        assert np.all(happens(WORLD, state, much_B) >= happens(WORLD, state, little_B))
        assert happens(WORLD, state, much_B).sum() > happens(WORLD, state, little_B).sum() + 100


def test_staying_is_a_matter_of_the_user_and_the_moment_alone() -> None:
    state, content_B = WORLD.users_at(np.arange(500)), np.full(500, 0.4)
    some = np.array([411, 3, 77])
    np.testing.assert_array_equal(
        stays(WORLD, take(state, some), content_B[some]), stays(WORLD, state, content_B)[some]
    )
    _, later = WORLD.step(state, np.full((500, 1), -1))
    assert np.any(stays(WORLD, later, content_B) != stays(WORLD, state, content_B))
    full_B = np.ones(500)
    assert stay_chance(full_B) == pytest.approx(return_chance(full_B))
    assert np.any(stays(WORLD, state, full_B) != returns(WORLD, state, full_B))
