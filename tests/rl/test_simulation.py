"""The closed loop: one grid for everyone, histories that grow by the data's rule, sessions that end and begin again."""

import numpy as np
import pytest

from onerec.data.pathways import UserEvents
from onerec.errors import ConfigError
from onerec.world import oracle
from onerec.world.oracle import Objective
from onerec.world.settings import WorldSettings
from onerec.world.world import World
from rl.simulation import Play, Player, Simulation, Visitors

WORLD = World(WorldSettings(num_users=300, num_items=120, num_events=3_000, seed=5))
USERS = np.arange(0, 300, 2)
HISTORIES = [np.array([user % 120, (user + 1) % 120]) for user in USERS]


def simulation(**changes: object) -> Simulation:
    settings: dict = {"min_feedback": {"watch_seconds": 10.0}, "num_sessions": 3, "max_requests": 4}
    return Simulation(WORLD, USERS, HISTORIES, **{**settings, **changes})


def best(visitors: Visitors, num_places: int) -> np.ndarray:
    return oracle.rank(WORLD, visitors.state, num_places, Objective.WATCH_SECONDS, visitors.excluded).items_BK


def worst(visitors: Visitors, num_places: int) -> np.ndarray:
    everything = oracle.rank(WORLD, visitors.state, 120, Objective.WATCH_SECONDS).items_BK
    return everything[:, ::-1][:, :num_places]


def nothing(visitors: Visitors, num_places: int) -> np.ndarray:
    return np.full((len(visitors.histories), num_places), -1)


class Recorder:
    """A player that remembers what it was asked and what it answered."""

    def __init__(self, player: Player) -> None:
        self.player, self.asked, self.slates = player, [], []

    def __call__(self, visitors: Visitors, num_places: int) -> np.ndarray:
        self.asked.append(visitors)
        self.slates.append(self.player(visitors, num_places))
        return self.slates[-1]


def visits_of(recorder: Recorder, user: int) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """For one of the world's users: the moment, history, exclusions and slate of every request."""
    found = []
    for visitors, slates in zip(recorder.asked, recorder.slates, strict=True):
        for row in np.flatnonzero(visitors.state.users.users_B == user):
            moment = int(visitors.state.requests_B[row])
            found.append((moment, visitors.histories[row].items, visitors.excluded[row], slates[row]))
    return found


def assert_same(found: Play, expected: Play) -> None:
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def test_the_same_policy_plays_the_same_game() -> None:
    assert_same(simulation().play(best), simulation().play(best))


def test_the_grid_is_the_same_whatever_is_shown() -> None:
    """Whoever asks at a moment is in the mood of that moment, under every policy."""
    tastes: list[dict[tuple[int, int], bytes]] = []
    for player in (best, worst):
        recorder = Recorder(player)
        simulation().play(recorder)
        tastes.append(
            {
                (int(user), int(moment)): taste.tobytes()
                for visitors in recorder.asked
                for user, moment, taste in zip(
                    visitors.state.users.users_B, visitors.state.requests_B, visitors.state.taste_BD, strict=True
                )
            }
        )
    common = tastes[0].keys() & tastes[1].keys()
    assert len(common) > len(USERS)
    assert len(tastes[0]) > len(common)  # the better policy keeps users at moments the worse one has lost them
    assert all(tastes[0][moment] == tastes[1][moment] for moment in common)


def test_histories_grow_by_what_reached_the_least_feedback_in_order() -> None:
    recorder = Recorder(best)
    play = simulation().play(recorder)
    for row in (0, 7, 60):
        mine = play.users_E == row
        grown = play.items_E[mine][play.watch_seconds_E[mine] >= 10]
        visits = visits_of(recorder, USERS[row])
        last_history = visits[-1][1]
        np.testing.assert_array_equal(visits[0][1], HISTORIES[row])
        np.testing.assert_array_equal(last_history[:2], HISTORIES[row])
        before_last = len(last_history) - 2
        np.testing.assert_array_equal(last_history[2:], grown[:before_last])
        assert before_last >= len(grown) - 5  # nothing but the last slate's is missing


def test_what_is_known_of_events_grows_with_them() -> None:
    """Watch seconds and duration of what was shown; of a column that the loop does not have, nothing."""
    feedback = {name: np.array([1.0, 2.0]) for name in ("watch_seconds", "duration_seconds", "propensity")}
    histories = [UserEvents(items, np.array([5, 6]), feedback) for items in HISTORIES]
    recorder = Recorder(best)
    play = Simulation(WORLD, USERS, histories, {"watch_seconds": 10.0}, 3, 4).play(recorder)
    newest = {
        int(user): events
        for visitors in recorder.asked
        for user, events in zip(visitors.state.users.users_B, visitors.histories, strict=True)
    }
    for row in (0, 7, 60):
        events, mine = newest[USERS[row]], play.users_E == row
        kept = play.watch_seconds_E[mine] >= 10
        num_new = len(events) - 2
        assert num_new > 0
        np.testing.assert_allclose(
            events.feedback["watch_seconds"], [1, 2, *play.watch_seconds_E[mine][kept][:num_new]]
        )
        durations = WORLD.catalogue.duration_seconds_N[events.items[2:]]
        np.testing.assert_allclose(events.feedback["duration_seconds"], [1, 2, *durations])
        np.testing.assert_array_equal(events.feedback["propensity"], [1, 2, *[np.nan] * num_new])
        assert events.timestamps is None


def test_nothing_of_the_history_or_the_session_is_shown_again() -> None:
    recorder = Recorder(best)
    play = simulation(num_sessions=6).play(recorder)
    for row in np.flatnonzero(play.sessions_U > 1)[:5]:
        visits = visits_of(recorder, USERS[row])
        session_shown: list[int] = []
        session = -1
        for moment, history, excluded, slate in visits:
            elapsed = moment - int(WORLD.num_requests_U[USERS[row]])
            if elapsed // 4 != session:
                session, session_shown = elapsed // 4, []
            np.testing.assert_array_equal(excluded, [*history, *session_shown])
            assert not np.isin(slate, excluded).any()
            session_shown.extend(slate)
        assert session > 0


def test_totals_are_those_of_the_exposures() -> None:
    play = simulation().play(best)
    np.testing.assert_array_equal(play.per_user(np.ones(len(play.users_E))), play.requests_U * 5)
    assert play.sessions_U.min() == 1
    assert 1 < play.sessions_U.max() <= 3
    assert np.all(play.requests_U >= play.sessions_U)
    assert np.all(play.requests_U <= 4 * play.sessions_U)
    error = play.watch_seconds_E - play.expected_seconds_E
    assert abs(error.mean()) < 4.5 * error.std() / np.sqrt(len(error))
    assert play.per_user(play.likes_E).sum() == play.likes_E.sum() > 0


def test_users_stay_longer_and_come_back_more_often_where_they_watch_more() -> None:
    by_best, by_worst = simulation().play(best), simulation().play(worst)
    assert np.all(by_best.requests_U[by_best.sessions_U == 1].sum() > 0)
    assert by_best.sessions_U.mean() > by_worst.sessions_U.mean() + 0.3
    length_of_best, length_of_worst = (play.requests_U.sum() / play.sessions_U.sum() for play in (by_best, by_worst))
    assert length_of_best > length_of_worst + 0.3


def test_one_session_of_one_request_is_one_slate_a_user() -> None:
    play = simulation(num_sessions=1, max_requests=1).play(best)
    np.testing.assert_array_equal(play.requests_U, 1)
    expected = oracle.rank(
        WORLD, WORLD.users_at(USERS), 5, Objective.WATCH_SECONDS, [np.asarray(history) for history in HISTORIES]
    )
    np.testing.assert_array_equal(play.items_E.reshape(-1, 5), expected.items_BK)
    np.testing.assert_allclose(play.expected_seconds_E.reshape(-1, 5), expected.values_BK)


def test_an_empty_slate_shows_nothing_and_loses_the_user_soon() -> None:
    play = simulation().play(nothing)
    assert len(play.items_E) == 0
    assert play.requests_U.sum() < simulation().play(best).requests_U.sum()


def test_feedback_that_the_loop_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="found 'propensity', expected one of click"):
        simulation(min_feedback={"propensity": 0.1})
